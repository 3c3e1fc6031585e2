// The memory of one worker: its feature maps, and what the kernels need beside them.
#pragma once

#include <vector>

#include "memory.h"
#include "program.h"

namespace ape::cpu {

// What one worker owns, whatever the image size: 64 channels of 48x48 pixels are 0.64 MB as floats, 0.32 MB as bf16.
class Maps {
 public:
  // height, width: of the low-resolution patch. handed: stages' features are kept as floats, for `load` and `save`.
  Maps(const Program& program, int height, int width, bool handed);

  // Fills the floats of a buffer from planes [channels, height, width]. The first call also clears all maps: the worker
  // does, not who made them, so that workers do it side by side and pages lie near the core that uses them.
  void load(int buffer, const float* planes);
  void save(int buffer, float* planes) const;

  const FeatureMap& operator[](int buffer) const { return buffers_[buffer]; }
  // What the reconstruction shuffles, [height][width][O * s * s]; floats without a border.
  const FeatureMap& phases() const { return phases_; }
  // Of the kernels.
  float* scratch() const { return scratch_; }
  // As many as the widest buffer has channels: a ReLU is a PReLU of slope 0.
  const float* zeros() const { return zeros_.data(); }

 private:
  Memory<float> floats_;  // the buffers, the phases and the scratch
  Memory<bf16> rounded_;
  int64_t float_count_ = 0, rounded_count_ = 0;  // of the buffers
  bool cleared_ = false;
  std::vector<FeatureMap> buffers_;
  FeatureMap phases_;
  float* scratch_;
  std::vector<float> zeros_;
};

}  // namespace ape::cpu
