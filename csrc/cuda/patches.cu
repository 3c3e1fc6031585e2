#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "patches.h"

namespace ape {
namespace {

// A warp owns a row, so what only depends on the row is computed once per row and the lanes touch neighbouring pixels.
constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int64_t kMaxBlocks = 1 << 16;

dim3 grid_for(int64_t rows) { return dim3(static_cast<unsigned>(std::min((rows + kWarps - 1) / kWarps, kMaxBlocks))); }

__device__ int64_t first_row() { return int64_t{blockIdx.x} * kWarps + threadIdx.y; }
__device__ int64_t row_step() { return int64_t{gridDim.x} * kWarps; }

// patches[n, c, y, x] = image[b, c, row_start[r] + y, column_start[k] + x]
// T: an unsigned integer as wide as an element; bits are copied, never converted.
// Grid: ceil(rows / 8) blocks of 32 x 8 threads, at most 65536, striding. A warp owns a row of a patch.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarps) split_kernel(SplitArgs args) {
  const T* image = static_cast<const T*>(args.image);
  T* patches = static_cast<T*>(args.patches);
  const int64_t rows = split_row_count(args);
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    const int64_t source = split_source(args, row);
    for (int64_t x = threadIdx.x; x < args.patch_width; x += kWarp)
      patches[row * args.patch_width + x] = image[source + x];
  }
}

template <class T>
__device__ float merge_pixel(const MergeArgs& args, int64_t row, int64_t x) {
  const T* patches = static_cast<const T*>(args.patches);
  float sum = 0.0f;
  for (int64_t i = 0; i < args.rows_covering; ++i) {
    const MergeSource source = merge_source(args, row, i);
    if (source.weight == 0.0f) continue;
    float across = 0.0f;
    for (int64_t j = 0; j < args.columns_covering; ++j) {
      const float weight = args.column_weight[j * args.width + x];
      if (weight == 0.0f) continue;
      across += weight * static_cast<float>(patches[source.start + merge_offset(args, j, x)]);
    }
    sum += source.weight * across;
  }
  return sum;
}

// image[b, c, y, x] = sum_i row_weight[i, y] * sum_j column_weight[j, x] * patches[...], in float32 and in that order
// T: float, __half or __nv_bfloat16; only the final sum is rounded to it.
// Grid: ceil(rows / 8) blocks of 32 x 8 threads, at most 65536, striding. A warp owns a row of the image.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarps) merge_kernel(MergeArgs args) {
  T* image = static_cast<T*>(args.image);
  const int64_t rows = merge_row_count(args);
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    for (int64_t x = threadIdx.x; x < args.width; x += kWarp)
      image[row * args.width + x] = static_cast<T>(merge_pixel<T>(args, row, x));
  }
}

template <class Args>
cudaError_t launch(void (*kernel)(Args), const Args& args, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  void* parameters[] = {const_cast<Args*>(&args)};
  const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid_for(rows), dim3(kWarp, kWarps),
                                             parameters, 0, stream);
  if (error != cudaSuccess) cudaGetLastError();  // reported to this caller alone
  return error;
}

}  // namespace

cudaError_t launch_split(const SplitArgs& args, int dtype, cudaStream_t stream) {
  const int64_t rows = split_row_count(args);
  switch (dtype) {
    case kFloat32:
      return launch(split_kernel<uint32_t>, args, rows, stream);
    case kFloat16:
    case kBFloat16:
      return launch(split_kernel<uint16_t>, args, rows, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_merge(const MergeArgs& args, int dtype, cudaStream_t stream) {
  const int64_t rows = merge_row_count(args);
  switch (dtype) {
    case kFloat32:
      return launch(merge_kernel<float>, args, rows, stream);
    case kFloat16:
      return launch(merge_kernel<__half>, args, rows, stream);
    case kBFloat16:
      return launch(merge_kernel<__nv_bfloat16>, args, rows, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ape
