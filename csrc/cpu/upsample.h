// Steps that enlarge a map: UPSAMPLE, and the pixel shuffle that ends a RECONSTRUCT.
#pragma once

#include "kernels.h"

namespace ape::cpu {

// Both read and write the floats of maps. dst is `factor` times as high and wide as src.
void nearest(const FeatureMap& src, int factor, const FeatureMap& dst);
// As in PyTorch: a = -0.75, half-pixel centres, clamped indices.
void bicubic(const FeatureMap& src, int factor, const FeatureMap& dst);

// Writes the picture [O][factor * height][factor * width] from phases [height][width][O * factor * factor]. `add` has O
// channels and the size of the picture, and is added; if its pixels are null, nothing is added.
void shuffle(const FeatureMap& phases, int factor, const FeatureMap& add, float* picture);

}  // namespace ape::cpu
