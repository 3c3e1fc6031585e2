#include "worker.h"

#include "launch.h"
#include "plan.h"

namespace ape::cuda {
namespace {

template <class E>
__global__ void __launch_bounds__(kThreads, 1) worker_kernel(const __grid_constant__ WorkerArgs args) {
  extern __shared__ __align__(128) char shared[];
  Warp warp = Warp::current(shared);
  Worker<E> worker(warp, args);
  worker.run();
}

using Kernel = void (*)(WorkerArgs);

struct Variant {
  Kernel kernel;
  uint32_t shared_bytes;
};

Variant variant(int element) {
  if (element == kHalfElements) return {worker_kernel<Half>, Worker<Half>::kSharedBytes};
  return {worker_kernel<Float>, Worker<Float>::kSharedBytes};
}

cudaError_t allow_shared(const Variant& chosen) {
  return cudaFuncSetAttribute(chosen.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(chosen.shared_bytes));
}

}  // namespace

int64_t worker_shared_bytes(int element) { return variant(element).shared_bytes; }

cudaError_t worker_blocks(int element, int* blocks) {
  const Variant chosen = variant(element);
  int device = 0, processors = 0, per_processor = 0;
  cudaError_t error = allow_shared(chosen);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, chosen.kernel, kThreads, chosen.shared_bytes);
  *blocks = processors * per_processor;
  return error == cudaSuccess && *blocks == 0 ? cudaErrorLaunchOutOfResources : error;
}

cudaError_t launch_worker(const WorkerArgs& args, int element, int blocks, cudaStream_t stream) {
  const Variant chosen = variant(element);
  const cudaError_t error = allow_shared(chosen);
  if (error != cudaSuccess) return error;
  chosen.kernel<<<blocks, kThreads, chosen.shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace ape::cuda
