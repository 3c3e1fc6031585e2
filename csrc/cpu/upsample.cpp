#include "upsample.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ape::cpu {
namespace {

// FACTOR: `factor` where it is known in advance, else 0.
template <int FACTOR>
void shuffle_by(const FeatureMap& phases, int factor, const FeatureMap& add, const Area& area,
                const Planes<float>& picture) {
  const int s = FACTOR ? FACTOR : factor;
  const int64_t first = int64_t(s) * area.x;
  for (int plane = 0; plane < phases.channels / (s * s); plane++) {
    for (int64_t row = int64_t(s) * area.y; row < int64_t(s) * area.bottom(); row++) {
      float* const out = picture.at(plane, row, first);
      const float* phase = phases.pixels + row / s * phases.row + area.x * phases.pixel + (plane * s + row % s) * s;
      for (int x = 0; x < area.width; x++, phase += phases.pixel)
        for (int dx = 0; dx < s; dx++) out[x * s + dx] = phase[dx];
      if (add.pixels != nullptr) {
        const float* from = add.pixels + row * add.row + first * add.pixel + plane;
        for (int64_t x = 0; x < int64_t(s) * area.width; x++) out[x] += from[x * add.pixel];
      }
    }
  }
}

}  // namespace

CubicTaps::CubicTaps(int size, int factor, int begin, int end)
    : index(int64_t(end - begin) * 4), weight(int64_t(end - begin) * 4) {
  constexpr double a = -0.75;
  for (int i = begin; i < end; i++) {
    // within its source pixel, so that weights do not depend, not even in their last bit, on how far that is
    const double centre = (i % factor + 0.5) / factor - 0.5;
    const int first = int(std::floor(centre)) - 1;
    for (int t = 0; t < 4; t++) {
      const double d = std::abs(centre - (first + t));
      index[(i - begin) * 4 + t] = std::clamp(i / factor + first + t, 0, size - 1);
      weight[(i - begin) * 4 + t] =
          float(d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : ((a * d - 5 * a) * d + 8 * a) * d - 4 * a);
    }
  }
}

// Rows that show the same pixels are made once.
void nearest(const FeatureMap& src, int factor, const FeatureMap& dst, const Area& area) {
  for (int y = area.y; y < area.bottom(); y++) {
    float* const line = dst.pixels + int64_t(y) * dst.row + area.x * dst.pixel;
    if (y > area.y && y % factor != 0) {
      std::copy_n(line - dst.row, area.width * dst.pixel, line);
      continue;
    }
    const float* const from = src.pixels + int64_t(y / factor) * src.row;
    for (int x = 0; x < area.width; x++)
      std::copy_n(from + (area.x + x) / factor * src.pixel, src.channels, line + x * dst.pixel);
  }
}

// Down first, a line of source pixels at a time, then across.
void bicubic(const FeatureMap& src, int factor, const FeatureMap& dst, const Area& area) {
  if (area.empty()) return;
  const CubicTaps rows(src.height, factor, area.y, area.bottom()), columns(src.width, factor, area.x, area.right());
  const auto [first, last] = std::minmax_element(columns.index.begin(), columns.index.end());
  const int left = *first, width = *last + 1 - left, channels = src.channels;
  std::vector<float> line(int64_t(width) * channels);
  for (int y = 0; y < area.height; y++) {
    std::fill(line.begin(), line.end(), 0.0f);
    for (int i = 0; i < 4; i++) {
      const float weight = rows.weight[y * 4 + i];
      const float* from = src.pixels + rows.index[y * 4 + i] * src.row + left * src.pixel;
      for (int x = 0; x < width; x++)
        for (int c = 0; c < channels; c++) line[x * channels + c] += weight * from[x * src.pixel + c];
    }
    for (int x = 0; x < area.width; x++) {
      float* to = dst.pixels + (area.y + y) * dst.row + (area.x + x) * dst.pixel;
      for (int c = 0; c < channels; c++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++)
          sum += columns.weight[x * 4 + j] * line[(columns.index[x * 4 + j] - left) * channels + c];
        to[c] = sum;
      }
    }
  }
}

void shuffle(const FeatureMap& phases, int factor, const FeatureMap& add, const Area& area,
             const Planes<float>& picture) {
  switch (factor) {
    case 2:
      return shuffle_by<2>(phases, factor, add, area, picture);
    case 3:
      return shuffle_by<3>(phases, factor, add, area, picture);
    case 4:
      return shuffle_by<4>(phases, factor, add, area, picture);
    default:
      return shuffle_by<0>(phases, factor, add, area, picture);
  }
}

}  // namespace ape::cpu
