#include "predict.h"

#include <algorithm>

#include "parallel.h"

namespace ape::cpu {
namespace {

constexpr int kTerms = kStatistics + 1;  // the standardised statistics, and 1

float kind_of(const float* statistics) { return statistics[4] - statistics[0]; }

// z' Q z, the elements of Q in rows of `stride`.
float quadratic(const float* z, const float* q, int terms, int stride) {
  float total = 0;
  for (int i = 0; i < terms; ++i) {
    float row = 0;
    for (int j = 0; j < terms; ++j) row += q[i * stride + j] * z[j];
    total += row * z[i];
  }
  return total;
}

// The highest of the levels, between them too, for which `fidelity` is what is needed.
float level_of(const PredictArgs& args, const float* needed, float fidelity) {
  const int last = args.levels - 1;
  const int below = static_cast<int>(std::upper_bound(needed, needed + args.levels, fidelity) - needed);
  if (below == 0) return args.first + (fidelity - needed[0]);
  if (below > last) return args.first + args.step * last + (fidelity - needed[last]);
  const float part = (fidelity - needed[below - 1]) / (needed[below] - needed[below - 1]);
  return args.first + args.step * (below - 1 + part);
}

void predict_cell(const PredictArgs& args, int64_t cell, int kind) {
  const float* statistics = args.statistics + cell * kStatistics;
  float z[kTerms];
  bool unlike = false;
  for (int i = 0; i < kStatistics; ++i) {
    z[i] = (statistics[i] - args.mean[i]) / args.deviation[i];
    unlike |= statistics[i] < args.low[i] || statistics[i] > args.high[i];
  }
  z[kStatistics] = 1;
  unlike |= quadratic(z, args.precision, kStatistics, kStatistics) > *args.leverage;
  for (int c = 0; c < args.candidates; ++c) {
    const float fidelity = quadratic(z, args.quadratic + c * kTerms * kTerms, kTerms, kTerms);
    const float* needed = args.needed + (int64_t(kind) * args.candidates + c) * args.levels;
    args.fidelity[cell * args.candidates + c] = fidelity;
    args.level[cell * args.candidates + c] = level_of(args, needed, fidelity) - (unlike ? args.unlike : 0);
  }
}

}  // namespace

void predict(const PredictArgs& args) {
  const int64_t strips = (args.rows + args.parts - 1) / args.parts;
  parallel(args.threads, args.batch * strips, [&](int, int64_t task) {
    const int64_t top = task % strips * args.parts, bottom = std::min<int64_t>(top + args.parts, args.rows);
    const int64_t image = task / strips * args.rows;
    for (int64_t left = 0; left < args.columns; left += args.parts) {
      const int64_t right = std::min<int64_t>(left + args.parts, args.columns);
      float sum = 0;
      for (int64_t y = top; y < bottom; ++y)
        for (int64_t x = left; x < right; ++x)
          sum += kind_of(args.statistics + ((image + y) * args.columns + x) * kStatistics);
      const float mean = sum / ((bottom - top) * (right - left));
      const float* end = args.kinds + args.kind_count - 1;
      const int kind = static_cast<int>(std::lower_bound(args.kinds, end, mean) - args.kinds);
      for (int64_t y = top; y < bottom; ++y)
        for (int64_t x = left; x < right; ++x) predict_cell(args, (image + y) * args.columns + x, kind);
    }
  });
}

}  // namespace ape::cpu
