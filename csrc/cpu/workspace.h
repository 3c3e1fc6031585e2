// What carries one patch: a worker's feature maps, and the steps that run on them.
#pragma once

#include <vector>

#include "maps.h"

namespace ape::cpu {

class Workspace {
 public:
  // handed: see Maps.
  Workspace(const Program& program, const Kernels& kernels, const float* weights, int height, int width, bool handed)
      : maps_(program, height, width, handed), program_(&program), kernels_(&kernels), weights_(weights) {}

  // planes: [channels, height, width] of the buffer.
  void load(int buffer, const float* planes);
  void save(int buffer, float* planes) const { maps_.save(buffer, planes); }

  // Steps one after another, none of them the reconstruction.
  void run(const Step* steps, int64_t count);
  // picture: [O, s * height, s * width]
  void reconstruct(const Step& step, float* picture);
  // The prediction of the stage's exit, after its steps have run.
  float predict(const Stage& stage) const;

 private:
  void run(const Step& step);
  void conv(const Step& step, int first_row, int row_count);
  ConvArgs conv_args(const Step& step) const;
  void run_conv(const ConvArgs& args, int32_t layout, const Area& area);

  // Pixels null where nothing is added.
  FeatureMap added(const Instruction& in) const { return in.add == kNoBuffer ? FeatureMap{} : maps_[in.add]; }
  void round(int buffer) const;
  std::vector<double> channel_sums(const FeatureMap& map) const;

  Maps maps_;
  const Program* program_;
  const Kernels* kernels_;
  const float* weights_;
  std::vector<double> sums_;  // of the channels of the last step that is `summed`
};

}  // namespace ape::cpu
