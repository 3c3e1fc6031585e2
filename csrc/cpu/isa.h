// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace ape::cpu {

// Names of the instruction sets that this build has kernels for and this CPU can run, best first: amx and
// avx512bf16 differ from avx512 in their bf16 convolutions alone.
std::vector<std::string> isas();

// The one in use: the environment variable APE_CPU_ISA, else the best.
// Throws std::invalid_argument when the variable names one that cannot run.
std::string isa();

// Kernels of `isa()`.
const Kernels& kernels();

}  // namespace ape::cpu
