#pragma once

#include <cuda_runtime_api.h>

#include "../patches.h"

namespace ape {

// Split and merge of element type `dtype` on `stream`, which they never wait for. All pointers are device memory of the
// stream's device.
cudaError_t launch_split(const SplitArgs& args, int dtype, cudaStream_t stream);
cudaError_t launch_merge(const MergeArgs& args, int dtype, cudaStream_t stream);

}  // namespace ape
