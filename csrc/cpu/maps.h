// The memory of one worker: its feature maps, and the scratch of the kernels.
#pragma once

#include <vector>

#include "memory.h"
#include "program.h"

namespace ape::cpu {

// Planes of pixels, such as an image or a picture: `data` is pixel (0, 0) of the first; strides in floats.
template <class T>
struct Planes {
  T* data;
  int64_t plane, row;

  T* at(int64_t number, int64_t y, int64_t x) const { return data + number * plane + y * row + x; }
};

// Copies the pixels of `area`, each form that both maps have.
void copy(const FeatureMap& from, const FeatureMap& to, const Area& area);
// Whether `copy` would change nothing, not a bit.
bool same(const FeatureMap& from, const FeatureMap& to, const Area& area);
void clear(const FeatureMap& map, const Area& area);

// What one worker owns, whatever the image size: 64 channels of 48x48 pixels are 0.64 MB as floats, 0.32 MB as bf16.
// The maps are a window of an image's, or all of a patch's, and are addressed as if the whole were there.
class Maps {
 public:
  // height, width: low-resolution pixels that are in memory. handed: stages' features are kept as floats, for `load`
  // and `save`.
  Maps(const Program& program, int height, int width, bool handed);

  // Lays the window over pixels of an image of height x width: (top, left) of the low-resolution image is its first.
  // Pixels outside of the image are zero wherever the window shows them.
  void place(int top, int left, int height, int width);
  // Moves the window up and left by so many low-resolution pixels; `buffers` keep what they hold.
  void slide(int up, int left, const std::vector<int32_t>& buffers);

  // Fills the floats of `area` of a buffer from planes.
  void load(int buffer, const Planes<const float>& planes, const Area& area);
  void save(int buffer, float* planes) const;  // [channels, height, width], of a patch

  const FeatureMap& operator[](int buffer) const { return buffers_[buffer]; }
  // What the reconstruction shuffles, pixels of `area`: [height][width][O * s * s]; floats without a margin.
  FeatureMap phases(const Area& area) const;
  // Memory in which the kernels work.
  float* scratch() const { return scratch_; }
  // Zeros, one per channel of the widest buffer. A ReLU uses them as the slopes of a PReLU.
  const float* zeros() const { return zeros_.data(); }

 private:
  void clear_outside();

  const int rows_, columns_, margin_;
  int top_ = 0, left_ = 0;
  Memory<float> floats_;  // the buffers, the phases and the scratch
  Memory<bf16> rounded_;
  int64_t float_count_ = 0, rounded_count_ = 0;  // elements of all buffers
  bool cleared_ = false;
  std::vector<int> resolution_;
  std::vector<float*> float_start_;  // of the buffers' memory
  std::vector<bf16*> rounded_start_;
  std::vector<FeatureMap> buffers_;
  FeatureMap phases_;
  float* scratch_;
  std::vector<float> zeros_;
};

}  // namespace ape::cpu
