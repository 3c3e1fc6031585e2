#include "plan.h"
#include "prepare.h"

namespace ape::cuda {
namespace {

// Grid: as many blocks as run at once, or as patches. Block: 8 warps. One block a multiprocessor by its shared memory.
template <class E>
__global__ void __launch_bounds__(kThreads, 1) worker_kernel(const __grid_constant__ WorkerArgs args) {
  extern __shared__ __align__(128) char shared[];
  Warp warp = Warp::current(shared);
  Worker<E, Shapes> worker(warp, args);
  worker.run();
}

using Kernel = void (*)(WorkerArgs);

Kernel kernel_of(int element) { return element == kFloat16 ? worker_kernel<Half> : worker_kernel<Float>; }

cudaError_t prepare(int element, uint32_t* shared_bytes) {
  Prepared prepared{};
  const cudaError_t error =
      prepare(reinterpret_cast<const void*>(kernel_of(element)), element == kFloat16, shared_bytes_of, &prepared);
  *shared_bytes = prepared.shared_bytes;
  return error;
}

}  // namespace

cudaError_t worker_blocks(int element, int* blocks) {
  uint32_t shared_bytes = 0;
  int device = 0, processors = 0, per_processor = 0;
  cudaError_t error = prepare(element, &shared_bytes);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel_of(element), kThreads, shared_bytes);
  *blocks = processors * per_processor;
  return error == cudaSuccess && *blocks == 0 ? cudaErrorLaunchOutOfResources : reported(error);
}

cudaError_t launch_worker(const WorkerArgs& args, int element, int blocks, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  uint32_t shared_bytes = 0;
  const cudaError_t error = prepare(element, &shared_bytes);
  if (error != cudaSuccess) return error;
  return launch(kernel_of(element), args, blocks, shared_bytes, stream);
}

}  // namespace ape::cuda
