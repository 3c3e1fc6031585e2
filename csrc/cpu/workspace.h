// What carries one patch, or a part of an image: a worker's feature maps, and the steps that run on them.
#pragma once

#include <vector>

#include "maps.h"

namespace ape::cpu {

class Workspace {
 public:
  // height, width, handed: see Maps.
  Workspace(const Program& program, const Kernels& kernels, const float* weights, int height, int width, bool handed)
      : maps_(program, height, width, handed), program_(&program), kernels_(&kernels), weights_(weights) {}

  Maps& maps() { return maps_; }

  // Pixels of `area` of a buffer, from planes.
  void load(int buffer, const Planes<const float>& planes, const Area& area);

  // Steps one after another, on whole maps, none of them the reconstruction.
  void run(const Step* steps, int64_t count);
  // Pixels of `areas` of the step's destination.
  void run(const Step& step, const Areas& areas);
  // The picture's pixels that come from `area` of the step's source.
  void reconstruct(const Step& step, const Area& area, const Planes<float>& picture);
  // The prediction of the stage's exit, after its steps have run.
  float predict(const Stage& stage) const;

 private:
  void conv(const Step& step, const Areas& areas);
  ConvArgs conv_args(const Step& step) const;
  void run_conv(const ConvArgs& args, int32_t layout, const Areas& areas);
  void run_border_classes(const Step& step, ConvArgs args, const Area& area);

  // The map that a step adds. Its pixels are null if nothing is added.
  FeatureMap added(const Instruction& in) const { return in.add == kNoBuffer ? FeatureMap{} : maps_[in.add]; }
  void round(int buffer, const Area& area) const;
  std::vector<double> channel_sums(const FeatureMap& map) const;

  Maps maps_;
  const Program* program_;
  const Kernels* kernels_;
  const float* weights_;
  std::vector<double> sums_;  // sums of the output channels of the last step that is `summed`
};

}  // namespace ape::cpu
