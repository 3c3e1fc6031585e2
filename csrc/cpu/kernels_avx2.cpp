#include "kernel_set.h"

namespace ape::cpu {
namespace {

// 6 x 2 sums, 2 weights and 1 broadcast take 15 of 16 registers.
struct Avx2 {
  static constexpr int kWidth = 8, kVectors = 2, kPixels = 6;
};

}  // namespace

const Kernels avx2_kernels = kernel_set<Avx2>();

}  // namespace ape::cpu
