#pragma once

#include <cuda_runtime_api.h>

#include "image.h"

namespace ape::cuda {

// How many thread blocks of the worker kernel the current device runs at once. cudaErrorNoKernelImageForDevice where
// what was compiled needs more shared memory than the device has.
cudaError_t worker_blocks(int element, int* blocks);

// One launch of `blocks` thread blocks on `stream` of the current device, which it never waits for; none for no
// patches. Pointers and shapes as WorkerArgs says. May be captured in a CUDA graph.
cudaError_t launch_worker(const WorkerArgs& args, int element, int blocks, cudaStream_t stream);

// The launches of a call for whole images, on `stream` of the current device, which it never waits for. May be captured
// in a CUDA graph. Throws std::invalid_argument as `image_launches` does.
cudaError_t launch_images(const ImageRequest& request, cudaStream_t stream);

}  // namespace ape::cuda
