// Vectors of floats, one source for every instruction set.
//
// This header and those built on it are included by one .cpp file an instruction set, each compiled for it; everything
// is in an unnamed namespace and uses no library templates, so that no code compiled for a newer CPU can be linked into
// a path that runs on an older one.
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
  typedef bf16 Half __attribute__((vector_size(WIDTH * sizeof(bf16))));
  typedef float Unaligned __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));
  typedef bf16 UnalignedHalf __attribute__((vector_size(WIDTH * sizeof(bf16)), aligned(sizeof(bf16)), may_alias));
};

template <int WIDTH>
struct Simd {
  static_assert(LANES % WIDTH == 0, "groups are whole vectors");
  static constexpr int PER_GROUP = LANES / WIDTH;

  using Vector = typename VectorTypes<WIDTH>::Vector;
  using Bits = typename VectorTypes<WIDTH>::Bits;
  using Half = typename VectorTypes<WIDTH>::Half;
  using Unaligned = typename VectorTypes<WIDTH>::Unaligned;
  using UnalignedHalf = typename VectorTypes<WIDTH>::UnalignedHalf;

  static APE_INLINE Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static APE_INLINE void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

  static APE_INLINE Vector load_half(const bf16* p) {
    const Half half = *reinterpret_cast<const UnalignedHalf*>(p);
    return (Vector)(__builtin_convertvector(half, Bits) << 16);
  }

  static APE_INLINE void copy_half(bf16* to, const bf16* from) {
    *reinterpret_cast<UnalignedHalf*>(to) = *reinterpret_cast<const UnalignedHalf*>(from);
  }

  // To bf16, to nearest, ties to even. Finite values only.
  static APE_INLINE void store_half(bf16* p, Vector v) {
#ifdef __AVX512BF16__
    if constexpr (WIDTH == 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
      return;
    }
#endif
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    *reinterpret_cast<UnalignedHalf*>(p) = __builtin_convertvector(rounded, Half);
  }

  // Where one pixel's output channels, from `channel` on, are added from and stored to.
  struct Cursor {
    const float* add;
    float* pixels;
    bf16* half;

    Cursor(const ConvArgs& a, int y, int x, int channel)
        : add(a.add.pixels ? a.add.pixels + y * a.add.row + x * a.add.pixel + channel : nullptr),
          pixels(a.dst.pixels ? a.dst.pixels + y * a.dst.row + x * a.dst.pixel + channel : nullptr),
          half(a.dst.half
                   ? a.dst.half + channel / CHUNK * a.dst.half_plane + y * a.dst.half_row + x * CHUNK + channel % CHUNK
                   : nullptr) {}
  };

  // What ends every convolution: activation, scale, addition, and the result as floats, bf16, or both. The pixel is
  // `right` pixels right of the cursor.
  static APE_INLINE void finish(const ConvArgs& a, const Cursor& to, int right, int channel, Vector v) {
    if (a.slope) v = v < 0 ? v * load(a.slope + channel) : v;
    v = v * a.scale;
    if (to.add) v += load(to.add + right * a.add.pixel);
    if (to.pixels) store(to.pixels + right * a.dst.pixel, v);
    if (to.half) store_half(to.half + right * CHUNK, v);
  }
};

}  // namespace
}  // namespace ape::cpu
