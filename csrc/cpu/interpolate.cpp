#include "interpolate.h"

#include <algorithm>
#include <vector>

#include "upsample.h"

namespace ape::cpu {
namespace {

// Across first, each row of the image once, then down: so there are four multiply-adds per pixel of the picture, along
// its rows, and few of the rest. Across, the `scale` pixels of the picture that lie on one of the image's are sums of
// the five pixels around it, with weights that are the same everywhere. Pixels beyond the image are as at its edge.
class Rows {
 public:
  Rows(const Planes<const float>& image, int height, int width, int scale, const Area& area)
      : image_(image),
        width_(width),
        scale_(scale),
        first_(area.x / scale - 2),
        count_((area.right() - 1) / scale + 3 - first_),
        skipped_(area.x % scale),
        down_(height, scale, area.y, area.bottom()),
        weight_(kAcross * scale, 0.0f),
        line_(count_),
        wide_(int64_t(kDown) * count_ * scale) {
    const CubicTaps middle(kAcross, scale, 2 * scale, 3 * scale);  // of the pixel that has two to either side
    for (int p = 0; p < scale; p++)
      for (int t = 0; t < 4; t++) weight_[middle.index[p * 4 + t] * scale + p] += middle.weight[p * 4 + t];
  }

  // Row `y` of the area, of one plane: `width` pixels.
  void row(const Kernels& kernels, int plane, int y, int width, float* to) {
    const float* lines[kDown];
    for (int t = 0; t < kDown; t++) lines[t] = wide(plane, down_.index[y * kDown + t]) + skipped_;
    kernels.blend(lines, down_.weight.data() + y * kDown, width, to);
  }

 private:
  static constexpr int kDown = 4, kAcross = 5;

  // A row of the image, as wide as the picture. Any four in a row have places of their own.
  const float* wide(int plane, int row) {
    float* const out = wide_.data() + int64_t(row % kDown) * count_ * scale_;
    if (plane == plane_ && row <= row_) return out;
    plane_ = plane;
    row_ = row;
    const float* from = image_.at(plane, row, first_);
    const int begin = std::max(0, -first_), end = std::min(count_, width_ - first_);
    if (end - begin < count_) {
      std::copy(from + begin, from + end, line_.begin() + begin);
      std::fill(line_.begin(), line_.begin() + begin, line_[begin]);
      std::fill(line_.begin() + end, line_.end(), line_[end - 1]);
      from = line_.data();
    }
    switch (scale_) {
      case 2:
        across<2>(from, out);
        break;
      case 3:
        across<3>(from, out);
        break;
      case 4:
        across<4>(from, out);
        break;
      default:
        across<0>(from, out);
    }
    return out;
  }

  template <int SCALE>
  void across(const float* from, float* out) const {
    const int s = SCALE ? SCALE : scale_;
    const float* const weight = weight_.data();
    for (const float* const end = from + count_ - kAcross + 1; from < end; from++, out += s)
      for (int p = 0; p < s; p++)
        out[p] = weight[p] * from[0] + weight[s + p] * from[1] + weight[2 * s + p] * from[2] +
                 weight[3 * s + p] * from[3] + weight[4 * s + p] * from[4];
  }

  const Planes<const float>& image_;
  const int width_, scale_, first_, count_, skipped_;  // first_: column of the image; count_: of its pixels
  const CubicTaps down_;
  std::vector<float> weight_;  // [kAcross][scale]
  std::vector<float> line_, wide_;
  int plane_ = -1, row_ = -1;  // of the row that came last
};

}  // namespace

void interpolate(const Kernels& kernels, const Planes<const float>& image, int channels, int height, int width,
                 int scale, const Area& area, const Planes<float>& picture) {
  if (area.empty()) return;
  Rows rows(image, height, width, scale, area);
  for (int plane = 0; plane < channels; plane++)
    for (int y = 0; y < area.height; y++)
      rows.row(kernels, plane, y, area.width, picture.at(plane, area.y + y, area.x));
}

}  // namespace ape::cpu
