#include "prepare.h"
#include "window.h"

namespace ape::cuda {
namespace {

// Grid: a block a window, and some for border pixels. Block: 8 warps. One block a multiprocessor by its shared memory.
// Pairs have a kernel of their own: together with the other rows they would need more registers than there are.
template <class E>
__global__ void __launch_bounds__(kThreads, 1) image_kernel(const __grid_constant__ ImageArgs args) {
  extern __shared__ __align__(128) char shared[];
  Warp warp = Warp::current(shared);
  ImageWorker<E, Shapes> worker(warp, args);
  worker.run();
}

__global__ void __launch_bounds__(kThreads, 1) image_pair_kernel(const __grid_constant__ ImageArgs args) {
  extern __shared__ __align__(128) char shared[];
  Warp warp = Warp::current(shared);
  ImageWorker<Half, Shapes> worker(warp, args);
  worker.run_pair();
}

using Kernel = void (*)(ImageArgs);

}  // namespace

cudaError_t launch_images(const ImageRequest& request, cudaStream_t stream) {
  const bool half = request.element == kFloat16;
  const Kernel any = half ? image_kernel<Half> : image_kernel<Float>;
  Prepared prepared{};
  cudaError_t error = prepare(reinterpret_cast<const void*>(any), half, image_shared_bytes_of, &prepared);
  // pairs are of halves: a call in float32 would take shared memory from one in float16 beside it
  if (error == cudaSuccess && half)
    error = prepare(reinterpret_cast<const void*>(image_pair_kernel), half, image_shared_bytes_of, &prepared);
  if (error != cudaSuccess) return error;
  const ImageDevice device{[&](int channels) { return image_fuses(channels, shared_kb_of(prepared.arch)); },
                           prepared.processors};  // one block each, by its shared memory
  for (const ImageLaunch& one : image_launches(request, device)) {
    const Kernel kernel = one.args.fused ? image_pair_kernel : any;
    error = launch(kernel, one.args, one.blocks, prepared.shared_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace ape::cuda
