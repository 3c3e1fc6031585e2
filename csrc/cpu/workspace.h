// One worker's feature maps, and the steps that run on them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "program.h"

namespace ape::cpu {

// What one worker owns, whatever the image size: 64 channels of 48x48 pixels are 0.64 MB as floats, 0.32 MB as bf16.
class Workspace {
 public:
  // height, width: of the low-resolution patch. handed: stages' features are kept as floats, for `load` and `save`.
  Workspace(const Program& program, const Kernels& kernels, const float* weights, int height, int width, bool handed);

  // planes: [channels, height, width] of the buffer. The first call also clears all maps: the worker does, not who made
  // the workspace, so that workers do it side by side and pages lie near the core that uses them.
  void load(int buffer, const float* planes);
  void save(int buffer, float* planes) const;

  // Steps one after another, none of them the reconstruction.
  void run(const Step* steps, int64_t count);
  // pixels: [O, s * height, s * width]
  void reconstruct(const Step& step, float* pixels);
  // tanh(weight . mean + bias) of the stage's exit, after its steps have run
  float predict(const Stage& stage) const;

 private:
  void run(const Step& step);
  int64_t bands(const Step* steps, int64_t count) const;
  void run_bands(const Step* steps, int64_t count);
  void conv(const Step& step, int first_row, int row_count);
  void attention(const Instruction& in);
  void nearest(const Instruction& in);
  void bicubic(const Instruction& in);

  ConvArgs conv_args(const Step& step, Layout layout) const;
  void run_conv(const ConvArgs& args, Layout layout, const Area& area);
  template <int S>
  void shuffle(const Instruction& in, float* pixels) const;
  void round(int buffer) const;
  std::vector<double> channel_sums(const FeatureMap& map) const;
  // Of the map's channels, whose sums are given.
  static std::vector<double> means(std::vector<double> sums, const FeatureMap& map);

  const Program* program_;
  const Kernels* kernels_;
  const float* weights_;
  Memory<float> floats_;  // the buffers, the phases and the scratch
  Memory<bf16> halves_;
  int64_t float_count_, half_count_;  // of the buffers
  bool cleared_ = false;
  std::vector<FeatureMap> buffers_;
  FeatureMap phases_;            // what the reconstruction shuffles, [height][width][O * s * s]
  float* scratch_;               // of the kernels
  std::vector<float> no_slope_;  // zeros: a ReLU is a PReLU of slope 0
  std::vector<double> sums_;     // of the channels of the last step that is `summed`
};

}  // namespace ape::cpu
