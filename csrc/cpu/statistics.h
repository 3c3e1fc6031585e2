// What a planner knows of an image: a few numbers of each cell of low-resolution pixels.
#pragma once

#include <cstdint>

namespace ape::cpu {

constexpr int kStatistics = 11;  // numbers of one cell, what they are: statistics in ape_kernels/ops.py

struct StatisticsArgs {
  const float* image;  // [batch, channels, height, width]
  float* out;          // [batch, rows, columns, kStatistics]; the last row and column of cells end with the image
  int64_t batch, channels, height, width;
  int64_t cell;       // sides of a cell in pixels
  float value_range;  // what white is
  int threads;
};

void statistics(const StatisticsArgs& args);

}  // namespace ape::cpu
