#pragma once

#include "../patches.h"

namespace ape {

// Split and merge of float32 images on up to `threads` threads. The result does not depend on the number of threads.
void cpu_split(const SplitArgs& args, int threads);
void cpu_merge(const MergeArgs& args, int threads);

}  // namespace ape
