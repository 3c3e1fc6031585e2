#include "upsample.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ape::cpu {
namespace {

// The four taps of cubic interpolation for each output pixel of an axis.
struct CubicTaps {
  std::vector<int> index;     // [size * factor][4], clamped
  std::vector<float> weight;  // [size * factor][4]

  CubicTaps(int size, int factor) : index(size * factor * 4), weight(size * factor * 4) {
    constexpr double a = -0.75;
    for (int i = 0; i < size * factor; i++) {
      const double centre = (i + 0.5) / factor - 0.5;
      const int first = int(std::floor(centre)) - 1;
      for (int t = 0; t < 4; t++) {
        const double d = std::abs(centre - (first + t));
        index[i * 4 + t] = std::clamp(first + t, 0, size - 1);
        weight[i * 4 + t] =
            float(d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : ((a * d - 5 * a) * d + 8 * a) * d - 4 * a);
      }
    }
  }
};

// FACTOR: equal to `factor` if it is known when compiling, else 0.
template <int FACTOR>
void shuffle_by(const FeatureMap& phases, int factor, const FeatureMap& add, float* picture) {
  const int s = FACTOR ? FACTOR : factor;
  const int64_t picture_row = int64_t(s) * phases.width, rows = int64_t(s) * phases.height;
  for (int plane = 0; plane < phases.channels / (s * s); plane++) {
    for (int64_t row = 0; row < rows; row++) {
      float* const out = picture + (plane * rows + row) * picture_row;
      const float* phase = phases.pixels + row / s * phases.row + (plane * s + row % s) * s;
      for (int x = 0; x < phases.width; x++, phase += phases.pixel)
        for (int dx = 0; dx < s; dx++) out[x * s + dx] = phase[dx];
      if (add.pixels != nullptr) {
        const float* from = add.pixels + row * add.row + plane;
        for (int64_t x = 0; x < picture_row; x++) out[x] += from[x * add.pixel];
      }
    }
  }
}

}  // namespace

// Fills one line per source row and then copies it to the other lines.
void nearest(const FeatureMap& src, int factor, const FeatureMap& dst) {
  for (int y = 0; y < src.height; y++) {
    float* const line = dst.pixels + int64_t(y) * factor * dst.row;
    float* to = line;
    for (int x = 0; x < src.width; x++)
      for (int i = 0; i < factor; i++, to += dst.pixel)
        std::copy_n(src.pixels + y * src.row + x * src.pixel, src.channels, to);
    for (int i = 1; i < factor; i++) std::copy_n(line, dst.width * dst.pixel, line + i * dst.row);
  }
}

// Interpolates down first, one line of source pixels at a time, and then across.
void bicubic(const FeatureMap& src, int factor, const FeatureMap& dst) {
  const CubicTaps rows(src.height, factor), columns(src.width, factor);
  const int channels = src.channels;
  std::vector<float> line(int64_t(src.width) * channels);
  for (int y = 0; y < dst.height; y++) {
    std::fill(line.begin(), line.end(), 0.0f);
    for (int i = 0; i < 4; i++) {
      const float weight = rows.weight[y * 4 + i];
      const float* from = src.pixels + rows.index[y * 4 + i] * src.row;
      for (int x = 0; x < src.width; x++)
        for (int c = 0; c < channels; c++) line[x * channels + c] += weight * from[x * src.pixel + c];
    }
    for (int x = 0; x < dst.width; x++) {
      float* to = dst.pixels + y * dst.row + x * dst.pixel;
      for (int c = 0; c < channels; c++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) sum += columns.weight[x * 4 + j] * line[columns.index[x * 4 + j] * channels + c];
        to[c] = sum;
      }
    }
  }
}

void shuffle(const FeatureMap& phases, int factor, const FeatureMap& add, float* picture) {
  switch (factor) {
    case 2:
      return shuffle_by<2>(phases, factor, add, picture);
    case 3:
      return shuffle_by<3>(phases, factor, add, picture);
    case 4:
      return shuffle_by<4>(phases, factor, add, picture);
    default:
      return shuffle_by<0>(phases, factor, add, picture);
  }
}

}  // namespace ape::cpu
