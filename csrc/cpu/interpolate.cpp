#include "interpolate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "upsample.h"

namespace ape::cpu {
namespace {

// Down first, one line of the image's pixels, then across: for each of the `scale` phases of a row of the picture, four
// weights that are the same for all its pixels. Pixels whose taps would leave the image are repeated in `line`.
class Lines {
 public:
  Lines(const Planes<const float>& image, int height, int width, int scale, const Area& area)
      : image_(image),
        width_(width),
        scale_(scale),
        first_((area.x / scale) - 2),
        count_((area.right() - 1) / scale + 3 - first_),
        rows_(height, scale, area.y, area.bottom()),
        phases_(1 << 20, scale, scale << 1, scale * 3),
        line_(count_),
        wide_(int64_t(count_) * scale) {}

  // Pixels area.x to area.right() of the picture's row area.y + y of a plane.
  void row(int plane, int y, const Area& area, float* out) {
    const float* const weight = rows_.weight.data() + y * 4;
    const float* from[4];
    for (int t = 0; t < 4; t++) from[t] = image_.at(plane, rows_.index[y * 4 + t], 0);
    const int begin = std::max(0, -first_), end = std::min(count_, width_ - first_);
    for (int x = begin; x < end; x++)
      line_[x] = weight[0] * from[0][first_ + x] + weight[1] * from[1][first_ + x] + weight[2] * from[2][first_ + x] +
                 weight[3] * from[3][first_ + x];
    std::fill(line_.begin(), line_.begin() + begin, line_[begin]);
    std::fill(line_.begin() + end, line_.end(), line_[end - 1]);
    switch (scale_) {
      case 2:
        across<2>();
        break;
      case 3:
        across<3>();
        break;
      case 4:
        across<4>();
        break;
      default:
        across<0>();
    }
    std::copy_n(wide_.data() + (area.x - (first_ + 2) * scale_), area.width, out);
  }

 private:
  // wide_[x * s + p], of the pixels from first_ + 2 on.
  template <int SCALE>
  void across() {
    const int s = SCALE ? SCALE : scale_;
    const float* const line = line_.data();
    float* const wide = wide_.data();
    for (int p = 0; p < s; p++) {
      const float* const w = phases_.weight.data() + p * 4;
      const float* const from = line + phases_.index[p * 4];
      for (int x = 0; x < count_ - 4; x++)
        wide[x * s + p] = w[0] * from[x] + w[1] * from[x + 1] + w[2] * from[x + 2] + w[3] * from[x + 3];
    }
  }

  const Planes<const float>& image_;
  const int width_, scale_, first_, count_;
  const CubicTaps rows_, phases_;
  std::vector<float> line_, wide_;
};

void add_tones(const Tones& tones, const Area& area, const Planes<float>& picture) {
  const int last = tones.count - 1;
  const float to_grid = float(last) / tones.value_range;
  const int64_t red = 3 * int64_t(tones.count) * tones.count, green = 3 * int64_t(tones.count);
  for (int y = area.y; y < area.bottom(); y++) {
    float *r = picture.at(0, y, area.x), *g = picture.at(1, y, area.x), *b = picture.at(2, y, area.x);
    for (int x = 0; x < area.width; x++) {
      const auto place = [&](float value, float& part) {
        const float at = std::min(std::max(value * to_grid, 0.0f), float(last));
        const int cell = std::min(int(at), last - 1);
        part = at - float(cell);
        return cell;
      };
      float pr, pg, pb;
      const int64_t cr = place(r[x], pr), cg = place(g[x], pg), cb = place(b[x], pb);
      const float* const corner = tones.shift + cr * red + cg * green + cb * 3;
      float shift[3];
      for (int c = 0; c < 3; c++) {
        const auto along = [&](const float* at) { return at[c] + pb * (at[c + 3] - at[c]); };
        const auto plane = [&](const float* at) {
          const float low = along(at);
          return low + pg * (along(at + green) - low);
        };
        const float low = plane(corner);
        shift[c] = low + pr * (plane(corner + red) - low);
      }
      r[x] += shift[0], g[x] += shift[1], b[x] += shift[2];
    }
  }
}

}  // namespace

void interpolate(const Planes<const float>& image, int channels, int height, int width, int scale, const Tones& tones,
                 const Area& area, const Planes<float>& picture) {
  if (area.empty()) return;
  Lines lines(image, height, width, scale, area);
  for (int plane = 0; plane < channels; plane++)
    for (int y = 0; y < area.height; y++) lines.row(plane, y, area, picture.at(plane, area.y + y, area.x));
  if (tones.shift != nullptr) add_tones(tones, area, picture);
}

}  // namespace ape::cpu
