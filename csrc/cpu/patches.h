#pragma once

#include "../patches.h"

namespace ape {

// Split and merge of float32 on up to `threads` threads; the result does not depend on their number.
void cpu_split(const SplitArgs& args, int threads);
void cpu_merge(const MergeArgs& args, int threads);

}  // namespace ape
