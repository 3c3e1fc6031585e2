// Kernels that read every value of a map once.
#pragma once

#include "simd.h"

namespace ape::cpu {
namespace {

template <class Traits>
struct Pointwise {
  using S = Simd<Traits::kWidth>;
  using Vector = typename S::Vector;

  static void round(const FeatureMap& map) {
    for (int y = 0; y < map.height; y++)
      for (int x = 0; x < map.width; x++)
        for (int c = 0; c < map.pixel; c += Traits::kWidth)
          S::store_bf16(bf16_at(map, y, x, c), S::load(floats_at(map, y, x, c)));
  }

  // A row is summed in float, and the sums of the rows in double. Four groups of channels at a time stay in registers.
  // Each reads one cache line per pixel, and there are enough independent sums (4 with AVX-512) that an addition does
  // not wait for the one before it.
  static void channel_sums(const FeatureMap& map, double* sums) {
    int group = 0;
    for (; group + 4 * kGroup <= map.pixel; group += 4 * kGroup) sum_groups<4>(map, group, sums + group);
    for (; group < map.pixel; group += kGroup) sum_groups<1>(map, group, sums + group);
  }

  // The channels of a pixel from `c` on. It reads the floats if the map has them, else the bf16.
  static APE_INLINE Vector value(const FeatureMap& map, int y, int x, int c) {
    return map.pixels ? S::load(floats_at(map, y, x, c)) : S::load_bf16(bf16_at(map, y, x, c));
  }

  template <int GROUPS>
  static void sum_groups(const FeatureMap& map, int first, double* sums) {
    constexpr int kVectors = GROUPS * S::kPerGroup;
    for (int c = 0; c < GROUPS * kGroup; c++) sums[c] = 0.0;
    for (int y = 0; y < map.height; y++) {
      Vector row[kVectors] = {};
      for (int x = 0; x < map.width; x++)
#pragma GCC unroll 16
        for (int j = 0; j < kVectors; j++) row[j] += value(map, y, x, first + j * Traits::kWidth);
      float line[GROUPS * kGroup];
      for (int j = 0; j < kVectors; j++) S::store(line + j * Traits::kWidth, row[j]);
      for (int c = 0; c < GROUPS * kGroup; c++) sums[c] += line[c];
    }
  }

  static void gate(const FeatureMap& src, const float* gate, const FeatureMap& add, const FeatureMap& dst) {
    for (int y = 0; y < src.height; y++) {
      for (int x = 0; x < src.width; x++) {
        const float* from = floats_at(src, y, x, 0);
        float* to = floats_at(dst, y, x, 0);
        const float* plus = add.pixels ? floats_at(add, y, x, 0) : nullptr;
        for (int c = 0; c < src.pixel; c += Traits::kWidth) {
          Vector v = S::load(from + c) * S::load(gate + c);
          if (plus) v += S::load(plus + c);
          S::store(to + c, v);
        }
      }
    }
  }

  static void blend(const float* const* lines, const float* weights, int64_t count, float* out) {
    const float *a = lines[0], *b = lines[1], *c = lines[2], *d = lines[3];
    int64_t i = 0;
    for (; i + Traits::kWidth <= count; i += Traits::kWidth)
      S::store(out + i, weights[0] * S::load(a + i) + weights[1] * S::load(b + i) + weights[2] * S::load(c + i) +
                            weights[3] * S::load(d + i));
    for (; i < count; i++) out[i] = weights[0] * a[i] + weights[1] * b[i] + weights[2] * c[i] + weights[3] * d[i];
  }
};

}  // namespace
}  // namespace ape::cpu
