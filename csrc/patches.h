// How an image is cut into overlapping patches and blended back: the arguments, and where each element comes from. CPU
// and CUDA share this header.
#pragma once

#include "program.h"

namespace ape {

// patches[n, c, y, x] = image[b, c, row_start[r] + y, column_start[k] + x], n = (b * R + r) * K + k
struct SplitArgs {
  const void* image;            // [B, C, H, W] contiguous
  void* patches;                // [B * R * K, C, patch_height, patch_width] contiguous
  const int32_t* row_start;     // [R] first image row of each patch row
  const int32_t* column_start;  // [K] first image column of each patch column
  int64_t batch, channels, height, width;
  int64_t patch_rows, patch_columns;  // R, K
  int64_t patch_height, patch_width;
};

// image[b, c, y, x] = sum_i row_weight[i, y] * sum_j column_weight[j, x] * patches[n, c, py, px],
// r, py = row_index[i, :, y]; k, px = column_index[j, :, x]; n = (b * R + r) * K + k
struct MergeArgs {
  const void* patches;          // [B * R * K, C, patch_height, patch_width] contiguous
  void* image;                  // [B, C, H, W] contiguous
  const int32_t* row_index;     // [NY, 2, H] for each image row: patch row, then pixel row inside that patch
  const float* row_weight;      // [NY, H] 0 where unused
  const int32_t* column_index;  // [NX, 2, W] for each image column: patch column, then pixel column inside that patch
  const float* column_weight;   // [NX, W] 0 where unused
  int64_t batch, channels, height, width;
  int64_t patch_rows, patch_columns;  // R, K
  int64_t patch_height, patch_width;
  int64_t rows_covering, columns_covering;  // NY, NX
};

APE_HD inline int64_t split_row_count(const SplitArgs& args) {
  return args.batch * args.patch_rows * args.patch_columns * args.channels * args.patch_height;
}

// Offset into the image of the first pixel of one row of `patches`. Rows are counted through [N, C, patch_height].
APE_HD inline int64_t split_source(const SplitArgs& args, int64_t row) {
  const int64_t y = row % args.patch_height;
  const int64_t plane = row / args.patch_height;
  const int64_t c = plane % args.channels;
  const int64_t n = plane / args.channels;
  const int64_t k = n % args.patch_columns;
  const int64_t r = n / args.patch_columns % args.patch_rows;
  const int64_t b = n / (args.patch_columns * args.patch_rows);
  return ((b * args.channels + c) * args.height + args.row_start[r] + y) * args.width + args.column_start[k];
}

APE_HD inline int64_t merge_row_count(const MergeArgs& args) { return args.batch * args.channels * args.height; }

// Elements from one patch of a patch row to the next.
APE_HD inline int64_t patch_stride(const MergeArgs& args) {
  return args.channels * args.patch_height * args.patch_width;
}

struct MergeSource {
  float weight;
  int64_t start;  // offset into `patches` of the pixel row, in the first patch of the patch row
};

// Term `i` of one row of `image`. Rows are counted through [B, C, H]. Terms of weight 0, here and along the columns,
// must be skipped and not multiplied, because an unused slot may point at a NaN.
APE_HD inline MergeSource merge_source(const MergeArgs& args, int64_t row, int64_t i) {
  const int64_t y = row % args.height;
  const int64_t c = row / args.height % args.channels;
  const int64_t b = row / (args.height * args.channels);
  const int64_t r = args.row_index[2 * i * args.height + y];
  const int64_t py = args.row_index[(2 * i + 1) * args.height + y];
  const int64_t n = (b * args.patch_rows + r) * args.patch_columns;
  return {args.row_weight[i * args.height + y], ((n * args.channels + c) * args.patch_height + py) * args.patch_width};
}

// Offset, from MergeSource::start, of the pixel that column slot `j` adds to image column `x`.
APE_HD inline int64_t merge_offset(const MergeArgs& args, int64_t j, int64_t x) {
  const int64_t k = args.column_index[2 * j * args.width + x];
  const int64_t px = args.column_index[(2 * j + 1) * args.width + x];
  return k * patch_stride(args) + px;
}

}  // namespace ape
