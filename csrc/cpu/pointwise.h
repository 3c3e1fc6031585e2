// Steps that touch every value of a map once.
#pragma once

#include "simd.h"

namespace ape::cpu {
namespace {

template <class Traits>
struct Pointwise {
  using S = Simd<Traits::WIDTH>;
  using Vector = typename S::Vector;

  static void round(const FeatureMap& map) {
    for (int y = 0; y < map.height; y++)
      for (int x = 0; x < map.width; x++)
        for (int c = 0; c < map.pixel; c += Traits::WIDTH)
          S::store_half(map.half + c / CHUNK * map.half_plane + y * map.half_row + x * CHUNK + c % CHUNK,
                        S::load(map.pixels + y * map.row + x * map.pixel + c));
  }

  // A row is summed in float, the rows' sums in double. Four groups of channels at a time stay in registers: a line of
  // memory each, and sums enough (4 with AVX-512) that an addition need not wait for the one before.
  static void channel_sums(const FeatureMap& map, double* sums) {
    int group = 0;
    for (; group + 4 * LANES <= map.pixel; group += 4 * LANES) sum_groups<4>(map, group, sums + group);
    for (; group < map.pixel; group += LANES) sum_groups<1>(map, group, sums + group);
  }

  // Channels from `c` on of a pixel, from the floats where there are any.
  static APE_INLINE Vector value(const FeatureMap& map, int y, int x, int c) {
    if (map.pixels) return S::load(map.pixels + y * map.row + x * map.pixel + c);
    return S::load_half(map.half + c / CHUNK * map.half_plane + y * map.half_row + x * CHUNK + c % CHUNK);
  }

  template <int GROUPS>
  static void sum_groups(const FeatureMap& map, int first, double* sums) {
    constexpr int VECTORS = GROUPS * S::PER_GROUP;
    for (int c = 0; c < GROUPS * LANES; c++) sums[c] = 0.0;
    for (int y = 0; y < map.height; y++) {
      Vector row[VECTORS] = {};
      for (int x = 0; x < map.width; x++)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; j++) row[j] += value(map, y, x, first + j * Traits::WIDTH);
      float line[GROUPS * LANES];
      for (int j = 0; j < VECTORS; j++) S::store(line + j * Traits::WIDTH, row[j]);
      for (int c = 0; c < GROUPS * LANES; c++) sums[c] += line[c];
    }
  }

  static void gate(const FeatureMap& src, const float* gate, const FeatureMap& add, const FeatureMap& dst) {
    for (int y = 0; y < src.height; y++) {
      for (int x = 0; x < src.width; x++) {
        const float* from = src.pixels + y * src.row + x * src.pixel;
        float* to = dst.pixels + y * dst.row + x * dst.pixel;
        const float* plus = add.pixels ? add.pixels + y * add.row + x * add.pixel : nullptr;
        for (int c = 0; c < src.pixel; c += Traits::WIDTH) {
          Vector v = S::load(from + c) * S::load(gate + c);
          if (plus) v += S::load(plus + c);
          S::store(to + c, v);
        }
      }
    }
  }
};

}  // namespace
}  // namespace ape::cpu
