// What is expected of the candidates for each cell of an image: the native form of
// ape_kernels/backends/torch/predict.py.
#pragma once

#include <cstdint>

#include "statistics.h"

namespace ape::cpu {

// F is kStatistics, C the number of candidates but full depth. What the arrays are: FitTensors in
// ape_kernels/backends/protocol.py.
struct PredictArgs {
  const float* statistics;                     // [batch, rows, columns, F]
  const float *mean, *deviation, *low, *high;  // [F]
  const float *precision, *leverage;           // [F, F], [1]
  const float* quadratic;                      // [C, F + 1, F + 1]
  const float* kinds;                          // [kind_count - 1], ascending
  const float* needed;                         // [kind_count, C, levels]
  float *fidelity, *level;                     // [batch, rows, columns, C]
  int64_t batch, rows, columns;
  int candidates, kind_count, levels;
  int parts;          // cells along each side of those whose kind is one
  float first, step;  // of the levels, in dB
  float unlike;       // dB by which the levels of a cell fall that nothing fitted resembles
  int threads;
};

void predict(const PredictArgs& args);

}  // namespace ape::cpu
