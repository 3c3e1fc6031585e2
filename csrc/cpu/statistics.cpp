#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace ape::cpu {
namespace {

constexpr int kFilters = 4;                  // of the luma: mean square and mean fourth power of each
constexpr int kSums = 2 * kFilters + 2 + 1;  // Laplacians of two colour differences, and the luma itself
constexpr int kLanes = 16;                   // columns that are summed side by side
constexpr float kLuma[3] = {65.481f / 255, 128.553f / 255, 24.966f / 255};
constexpr float kLeastSquare = 1e-8f;

static_assert(kSums == kStatistics);

// The luma and two colour differences of one cell and one pixel around it, white being 1. Pixels outside the image are
// those of its border. What lies right of that is zero: the last group of lanes reads it and drops what it gave.
class Planes {
 public:
  Planes(int64_t cell)
      : stride_((cell + kLanes - 1) / kLanes * kLanes + 2), size_(stride_ * (cell + 2)), values_(3 * size_) {}

  void load(const StatisticsArgs& args, const float* image, int64_t top, int64_t left, int64_t rows, int64_t columns) {
    const int64_t plane = args.height * args.width;
    const float unit = 1.0f / args.value_range;
    std::fill(values_.begin(), values_.end(), 0.0f);
    for (int64_t y = 0; y < rows + 2; ++y) {
      const float* source = image + std::clamp<int64_t>(top + y - 1, 0, args.height - 1) * args.width;
      float* luma = values_.data() + y * stride_;
      const auto pixels = [&](int64_t x, int64_t from, int64_t count) {
        if (args.channels == 3) {
          const float *r = source + from, *g = r + plane, *b = g + plane;
          for (int64_t i = 0; i < count; ++i) {
            luma[x + i] = (kLuma[0] * r[i] + kLuma[1] * g[i] + kLuma[2] * b[i]) * unit;
            luma[size_ + x + i] = (r[i] - g[i]) * unit;
            luma[2 * size_ + x + i] = (b[i] - g[i]) * unit;
          }
        } else {
          for (int64_t c = 0; c < args.channels; ++c)
            for (int64_t i = 0; i < count; ++i) luma[x + i] += source[c * plane + from + i] * unit / args.channels;
        }
      };
      pixels(0, std::max<int64_t>(left - 1, 0), 1);
      pixels(1, left, columns);
      pixels(columns + 1, std::min(left + columns, args.width - 1), 1);
    }
  }

  // In plane `i`, the pixel up and left of pixel (y, x) of the cell.
  const float* at(int i, int64_t y, int64_t x) const { return values_.data() + i * size_ + y * stride_ + x; }
  int64_t stride() const { return stride_; }

 private:
  int64_t stride_, size_;
  std::vector<float> values_;
};

// Adds what kLanes columns of a cell give, from the pixels at (0, x) on.
void add_columns(const Planes& planes, int64_t x, int64_t rows, float (&sums)[kSums][kLanes]) {
  const int64_t stride = planes.stride();
  for (int64_t y = 0; y < rows; ++y) {
    const float* p = planes.at(0, y, x);
    for (int i = 0; i < kLanes; ++i) {
      const float a = p[i], b = p[i + 1], c = p[i + 2];
      const float d = p[stride + i], e = p[stride + i + 1], f = p[stride + i + 2];
      const float g = p[2 * stride + i], h = p[2 * stride + i + 1], k = p[2 * stride + i + 2];
      const float across = d - 2 * e + f, down = b - 2 * e + h;
      const float mixed = (a - 2 * b + c) - 2 * across + (g - 2 * h + k);
      const float filtered[kFilters] = {across + down, mixed, across, down};
      for (int j = 0; j < kFilters; ++j) {
        const float square = filtered[j] * filtered[j];
        sums[j][i] += square;
        sums[kFilters + j][i] += square * square;
      }
      sums[kSums - 1][i] += e;
    }
    for (int colour = 0; colour < 2; ++colour) {
      const float* q = planes.at(1 + colour, y, x);
      for (int i = 0; i < kLanes; ++i) {
        const float laplacian =
            q[i + 1] + q[stride + i] - 4 * q[stride + i + 1] + q[stride + i + 2] + q[2 * stride + i + 1];
        sums[2 * kFilters + colour][i] += laplacian * laplacian;
      }
    }
  }
}

void cell_statistics(const Planes& planes, int64_t rows, int64_t columns, float* out) {
  float total[kSums] = {};
  for (int64_t x = 0; x < columns; x += kLanes) {
    float sums[kSums][kLanes] = {};
    add_columns(planes, x, rows, sums);
    for (int j = 0; j < kSums; ++j)
      for (int i = 0; i < std::min<int64_t>(kLanes, columns - x); ++i) total[j] += sums[j][i];
  }
  const float area = float(rows * columns);
  for (int j = 0; j < kSums - 1; ++j) {
    const bool fourth = j >= kFilters && j < 2 * kFilters;
    const float least = fourth ? kLeastSquare * kLeastSquare : kLeastSquare;
    out[j] = std::log(std::max(total[j] / area, least)) / (fourth ? 4 : 2);
  }
  out[kSums - 1] = total[kSums - 1] / area;
}

}  // namespace

void statistics(const StatisticsArgs& args) {
  const int64_t rows = (args.height + args.cell - 1) / args.cell, columns = (args.width + args.cell - 1) / args.cell;
  parallel(args.threads, args.batch * rows, [&](int, int64_t task) {
    Planes planes(std::min(args.cell, std::max(args.height, args.width)));
    const float* image = args.image + task / rows * args.channels * args.height * args.width;
    const int64_t top = task % rows * args.cell, height = std::min(args.cell, args.height - top);
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t left = k * args.cell, width = std::min(args.cell, args.width - left);
      planes.load(args, image, top, left, height, width);
      cell_statistics(planes, height, width, args.out + (task * columns + k) * kStatistics);
    }
  });
}

}  // namespace ape::cpu
