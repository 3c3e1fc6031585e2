// Cells that the network does not run on: bicubic interpolation.
#pragma once

#include "kernels.h"
#include "maps.h"

namespace ape::cpu {

// Pixels of `area` of the picture [channels][scale * height][scale * width], from the image
// [channels][height][width].
void interpolate(const Kernels& kernels, const Planes<const float>& image, int channels, int height, int width,
                 int scale, const Area& area, const Planes<float>& picture);

}  // namespace ape::cpu
