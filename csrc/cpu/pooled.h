// Values that are computed from the means of a map's channels: an exit's prediction and the gates of channel attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "program.h"

namespace ape::cpu {

// bias + weight . values, over `count` values.
inline double dot(double bias, const float* weight, const std::vector<double>& values, int count) {
  for (int i = 0; i < count; i++) bias += weight[i] * values[i];
  return bias;
}

// tanh(weight . mean + bias) of an EXIT. mean: at least [in_channels].
inline float predict(const Instruction& in, const float* weights, const std::vector<double>& mean) {
  return std::tanh(float(dot(weights[in.bias], weights + in.weight, mean, in.in_channels)));
}

// scale * sigmoid(expand(relu(squeeze(mean)))) of an ATTENTION. The result has the size of `mean`; the gates of
// channels that pad the map are 0.
inline std::vector<float> gates(const Instruction& in, const float* weights, const std::vector<double>& mean) {
  const float* squeeze = weights + in.weight;  // [hidden][channels]
  const float* expand = squeeze + int64_t(in.hidden) * in.in_channels;
  const float* bias = weights + in.bias;  // [hidden], then [channels]
  std::vector<double> squeezed(in.hidden);
  for (int h = 0; h < in.hidden; h++)
    squeezed[h] = std::max(dot(bias[h], squeeze + int64_t(h) * in.in_channels, mean, in.in_channels), 0.0);
  std::vector<float> gate(mean.size(), 0.0f);
  for (int c = 0; c < in.in_channels; c++) {
    const double sum = dot(bias[in.hidden + c], expand + int64_t(c) * in.hidden, squeezed, in.hidden);
    gate[c] = float(in.scale() / (1.0 + std::exp(-sum)));
  }
  return gate;
}

}  // namespace ape::cpu
