// Steps that enlarge a map: UPSAMPLE, and the pixel shuffle that ends a RECONSTRUCT.
#pragma once

#include <vector>

#include "maps.h"

namespace ape::cpu {

// Four taps of cubic interpolation for the output pixels `begin` to `end` of an axis of `size` source pixels; a =
// -0.75, half-pixel centres, clamped indices, as PyTorch has it.
struct CubicTaps {
  std::vector<int> index;  // [end - begin][4]
  std::vector<float> weight;

  CubicTaps(int size, int factor, int begin, int end);
};

// Pixels of `area` of dst, which is `factor` times as high and wide as src; floats of both.
void nearest(const FeatureMap& src, int factor, const FeatureMap& dst, const Area& area);
void bicubic(const FeatureMap& src, int factor, const FeatureMap& dst, const Area& area);

// Phases [height][width][O * factor * factor], pixels of `area`, to the picture [O][factor * height][factor * width],
// plus `add`, a map of O channels and the picture's size; its pixels null: plus nothing.
void shuffle(const FeatureMap& phases, int factor, const FeatureMap& add, const Area& area,
             const Planes<float>& picture);

}  // namespace ape::cpu
