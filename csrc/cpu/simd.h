// Vectors of floats, for all instruction sets.
//
// Each instruction set has a .cpp file that includes this header and those that build on it, and that is compiled for
// this instruction set. Everything is in an unnamed namespace and uses no templates of the standard library. So the
// linker cannot use code that was compiled for a newer CPU in a path that runs on an older one.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "kernels.h"

#define APE_INLINE inline __attribute__((always_inline))

namespace ape::cpu {
namespace {

template <int WIDTH>
struct VectorTypes {
  typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));
  typedef uint32_t Bits __attribute__((vector_size(WIDTH * sizeof(float))));
  typedef bf16 Bf16s __attribute__((vector_size(WIDTH * sizeof(bf16))));
  typedef float Unaligned __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));
  typedef bf16 UnalignedBf16s __attribute__((vector_size(WIDTH * sizeof(bf16)), aligned(sizeof(bf16)), may_alias));
};

// Where the channels of a pixel from `channel` on begin, in the floats and in the bf16 of a map.
APE_INLINE float* floats_at(const FeatureMap& map, int y, int x, int channel) {
  return map.pixels + y * map.row + x * map.pixel + channel;
}
APE_INLINE bf16* bf16_at(const FeatureMap& map, int y, int x, int channel) {
  return map.rounded + channel / kSlice * map.rounded_slice + y * map.rounded_row + x * kSlice + channel % kSlice;
}

template <int WIDTH>
struct Simd {
  static_assert(kGroup % WIDTH == 0, "groups are whole vectors");
  static constexpr int kPerGroup = kGroup / WIDTH;

  using Vector = typename VectorTypes<WIDTH>::Vector;
  using Bits = typename VectorTypes<WIDTH>::Bits;
  using Bf16s = typename VectorTypes<WIDTH>::Bf16s;
  using Unaligned = typename VectorTypes<WIDTH>::Unaligned;
  using UnalignedBf16s = typename VectorTypes<WIDTH>::UnalignedBf16s;

  static APE_INLINE Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static APE_INLINE void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

  static APE_INLINE Vector load_bf16(const bf16* p) {
    const Bf16s values = *reinterpret_cast<const UnalignedBf16s*>(p);
    return (Vector)(__builtin_convertvector(values, Bits) << 16);
  }

  static APE_INLINE void copy_bf16(bf16* to, const bf16* from) {
    *reinterpret_cast<UnalignedBf16s*>(to) = *reinterpret_cast<const UnalignedBf16s*>(from);
  }

  // Rounds to the nearest bf16, ties to even, and stores. For finite values only.
  static APE_INLINE void store_bf16(bf16* p, Vector v) {
#ifdef __AVX512BF16__
    if constexpr (WIDTH == 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
      return;
    }
#endif
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    *reinterpret_cast<UnalignedBf16s*>(p) = __builtin_convertvector(rounded, Bf16s);
  }

  // Where the output channels of one pixel, from `channel` on, are stored, and where the values that are added stand.
  struct Cursor {
    const float* add;
    float* pixels;
    bf16* rounded;

    Cursor(const ConvArgs& a, int y, int x, int channel)
        : add(a.add.pixels ? floats_at(a.add, y, x, channel) : nullptr),
          pixels(a.dst.pixels ? floats_at(a.dst, y, x, channel) : nullptr),
          rounded(a.dst.rounded ? bf16_at(a.dst, y, x, channel) : nullptr) {}
  };

  // The epilogue of every convolution: activation, scale, addition, and storing the result as floats, bf16, or both.
  // The pixel is `right` pixels to the right of the cursor.
  static APE_INLINE void finish(const ConvArgs& a, const Cursor& to, int right, int channel, Vector v) {
    if (a.slope) v = v < 0 ? v * load(a.slope + channel) : v;
    v = v * a.scale;
    if (to.add) v += load(to.add + right * a.add.pixel);
    if (to.pixels) store(to.pixels + right * a.dst.pixel, v);
    if (to.rounded) store_bf16(to.rounded + right * kSlice, v);
  }
};

}  // namespace
}  // namespace ape::cpu
