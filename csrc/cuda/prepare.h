// What every launch does: its kernel's shapes, what it asks of the runtime first, and the launch.
#pragma once

#include "launch.h"
#include "worker.h"

namespace ape::cuda {

// The shapes for the architecture that is compiled for. On the host, where no kernel runs, any will do.
#ifdef __CUDA_ARCH__
using Shapes = ShapesOf<shared_kb_of(__CUDA_ARCH__ / 10)>;
#else
using Shapes = Shapes99;
#endif

// What went wrong is reported once, to who asked: the runtime would tell the next caller as well.
inline cudaError_t reported(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// What is known of a kernel on the current device.
struct Prepared {
  int arch;               // compute capability that it was compiled for
  uint32_t shared_bytes;  // of a block
  int processors;         // of the device
};

// The kernel was compiled for an architecture; its shapes, and so its shared memory, follow from that. Binaries of
// sm_80 also run on sm_86 and sm_89, where there is too little of it: cudaErrorNoKernelImageForDevice.
inline cudaError_t prepare(const void* kernel, bool half, uint32_t (*shared_bytes_of)(bool, int), Prepared* prepared) {
  cudaFuncAttributes attributes;
  int device = 0, most = 0, processors = 0;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return reported(error);
  *prepared = {attributes.ptxVersion, shared_bytes_of(half, attributes.ptxVersion), processors};
  if (prepared->shared_bytes > static_cast<uint32_t>(most)) return cudaErrorNoKernelImageForDevice;
  return reported(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(prepared->shared_bytes)));
}

// One launch of `blocks` thread blocks on `stream`.
template <class Args>
cudaError_t launch(void (*kernel)(Args), const Args& args, int64_t blocks, uint32_t shared_bytes, cudaStream_t stream) {
  void* parameters[] = {const_cast<Args*>(&args)};
  return reported(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(kThreads),
                                   parameters, shared_bytes, stream));
}

}  // namespace ape::cuda
