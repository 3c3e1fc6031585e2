// Steps that enlarge a map: UPSAMPLE, and the pixel shuffle that ends a RECONSTRUCT.
#pragma once

#include "kernels.h"

namespace ape::cpu {

// dst is `factor` times as high and wide as src; floats of both.
void nearest(const FeatureMap& src, int factor, const FeatureMap& dst);
// a = -0.75, half-pixel centres, clamped indices, as PyTorch has it.
void bicubic(const FeatureMap& src, int factor, const FeatureMap& dst);

// Phases [height][width][O * factor * factor] to the picture [O][factor * height][factor * width], plus `add`, a map of
// O channels and the picture's size; its pixels null: plus nothing.
void shuffle(const FeatureMap& phases, int factor, const FeatureMap& add, float* picture);

}  // namespace ape::cpu
