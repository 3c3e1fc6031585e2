// Winograd convolution (Lavin and Gray 2016). F(4x4, 3x3) takes 2.25 multiplications per pixel, input channel and
// output channel instead of 9; F(2x2, 5x5) takes 9 instead of 25. Both read 6x6 pixels per tile and use the points 0,
// 1, -1, 1/2, -2 and infinity. With 1/2 in place of the customary 2 the rounding error is half as large, and all
// constants of the transforms are exact.
//
//   V = B' d B (36 values per tile and input channel),  M = sum over input channels of U V,  out = A' M A
//
// The weights U = G g G' are computed when a program is packed.
#pragma once

#include "conv_tile.h"

namespace ape::cpu {
namespace {

template <class Traits>
struct Winograd {
  using S = Simd<Traits::kWidth>;
  using Vector = typename S::Vector;
  using Products = Conv<Traits, Floats>;
  static constexpr int kGroups = Traits::kVectors / S::kPerGroup;
  static_assert(kBlockTiles % Traits::kPixels == 0, "a block is whole register tiles");

  // d = B' d
  static APE_INLINE void input_axis(Vector (&d)[6]) {
    const Vector t = d[4] - d[2], u = d[3] - d[1];
    const Vector one = (t + u) + 1.5f * (d[2] + d[3]);
    const Vector minus_one = (t - u) + 1.5f * (d[3] - d[2]);
    d[0] = (d[0] - d[2]) + (t + 1.5f * u);
    d[5] = (d[5] - d[3]) + (1.5f * t - u);
    d[1] = one;
    d[2] = minus_one;
    d[3] = t + 2.0f * u;
    d[4] = t - 0.5f * u;
  }

  // out = A' m. OUT is 4 or 2.
  template <int OUT>
  static APE_INLINE void output_axis(const Vector (&m)[6], Vector (&out)[OUT]) {
    const Vector even = m[1] + m[2], odd = m[1] - m[2];
    out[0] = (m[0] + even) + (m[3] + m[4]);
    out[1] = odd + 0.5f * m[3] - 2.0f * m[4];
    if constexpr (OUT == 2) {
      out[1] += m[5];
    } else {
      out[2] = even + 0.25f * m[3] + 4.0f * m[4];
      out[3] = odd + 0.125f * m[3] - 8.0f * m[4] + m[5];
    }
  }

  // 6x6 pixels from `src` on, all channels, to V at `to`: 36 planes `plane` floats apart. PARTIAL: of the pixels,
  // `rows` and `columns` count, and the others are taken as zero.
  template <bool PARTIAL>
  static void input_tile(const FeatureMap& map, const float* src, float* to, int64_t plane, int rows, int columns) {
    for (int c = 0; c < map.channels; c += Traits::kWidth) {
      Vector z[6][6];
      const float* column = src + c;
#pragma GCC unroll 6
      for (int x = 0; x < 6; x++, column += map.pixel) {
        Vector d[6];
#pragma GCC unroll 6
        for (int y = 0; y < 6; y++) {
          if (PARTIAL && (y >= rows || x >= columns))
            d[y] = Vector{};
          else
            d[y] = S::load(column + y * map.row);
        }
        input_axis(d);
#pragma GCC unroll 6
        for (int y = 0; y < 6; y++) z[y][x] = d[y];
      }
      float* out = to + c;
#pragma GCC unroll 6
      for (int y = 0; y < 6; y++) {
        input_axis(z[y]);
#pragma GCC unroll 6
        for (int x = 0; x < 6; x++, out += plane) S::store(out, z[y][x]);
      }
    }
  }

  // M of one tile and vector, at `from`, to the tile's pixels that lie in the area.
  template <int OUT>
  static APE_INLINE void output_tile(const ConvArgs& a, const Area& area, const float* from, int64_t plane, int y0,
                                     int x0, int channel) {
    Vector z[OUT][6];
#pragma GCC unroll 6
    for (int x = 0; x < 6; x++, from += plane) {
      Vector m[6], out[OUT];
#pragma GCC unroll 6
      for (int y = 0; y < 6; y++) m[y] = S::load(from + y * 6 * plane);
      output_axis<OUT>(m, out);
#pragma GCC unroll 4
      for (int y = 0; y < OUT; y++) z[y][x] = out[y];
    }
    const Vector bias = S::load(a.bias + channel);
    const int width = area.right() - x0 < OUT ? area.right() - x0 : OUT;
#pragma GCC unroll 4
    for (int y = 0; y < OUT; y++) {
      if (y0 + y >= area.bottom()) break;
      Vector out[OUT];
      output_axis<OUT>(z[y], out);
      const typename S::Cursor to(a, y0 + y, x0, channel);
#pragma GCC unroll 4
      for (int x = 0; x < OUT; x++)
        if (x < width) S::finish(a, to, x, channel, out[x] + bias);
    }
  }

