// Traits of AVX-512, with or without bf16 instructions.
#pragma once

namespace ape::cpu {
namespace {

// 12 x 2 sums and 2 weights take 26 of 32 registers. The broadcast comes from memory.
struct Avx512 {
  static constexpr int kWidth = 16, kVectors = 2, kPixels = 12;
};

}  // namespace
}  // namespace ape::cpu
