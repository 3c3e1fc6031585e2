// The memory of one worker: its feature maps, and the scratch of the kernels.
#pragma once

#include <vector>

#include "memory.h"
#include "program.h"

namespace ape::cpu {

// The memory that one worker owns. Its size depends on the patch and not on the image: 64 channels of 48x48 pixels are
// 0.64 MB as floats and 0.32 MB as bf16.
class Maps {
 public:
  // height, width: of the low-resolution patch. handed: whether the features of stages are kept as floats, for `load`
  // and `save`.
  Maps(const Program& program, int height, int width, bool handed);

  // Fills the floats of a buffer from planes [channels, height, width]. The first call also clears all maps. It does so
  // in the worker's thread, so that workers clear side by side and the pages lie near the core that uses them.
  void load(int buffer, const float* planes);
  // Writes the floats of a buffer to planes [channels, height, width].
  void save(int buffer, float* planes) const;

  const FeatureMap& operator[](int buffer) const { return buffers_[buffer]; }
  // The values before the pixel shuffle of the reconstruction, [height][width][O * s * s], as floats without a margin.
  const FeatureMap& phases() const { return phases_; }
  // The scratch of the kernels.
  float* scratch() const { return scratch_; }
  // Zeros, one per channel of the widest buffer. A ReLU uses them as the slopes of a PReLU.
  const float* zeros() const { return zeros_.data(); }

 private:
  Memory<float> floats_;  // the buffers, the phases and the scratch
  Memory<bf16> rounded_;
  int64_t float_count_ = 0, rounded_count_ = 0;  // elements of all buffers
  bool cleared_ = false;
  std::vector<FeatureMap> buffers_;
  FeatureMap phases_;
  float* scratch_;
  std::vector<float> zeros_;
};

}  // namespace ape::cpu