  // Multiplies all 36 planes, for VECTORS vectors of output channels from `group` on. v: [36][tiles][stride],
  // m: [36][tiles][2 * kGroup].
  template <int VECTORS>
  static void multiply(const ConvArgs& a, int group, const float* v, float* m, int tiles, int64_t stride) {
    const float* weight = a.weight + group * a.group_size;
    for (int p = 0; p < 36; p++, weight += a.in_channels * kGroup) {
      for (int t = 0; t < tiles; t += Traits::kPixels) {
        Vector sum[Traits::kPixels][VECTORS] = {};
        Products::accumulate(sum, v + (int64_t(p) * tiles + t) * stride, stride, a.in_channels, weight, a.group_size);
#pragma GCC unroll 16
        for (int i = 0; i < Traits::kPixels; i++)
#pragma GCC unroll 16
          for (int j = 0; j < VECTORS; j++)
            S::store(m + (p * tiles + t + i) * 2 * kGroup + j * Traits::kWidth, sum[i][j]);
      }
    }
  }

  // Pixel (y, x) of the output is a tile's first; `area` is the one it belongs to.
  struct Place {
    const Area* area;
    int y, x;
  };

  // Blocks of tiles, those of an area in reading order and the areas one after another: a block may continue in the
  // next row of tiles, and in the next area. What a tile's pixels become does not depend on its block.
  template <int OUT>
  static void blocks(const ConvArgs& a, const Areas& areas, float* scratch) {
    const int tiles = winograd_tiles(a.in_channels);
    const int64_t stride = winograd_stride(a.in_channels);
    float* const v = scratch;
    float* const m = scratch + 36 * tiles * stride;
    const Area* area = areas.begin();
    int y = area->y, x = area->x;
    while (area != areas.end()) {
      Place places[kMostBlockTiles];
      int count = 0;
      while (count < tiles && area != areas.end()) {
        places[count++] = {area, y, x};
        x += OUT;
        if (x < area->right()) continue;
        x = area->x;
        y += OUT;
        if (y < area->bottom()) continue;
        if (++area == areas.end()) break;
        y = area->y;
        x = area->x;
      }
      const int used = (count + Traits::kPixels - 1) / Traits::kPixels * Traits::kPixels;  // beyond count: leftovers
      for (int t = 0; t < count; t++) input_tiles(a, places[t], v + t * stride, used * stride);
      for (int t = count; t < used; t++)
        for (int p = 0; p < 36; p++)
          for (int c = 0; c < a.in_channels; c++) v[(int64_t(p) * used + t) * stride + c] = 0.0f;
      for (int group = 0; group < a.groups;) {
        const int groups = a.groups - group >= kGroups ? kGroups : 1;
        if (groups == kGroups)
          multiply<Traits::kVectors>(a, group, v, m, used, stride);
        else
          multiply<S::kPerGroup>(a, group, v, m, used, stride);
        for (int t = 0; t < count; t++)
          for (int c = 0; c < groups * kGroup; c += Traits::kWidth)
            output_tile<OUT>(a, *places[t].area, m + t * 2 * kGroup + c, int64_t(used) * 2 * kGroup, places[t].y,
                             places[t].x, group * kGroup + c);
        group += groups;
      }
    }
  }

  // A tile's input, of all sources.
  static APE_INLINE void input_tiles(const ConvArgs& a, const Place& place, float* to, int64_t plane) {
    const int radius = a.kernel / 2, y = place.y - radius, x = place.x - radius;
    const int rows = place.area->bottom() + radius - y, columns = place.area->right() + radius - x;
    for (int s = 0; s < a.source_count; s++) {
      const FeatureMap& map = a.sources[s];
      const float* src = floats_at(map, y, x, 0);
      if (rows >= 6 && columns >= 6)
        input_tile<false>(map, src, to, plane, 6, 6);
      else
        input_tile<true>(map, src, to, plane, rows, columns);
      to += map.channels;
    }
  }

  static void conv(const ConvArgs& a, const Areas& areas, float* scratch) {
    if (a.kernel == 3)
      blocks<4>(a, areas, scratch);
    else
      blocks<2>(a, areas, scratch);
  }
};

}  // namespace
}  // namespace ape::cpu
