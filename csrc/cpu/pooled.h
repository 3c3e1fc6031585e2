// What is computed from the means of a map's channels: an exit's prediction and the gates of channel attention.
#pragma once

#include <vector>

#include "program.h"

namespace ape::cpu {

// tanh(weight . mean + bias) of an EXIT. mean: [in_channels] at least.
float predict(const Instruction& in, const float* weights, const std::vector<double>& mean);

// scale * sigmoid(expand(relu(squeeze(mean)))) of an ATTENTION, [as many as `mean`]: 0 for the channels that pad it.
std::vector<float> gates(const Instruction& in, const float* weights, const std::vector<double>& mean);

}  // namespace ape::cpu
