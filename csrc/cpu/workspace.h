// The feature maps of one worker, and the steps that run on them.
#pragma once

#include <vector>

#include "maps.h"

namespace ape::cpu {

class Workspace {
 public:
  // The arguments are as for Maps. program, kernels and weights must outlive the workspace.
  Workspace(const Program& program, const Kernels& kernels, const float* weights, int height, int width, bool handed)
      : maps_(program, height, width, handed), program_(&program), kernels_(&kernels), weights_(weights) {}

  // Fill a buffer from planes [channels, height, width], and write it to planes.
  void load(int buffer, const float* planes);
  void save(int buffer, float* planes) const { maps_.save(buffer, planes); }

  // Runs steps one after another. None of them is the reconstruction.
  void run(const Step* steps, int64_t count);
  // Runs the reconstruction. picture: [O, s * height, s * width].
  void reconstruct(const Step& step, float* picture);
  // The prediction of the stage's exit, after its steps have run.
  float predict(const Stage& stage) const;

 private:
  void run(const Step& step);
  void conv(const Step& step, int first_row, int row_count);
  ConvArgs conv_args(const Step& step) const;
  void run_conv(const ConvArgs& args, int32_t layout, const Area& area);

  // The map that a step adds. Its pixels are null if nothing is added.
  FeatureMap added(const Instruction& in) const { return in.add == kNoBuffer ? FeatureMap{} : maps_[in.add]; }
  void round(int buffer) const;
  std::vector<double> channel_sums(const FeatureMap& map) const;

  Maps maps_;
  const Program* program_;
  const Kernels* kernels_;
  const float* weights_;
  std::vector<double> sums_;  // sums of the output channels of the last step that is `summed`
};

}  // namespace ape::cpu
