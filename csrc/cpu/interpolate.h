// Cells that the network does not run on: bicubic interpolation, in the network's own tones.
#pragma once

#include "kernels.h"
#include "maps.h"

namespace ape::cpu {

// Colours on a regular grid of [count]^3, and what is added there; in between linear. `shift` null: nothing is added.
struct Tones {
  const float* shift;  // [count][count][count][3]
  int count;
  float value_range;
};

// Pixels of `area` of the picture [channels][scale * height][scale * width], from the image
// [channels][height][width].
void interpolate(const Kernels& kernels, const Planes<const float>& image, int channels, int height, int width,
                 int scale, const Tones& tones, const Area& area, const Planes<float>& picture);

}  // namespace ape::cpu
