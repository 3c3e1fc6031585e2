// Direct convolution, and the register tile of sums that the Winograd products use as well.
//
// A tile is kPixels pixels x kVectors vectors of output channels. Its sums stay in registers over all taps and input
// channels. Each input channel takes kVectors weight loads and kPixels broadcasts for kPixels * kVectors multiply-adds.
// With two loads and two multiply-adds per cycle, a tile of 12 x 2 (AVX-512) needs 7 cycles of loads per 12 cycles of
// arithmetic.
#pragma once

#include "simd.h"

namespace ape::cpu {
namespace {

// A word is one input channel of a pixel, as a float; so are its weights.
template <class Traits>
struct Floats {
  using S = Simd<Traits::kWidth>;
  using Vector = typename S::Vector;
  using Word = float;

  static int slices(const FeatureMap&) { return 1; }
  static int words(const FeatureMap& map) { return map.channels; }
  static const float* at(const FeatureMap& map, int, int y, int x) { return floats_at(map, y, x, 0); }
  static int64_t stride(const FeatureMap& map, bool down) { return down ? map.row : map.pixel; }
  static APE_INLINE Vector multiply_add(Vector sum, float value, Vector weight) { return sum + value * weight; }
};

// A word is two input channels of a pixel, as bf16 in 32 bits; so are their weights. Products are added in float32.
template <class Traits>
struct Bf16Words {
  using S = Simd<Traits::kWidth>;
  using Vector = typename S::Vector;
  typedef uint32_t Word __attribute__((may_alias));

  static int slices(const FeatureMap& map) { return cpu::slices(map.channels); }
  static int words(const FeatureMap&) { return kSlice / 2; }
  static const Word* at(const FeatureMap& map, int slice, int y, int x) {
    return reinterpret_cast<const Word*>(bf16_at(map, y, x, slice * kSlice));
  }
  static int64_t stride(const FeatureMap& map, bool down) { return (down ? map.rounded_row : kSlice) / 2; }
  static APE_INLINE Vector multiply_add(Vector sum, uint32_t value, Vector weight) {
#ifdef __AVX512BF16__
    if constexpr (Traits::kWidth == 16)
      return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(value)), (__m512bh)weight);
#endif
    using Bits = typename S::Bits;
    const Bits both = Bits{} + value, weights = (Bits)weight;
    sum += (Vector)(both << 16) * (Vector)(weights << 16);
    return sum + (Vector)(both & 0xffff0000u) * (Vector)(weights & 0xffff0000u);
  }
};

// Traits: kWidth floats per vector, at most kVectors vectors and kPixels pixels per tile.
template <class Traits, template <class> class Element>
struct Conv {
  using S = Simd<Traits::kWidth>;
  using E = Element<Traits>;
  using Vector = typename S::Vector;
  using Word = typename E::Word;
  static_assert(Traits::kVectors % S::kPerGroup == 0, "tiles cover whole groups");
  static constexpr int kColours = 3;  // channels of a picture

  // sum[i][j] += src[i * stride] * weight of vector j. weight: [kGroup]; the next group's weights are `group_size`
  // further.
  template <int PIXELS, int VECTORS>
  static APE_INLINE void accumulate_word(Vector (&sum)[PIXELS][VECTORS], const Word* src, int64_t stride,
                                         const float* weight, int64_t group_size) {
    Vector w[VECTORS];
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; j++)
      w[j] = S::load(weight + j / S::kPerGroup * group_size + j % S::kPerGroup * Traits::kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) {
      const auto value = src[i * stride];
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; j++) sum[i][j] = E::multiply_add(sum[i][j], value, w[j]);
    }
  }

  // The same for `words` input words. weight: [words][kGroup].
  template <int PIXELS, int VECTORS>
  static APE_INLINE void accumulate(Vector (&sum)[PIXELS][VECTORS], const Word* src, int64_t stride, int words,
                                    const float* weight, int64_t group_size) {
#pragma GCC unroll 2
    for (int c = 0; c < words; c++) accumulate_word(sum, src + c, stride, weight + c * kGroup, group_size);
  }

  // PIXELS pixels from (y, x) on, to the right or downward. Taps in rows outside the map would multiply zeros and are
  // left out; downward, taps in columns outside the map.
  template <int PIXELS, int VECTORS>
  static void tile(const ConvArgs& a, int y, int x, bool down, int group) {
    const int radius = a.kernel / 2;
    const float* weight = a.weight + group * a.group_size;
    Vector sum[PIXELS][VECTORS];
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; j++) {
      const Vector bias = S::load(a.bias + group * kGroup + j * Traits::kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < PIXELS; i++) sum[i][j] = bias;
    }
    for (int s = 0; s < a.source_count; s++) {
      const FeatureMap& map = a.sources[s];
      const int words = E::words(map);
      for (int slice = 0; slice < E::slices(map); slice++) {
        for (int ky = y - radius; ky <= y + radius; ky++) {
          for (int kx = x - radius; kx <= x + radius; kx++, weight += words * kGroup) {
            if (down ? kx < 0 || kx >= map.width : ky < 0 || ky >= map.height) continue;
            const Word* src = E::at(map, slice, ky, kx);
            const int64_t stride = E::stride(map, down);
            if (words != kColours) {
              accumulate(sum, src, stride, words, weight, a.group_size);
              continue;
            }
#pragma GCC unroll 3
            for (int c = 0; c < kColours; c++)  // unrolled completely
              accumulate_word(sum, src + c, stride, weight + c * kGroup, a.group_size);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++)
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; j++) {
        const int channel = group * kGroup + j * Traits::kWidth;
        S::finish(a, typename S::Cursor(a, down ? y + i : y, down ? x : x + i, channel), 0, channel, sum[i][j]);
      }
  }

  template <int PIXELS>
  static void groups(const ConvArgs& a, int y, int x, bool down, int group, int count) {
    if (count * S::kPerGroup == Traits::kVectors)
      tile<PIXELS, Traits::kVectors>(a, y, x, down, group);
    else
      tile<PIXELS, S::kPerGroup>(a, y, x, down, group);
  }

  // Line by line. The lines are rows, or one column if the area is one pixel wide.
  static void area(const ConvArgs& a, const Area& area) {
    constexpr int kGroups = Traits::kVectors / S::kPerGroup;
    constexpr int kPixels = Traits::kPixels, kSome = kPixels > 3 ? kPixels / 3 : 1;
    const bool down = area.width == 1;
    const int lines = down ? 1 : area.height, length = down ? area.height : area.width;
    for (int line = 0; line < lines; line++) {
      for (int group = 0; group < a.groups;) {
        const int count = a.groups - group >= kGroups ? kGroups : 1;
        const auto y = [&](int i) { return area.y + (down ? i : line); };
        const auto x = [&](int i) { return area.x + (down ? 0 : i); };
        int i = 0;
        for (; i + kPixels <= length; i += kPixels) groups<kPixels>(a, y(i), x(i), down, group, count);
        for (; i + kSome <= length; i += kSome) groups<kSome>(a, y(i), x(i), down, group, count);
        for (; i < length; i++) groups<1>(a, y(i), x(i), down, group, count);
        group += count;
      }
    }
  }
};

}  // namespace
}  // namespace ape::cpu
