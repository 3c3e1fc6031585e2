#include "launch.h"
#include "plan.h"
#include "worker.h"

namespace ape::cuda {
namespace {

// Whether a device of compute capability `arch` (80, 120, ...) has 163 KB of shared memory a block or more.
constexpr bool has_large_shared(int arch) { return arch == 80 || arch == 87 || arch / 10 == 9 || arch / 10 == 10; }

#ifdef __CUDA_ARCH__
using Shapes = std::conditional_t<has_large_shared(__CUDA_ARCH__ / 10), LargeShapes, SmallShapes>;
#else
using Shapes = SmallShapes;
#endif

// Grid: as many blocks as run at once, or as patches. Block: 8 warps. One block a multiprocessor by its shared memory.
template <class E>
__global__ void __launch_bounds__(kThreads, 1) worker_kernel(const __grid_constant__ WorkerArgs args) {
  extern __shared__ __align__(128) char shared[];
  Warp warp = Warp::current(shared);
  Worker<E, Shapes> worker(warp, args);
  worker.run();
}

using Kernel = void (*)(WorkerArgs);

Kernel kernel_of(int element) { return element == kHalfElements ? worker_kernel<Half> : worker_kernel<Float>; }

// The kernel was compiled for an architecture; its shapes, and so its shared memory, follow from that.
cudaError_t prepare(int element, uint32_t* shared_bytes) {
  const Kernel kernel = kernel_of(element);
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  *shared_bytes = element != kHalfElements                  ? Worker<Float, SmallShapes>::kSharedBytes
                  : has_large_shared(attributes.ptxVersion) ? Worker<Half, LargeShapes>::kSharedBytes
                                                            : Worker<Half, SmallShapes>::kSharedBytes;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(*shared_bytes));
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
  return error == cudaSuccess && *blocks == 0 ? cudaErrorLaunchOutOfResources : error;
}

cudaError_t launch_worker(const WorkerArgs& args, int element, int blocks, cudaStream_t stream) {
  uint32_t shared_bytes = 0;
  const cudaError_t error = prepare(element, &shared_bytes);
  if (error != cudaSuccess) return error;
  kernel_of(element)<<<blocks, kThreads, shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace ape::cuda
