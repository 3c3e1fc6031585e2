// One worker's feature maps, and the steps that run on them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "program.h"

namespace ape::cpu {

// A feature map in memory: [rows + 2 * border][pixels + 2 * border][channels padded to LANES].
// The border and the padding channels are zero and stay zero.
struct Buffer {
  float* origin;  // pixel (0, 0), inside the border
  int64_t row, pixel;
  int channels, height, width;
};

// What one worker owns, about 0.7 MB a 64-channel buffer of 48x48 pixels, whatever the image size.
class Workspace {
 public:
  // height, width: of the low-resolution patch.
  Workspace(const Program& program, const Kernels& kernels, const float* weights, int height, int width);
  Workspace(Workspace&& other) noexcept;
  Workspace& operator=(Workspace&&) = delete;
  ~Workspace();

  // planes: [channels, height, width] of the buffer.
  void load(int buffer, const float* planes);
  void save(int buffer, float* planes) const;

  // Any step but the reconstruction.
  void run(const Step& step);
  // pixels: [O, s * height, s * width]
  void reconstruct(const Instruction& in, float* pixels);
  // tanh(weight . mean + bias)
  float predict(const Instruction& in) const;

 private:
  void conv(const Step& step);
  void attention(const Instruction& in);
  void nearest(const Instruction& in);
  void bicubic(const Instruction& in);

  ConvArgs conv_args(const Instruction& in, const std::vector<int32_t>& sources) const;
  std::vector<double> channel_means(const Buffer& buffer) const;
  void shuffle(const Instruction& in, int y, float* pixels) const;

  const Kernels& kernels_;
  const float* weights_;
  float* memory_ = nullptr;
  float* phase_row_ = nullptr;  // [width][O * s * s padded], one row of the reconstruction
  std::vector<Buffer> buffers_;
  std::vector<float> no_slope_;  // zeros: a ReLU is a PReLU of slope 0
};

}  // namespace ape::cpu
