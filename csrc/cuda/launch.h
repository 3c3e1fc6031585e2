#pragma once

#include <cuda_runtime_api.h>

#include "args.h"

namespace ape::cuda {

// How many thread blocks of the worker kernel the current device runs at once.
cudaError_t worker_blocks(int element, int* blocks);

// One launch of `blocks` thread blocks on `stream`, which it never waits for; pointers and shapes as WorkerArgs says.
// May be captured in a CUDA graph.
cudaError_t launch_worker(const WorkerArgs& args, int element, int blocks, cudaStream_t stream);

}  // namespace ape::cuda
