// Traits of AVX-512, with and without bf16 instructions.
#pragma once

namespace ape::cpu {
namespace {

// 12 x 2 sums, 2 weights and the broadcast from memory: 26 of 32 registers.
struct Avx512 {
  static constexpr int kWidth = 16, kVectors = 2, kPixels = 12;
};

}  // namespace
}  // namespace ape::cpu
