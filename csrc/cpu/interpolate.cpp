#include "interpolate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "upsample.h"

namespace ape::cpu {
namespace {

// Down first, one line of the image's pixels, then across: the `scale` pixels of the picture that lie on one of the
// image's are sums of the five pixels around it, with weights that are the same everywhere. So a vector holds the sums
// of neighbouring pixels of the picture. Pixels beyond the image are as at its edge.
class Lines {
 public:
  Lines(const Planes<const float>& image, int height, int width, int scale, const Area& area)
      : image_(image),
        width_(width),
        scale_(scale),
        first_(area.x / scale - 2),
        count_((area.right() - 1) / scale + 3 - first_),
        skipped_(area.x % scale),
        whole_(area.x % scale == 0 && area.width % scale == 0),
        rows_(height, scale, area.y, area.bottom()),
        weight_(kTaps * scale, 0.0f),
        line_(count_),
        wide_(whole_ ? 0 : int64_t(count_) * scale) {
    const CubicTaps middle(kTaps, scale, 2 * scale, 3 * scale);  // of the pixel that has two to either side
    for (int p = 0; p < scale; p++)
      for (int t = 0; t < 4; t++) weight_[middle.index[p * 4 + t] * scale + p] += middle.weight[p * 4 + t];
  }

  // Row `y` of the area, of one plane, to `width` pixels at `to`. An area may begin or end within a pixel of the image.
  void row(int plane, int y, int width, float* to) {
    float* const out = whole_ ? to : wide_.data();
    row_of_pixels(plane, y, out);
    if (!whole_) std::copy_n(out + skipped_, width, to);
  }

 private:
  void row_of_pixels(int plane, int y, float* out) {
    const float* const weight = rows_.weight.data() + y * 4;
    const float* from[4];
    for (int t = 0; t < 4; t++) from[t] = image_.at(plane, rows_.index[y * 4 + t], first_);
    const int begin = std::max(0, -first_), end = std::min(count_, width_ - first_);
    for (int x = begin; x < end; x++)
      line_[x] = weight[0] * from[0][x] + weight[1] * from[1][x] + weight[2] * from[2][x] + weight[3] * from[3][x];
    std::fill(line_.begin(), line_.begin() + begin, line_[begin]);
    std::fill(line_.begin() + end, line_.end(), line_[end - 1]);
    switch (scale_) {
      case 2:
        return across<2>(out);
      case 3:
        return across<3>(out);
      case 4:
        return across<4>(out);
      default:
        return across<0>(out);
    }
  }

  static constexpr int kTaps = 5;

  template <int SCALE>
  void across(float* out) const {
    const int s = SCALE ? SCALE : scale_;
    const float* const weight = weight_.data();
    for (const float* from = line_.data(); from + kTaps <= line_.data() + count_; from++, out += s)
      for (int p = 0; p < s; p++)
        out[p] = weight[p] * from[0] + weight[s + p] * from[1] + weight[2 * s + p] * from[2] +
                 weight[3 * s + p] * from[3] + weight[4 * s + p] * from[4];
  }

  const Planes<const float>& image_;
  const int width_, scale_, first_, count_, skipped_;
  const bool whole_;  // the area has whole pixels of the image
  const CubicTaps rows_;
  std::vector<float> weight_;  // [kTaps][scale]
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
    for (int y = 0; y < area.height; y++) lines.row(plane, y, area.width, picture.at(plane, area.y + y, area.x));
  if (tones.shift != nullptr) add_tones(tones, area, picture);
}

}  // namespace ape::cpu
