#include "levels.h"

#include <algorithm>
#include <cstring>

namespace ape::cpu {
namespace {

constexpr float kLuma[] = {0.299f, 0.587f, 0.114f};
constexpr float kWhole = 8388608.0f;  // 2^23: what is added to it is rounded to whole numbers

template <class Number>
void read(const Levels& levels, int fold, const Area& area, float* out) {
  const Number* const image = static_cast<const Number*>(levels.image);
  const int64_t step = fold * levels.channels;
  for (int64_t c = 0; c < levels.channels; c++)
    for (int dy = 0; dy < fold; dy++)
      for (int dx = 0; dx < fold; dx++)
        for (int64_t y = area.y; y < area.bottom(); y++) {
          const int64_t first = (y * fold + dy) * levels.width + int64_t(area.x) * fold + dx;
          const Number* const from = image + first * levels.channels + c;
          for (int x = 0; x < area.width; x++) *out++ = float(from[x * step]) * levels.to_value;
        }
}

// In place, each value to its number in the lower bits.
template <class Number>
void round_row(float* row, int width, float factor) {
  constexpr float kPeak = float(Number(~Number(0)));
  for (int x = 0; x < width; x++) {
    const float level = row[x] * factor, above = level > 0.0f ? level : 0.0f;
    row[x] = (above < kPeak ? above : kPeak) + kWhole;
  }
}

template <class Number>
Number number(float rounded) {
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return Number(bits);
}

template <class Number>
void write(const Planes<float>& planes, const Area& area, const Levels& levels) {
  for (int y = area.y; y < area.bottom(); y++) {
    Number* const out = static_cast<Number*>(levels.picture) + y * levels.row + area.x * levels.pixel;
    if (levels.shown == 1) {
      float* const luma = planes.at(0, y, area.x);
      const float *green = planes.at(1, y, area.x), *blue = planes.at(2, y, area.x);
      for (int x = 0; x < area.width; x++) luma[x] = kLuma[0] * luma[x] + kLuma[1] * green[x] + kLuma[2] * blue[x];
    }
    for (int c = 0; c < levels.shown; c++) {
      float* const row = planes.at(c, y, area.x);
      round_row<Number>(row, area.width, levels.to_level);
      for (int x = 0; x < area.width; x++) out[x * levels.pixel + c] = number<Number>(row[x]);
    }
  }
}

}  // namespace

Planes<const float> read_levels(const Levels& levels, int fold, const Area& area, std::vector<float>& memory) {
  const int64_t plane = int64_t(area.height) * area.width;
  memory.resize(size_t(plane * levels.channels * fold * fold));
  if (levels.bytes == 1)
    read<uint8_t>(levels, fold, area, memory.data());
  else
    read<uint16_t>(levels, fold, area, memory.data());
  return {memory.data() - int64_t(area.y) * area.width - area.x, plane, area.width};
}

void write_levels(const Planes<float>& planes, const Area& area, const Levels& levels) {
  const Area seen{area.y, area.x, std::min(area.bottom(), levels.rows) - area.y,
                  std::min(area.right(), levels.columns) - area.x};
  if (seen.empty()) return;
  if (levels.bytes == 1)
    write<uint8_t>(planes, seen, levels);
  else
    write<uint16_t>(planes, seen, levels);
}

}  // namespace ape::cpu
