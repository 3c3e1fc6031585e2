// Direct convolution, one source for every instruction set.
//
// Included by one .cpp file an instruction set, each compiled for it; everything here is in an
// unnamed namespace and uses no library templates, so that no code compiled for a newer CPU can be
// linked into a path that runs on an older one.
//
// A tile is PIXELS pixels of a row x VECTORS vectors of output channels, kept in registers over all
// taps and input channels: per input channel VECTORS weight loads and PIXELS broadcasts feed
// PIXELS * VECTORS multiply-adds.
#pragma once

#include "kernels.h"

namespace ape::cpu {
namespace {

// Traits: WIDTH floats a vector, VECTORS vectors a tile (at most), PIXELS pixels a tile (at most).
template <class Traits>
struct Conv {
  typedef float Vector __attribute__((vector_size(Traits::WIDTH * sizeof(float))));
  typedef float Unaligned
      __attribute__((vector_size(Traits::WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));
  static constexpr int PER_GROUP = LANES / Traits::WIDTH;  // vectors in a group of output channels
  static_assert(LANES % Traits::WIDTH == 0 && Traits::VECTORS % PER_GROUP == 0, "tiles cover whole groups");

  static Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

  template <int PIXELS, int VECTORS>
  static void tile(const ConvArgs& a, int y, int x, int group) {
    const int radius = a.kernel / 2;
    const int64_t group_stride = int64_t(a.kernel) * a.kernel * a.in_channels * LANES;
    const float* weight = a.weight + group * group_stride;
    Vector sum[PIXELS][VECTORS];
#pragma GCC unroll 16
    for (int j = 0; j < VECTORS; j++) {
      const Vector bias = load(a.bias + group * LANES + j * Traits::WIDTH);
#pragma GCC unroll 16
      for (int i = 0; i < PIXELS; i++) sum[i][j] = bias;
    }
    for (int ky = 0; ky < a.kernel; ky++) {
      for (int kx = 0; kx < a.kernel; kx++) {
        for (int s = 0; s < a.source_count; s++) {
          const ConvArgs::Source& source = a.sources[s];
          const float* src = source.pixels + (y + ky - radius) * source.row + (x + kx - radius) * source.pixel;
          for (int c = 0; c < source.channels; c++) {
            Vector w[VECTORS];
#pragma GCC unroll 16
            for (int j = 0; j < VECTORS; j++)
              w[j] = load(weight + j / PER_GROUP * group_stride + j % PER_GROUP * Traits::WIDTH);
            weight += LANES;
#pragma GCC unroll 16
            for (int i = 0; i < PIXELS; i++) {
              const float value = src[i * source.pixel + c];
#pragma GCC unroll 16
              for (int j = 0; j < VECTORS; j++) sum[i][j] += value * w[j];
            }
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) {
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; j++) {
        const int channel = group * LANES + j * Traits::WIDTH;
        Vector v = sum[i][j];
        if (a.slope) v = v < 0 ? v * load(a.slope + channel) : v;
        v = v * a.scale;
        if (a.add) v += load(a.add + y * a.add_row + (x + i) * a.add_pixel + channel);
        store(a.dst + y * a.dst_row + (x + i) * a.dst_pixel + channel, v);
      }
    }
  }

  // All output channels of PIXELS pixels from x on.
  template <int PIXELS>
  static void column(const ConvArgs& a, int y, int x, int first_group, int groups) {
    if (groups * PER_GROUP == Traits::VECTORS)
      tile<PIXELS, Traits::VECTORS>(a, y, x, first_group);
    else
      tile<PIXELS, PER_GROUP>(a, y, x, first_group);
  }

  static void span(const ConvArgs& a, int y, int begin, int end) {
    constexpr int GROUPS = Traits::VECTORS / PER_GROUP;
    constexpr int HALF = Traits::PIXELS > 3 ? Traits::PIXELS / 3 : 1;
    for (int group = 0; group < a.groups;) {
      const int groups = a.groups - group >= GROUPS ? GROUPS : 1;
      int x = begin;
      for (; x + Traits::PIXELS <= end; x += Traits::PIXELS) column<Traits::PIXELS>(a, y, x, group, groups);
      for (; x + HALF <= end; x += HALF) column<HALF>(a, y, x, group, groups);
      for (; x < end; x++) column<1>(a, y, x, group, groups);
      group += groups;
    }
  }
};

}  // namespace
}  // namespace ape::cpu
