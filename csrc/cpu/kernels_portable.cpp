#include "kernel_set.h"

namespace ape::cpu {
namespace {

// Every x86-64 (SSE2) and every 64-bit Arm (NEON) has vectors of four floats. 2 x 4 sums, 4 weights and 1 broadcast
// take 13 of 16 registers.
struct Portable {
  static constexpr int kWidth = 4, kVectors = 4, kPixels = 2;
};

}  // namespace

const Kernels portable_kernels = kernel_set<Portable>();

}  // namespace ape::cpu
