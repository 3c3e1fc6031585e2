#include "patches.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace ape {

void cpu_split(const SplitArgs& args, int threads) {
  const float* image = static_cast<const float*>(args.image);
  float* patches = static_cast<float*>(args.patches);
  const int64_t patch_count = args.batch * args.patch_rows * args.patch_columns;
  const int64_t rows = args.channels * args.patch_height;
  parallel(threads, patch_count, [&](int, int64_t patch) {
    for (int64_t row = patch * rows; row < (patch + 1) * rows; ++row) {
      std::memcpy(patches + row * args.patch_width, image + split_source(args, row), args.patch_width * sizeof(float));
    }
  });
}

namespace {

// Image columns [begin, end) that one column slot fills from neighbouring pixels of one patch.
struct Run {
  const float* weight;  // [W] of the slot
  int64_t begin, end;
  int64_t shift;  // x + shift is the offset from MergeSource::start
};

// Slot by slot, so that every column is summed in slot order.
std::vector<Run> column_runs(const MergeArgs& args) {
  std::vector<Run> runs;
  for (int64_t j = 0; j < args.columns_covering; ++j) {
    const float* weight = args.column_weight + j * args.width;
    for (int64_t x = 0; x < args.width; ++x) {
      if (weight[x] == 0.0f) continue;
      const int64_t shift = merge_offset(args, j, x) - x;
      if (!runs.empty() && runs.back().weight == weight && runs.back().end == x && runs.back().shift == shift) {
        ++runs.back().end;
      } else {
        runs.push_back({weight, x, x + 1, shift});
      }
    }
  }
  return runs;
}

}  // namespace

void cpu_merge(const MergeArgs& args, int threads) {
  const float* patches = static_cast<const float*>(args.patches);
  const std::vector<Run> runs = column_runs(args);
  std::vector<float> scratch(std::max(threads, 1) * args.width);  // one row for each worker
  parallel(threads, merge_row_count(args), [&](int worker, int64_t row) {
    float* across = scratch.data() + worker * args.width;
    float* image = static_cast<float*>(args.image) + row * args.width;
    std::fill_n(image, args.width, 0.0f);
    for (int64_t i = 0; i < args.rows_covering; ++i) {
      const MergeSource source = merge_source(args, row, i);
      if (source.weight == 0.0f) continue;
      std::fill_n(across, args.width, 0.0f);
      for (const Run& run : runs) {
        const float* from = patches + source.start + run.shift;
        for (int64_t x = run.begin; x < run.end; ++x) across[x] += run.weight[x] * from[x];
      }
      for (int64_t x = 0; x < args.width; ++x) image[x] += source.weight * across[x];
    }
  });
}

}  // namespace ape
