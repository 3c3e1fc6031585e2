// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace ape::cpu {

// Names of the instruction sets that this build has kernels for and that this CPU can run, the best first. amx and
// avx512bf16 differ from avx512 only in their bf16 convolutions.
std::vector<std::string> isas();

// The instruction set in use: the one that the environment variable APE_CPU_ISA names, else the best one.
// Throws std::invalid_argument when the variable names one that cannot run.
std::string isa();

// Kernels of `isa()`.
const Kernels& kernels();

}  // namespace ape::cpu
