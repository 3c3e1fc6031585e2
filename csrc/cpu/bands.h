// Several convolutions, a band of rows through all of them at a time, so that what passes between them stays in L2.
#pragma once

#include <algorithm>
#include <vector>

#include "maps.h"

namespace ape::cpu {

constexpr int64_t kL2Bytes = int64_t(2) << 20;  // of the cores that have AMX; half of it is for what passes through
constexpr int kBandRows = 16;

// How many of the steps, from the first on, are to run in bands: bf16 convolutions of one resolution whose maps do not
// fit L2, but whose weights do. 1: the first runs on its own.
inline int64_t count_banded(const Step* steps, int64_t count, const Program& program, const Maps& maps) {
  int64_t together = 0, weight_bytes = 0;
  for (; together < count; together++) {
    const Instruction &in = steps[together].in, &first = steps[0].in;
    if (in.opcode != kConv || in.layout() != kBf16) break;
    const FeatureMap& map = maps[in.dst];
    if (map.height != maps[first.dst].height) break;
    const int64_t map_bytes = slices(map.channels) * map.rounded_slice * int64_t(sizeof(bf16));
    if (2 * map_bytes <= kL2Bytes) break;
    weight_bytes += padded(in.out_channels) / kGroup * program.group_size(in, steps[together].sources, kBf16) * 4;
    if (weight_bytes > kL2Bytes / 2) break;
  }
  return std::max<int64_t>(together, 1);
}

// Calls run(step, first row, rows): kBandRows rows through all steps, then the next. Each step is as many rows behind
// the one before as the wider of their kernels reaches: it finds all rows it reads, and what it overwrites no earlier
// step will read again. Two maps of 64 channels, 96x96 pixels, are 2.5 MB: whole, they pass through L3 at every step;
// 20 rows of both are 0.5 MB.
template <class F>
void run_bands(const Step* steps, int64_t count, int height, F run) {
  std::vector<int> behind(count, 0);
  for (int64_t i = 1; i < count; i++)
    behind[i] = behind[i - 1] + std::max(steps[i - 1].in.kernel, steps[i].in.kernel) / 2;
  for (int row = 0; row < height + behind.back(); row += kBandRows) {
    for (int64_t i = 0; i < count; i++) {
      const int first = std::max(row - behind[i], 0), end = std::min(row + kBandRows - behind[i], height);
      if (first < end) run(steps[i], first, end - first);
    }
  }
}

}  // namespace ape::cpu
