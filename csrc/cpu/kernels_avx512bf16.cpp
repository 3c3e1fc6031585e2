#include "avx512.h"
#include "kernel_set.h"

namespace ape::cpu {

const Kernels avx512bf16_kernels = kernel_set<Avx512>();

}  // namespace ape::cpu
