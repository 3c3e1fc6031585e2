// Images and pictures as files have them: whole numbers, the channels of a pixel side by side.
#pragma once

#include <cstdint>
#include <vector>

#include "maps.h"

namespace ape::cpu {

// An image and its picture. Numbers have `bytes` bytes, 1 or 2.
struct Levels {
  const void* image;         // [height][width][channels]
  int64_t width, channels;   // of the image
  float to_value;            // from a number to what the network reads
  void* picture;             // null: pictures are floats
  int64_t row, pixel;        // strides of the picture, in numbers
  int rows, columns, shown;  // height, width and channels of the picture; one channel is the luma of three
  float to_level;            // from what the network writes to a number
  int bytes;
};

// Pixels of `area` of the image whose squares of fold x fold pixels are channels: [channels * fold * fold][area], in
// `memory`. They are addressed as if the whole image were there.
Planes<const float> read_levels(const Levels& levels, int fold, const Area& area, std::vector<float>& memory);

// Pixels of `area`, of all channels, to the picture: rounded to the nearest, halves to even, and held in the range.
// What lies beyond the picture is left out. `planes` is written over.
void write_levels(const Planes<float>& planes, const Area& area, const Levels& levels);

}  // namespace ape::cpu
