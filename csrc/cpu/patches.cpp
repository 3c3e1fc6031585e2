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

// Image columns [begin, end) to which one column slot adds neighbouring pixels of one patch.
struct Span {
  const float* weight;  // [W] of the slot
  int64_t begin, end;
  int64_t shift;  // x + shift is the offset from MergeSource::start
};

// The spans of all columns, ordered by slot, so that every column is summed in the order of the slots.
std::vector<Span> column_spans(const MergeArgs& args) {
  std::vector<Span> spans;
  for (int64_t j = 0; j < args.columns_covering; ++j) {
    const float* weight = args.column_weight + j * args.width;
    for (int64_t x = 0; x < args.width; ++x) {
      if (weight[x] == 0.0f) continue;
      const int64_t shift = merge_offset(args, j, x) - x;
      if (!spans.empty() && spans.back().weight == weight && spans.back().end == x && spans.back().shift == shift) {
        ++spans.back().end;
      } else {
        spans.push_back({weight, x, x + 1, shift});
      }
    }
  }
  return spans;
}

}  // namespace

void cpu_merge(const MergeArgs& args, int threads) {
  const float* patches = static_cast<const float*>(args.patches);
  const std::vector<Span> spans = column_spans(args);
  std::vector<float> scratch(std::max(threads, 1) * args.width);  // one row per worker
  parallel(threads, merge_row_count(args), [&](int worker, int64_t row) {
    float* across = scratch.data() + worker * args.width;
    float* image = static_cast<float*>(args.image) + row * args.width;
    std::fill_n(image, args.width, 0.0f);
    for (int64_t i = 0; i < args.rows_covering; ++i) {
      const MergeSource source = merge_source(args, row, i);
      if (source.weight == 0.0f) continue;
      std::fill_n(across, args.width, 0.0f);
      for (const Span& span : spans) {
        const float* from = patches + source.start + span.shift;
        for (int64_t x = span.begin; x < span.end; ++x) across[x] += span.weight[x] * from[x];
      }
      for (int64_t x = 0; x < args.width; ++x) image[x] += source.weight * across[x];
    }
  });
}

}  // namespace ape
