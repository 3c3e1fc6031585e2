// The instruction table taken apart and checked, ready to run.
#pragma once

#include <vector>

#include "../program.h"
#include "kernels.h"

namespace ape::cpu {

// Channels in whole groups of output channels.
inline int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

// A feature map: `channels` at `resolution` times the patch's height and width.
struct BufferSpec {
  int channels, resolution;
  bool floats = false, half = false;  // read as floats, as bf16
  bool handed = false;                // a stage's features: floats where one stage runs on its own
  bool grouped = false;               // stored in whole groups of channels: convolutions and attention read or write it
};

// How the weights of a CONV or RECONSTRUCT are laid out; the mode column holds it above the border classes' bit.
inline Layout layout(const Instruction& in) { return Layout(in.mode >> 1); }
inline bool has_border_classes(const Instruction& in) { return in.mode & 1; }

struct Step {
  Instruction in;
  std::vector<int32_t> sources;  // buffers a CONV reads, in the order of its input channels
  bool summed = false;           // a CONV that adds up, as it goes, the channels an exit averages
};

struct Stage {
  int src, dst;  // buffers that features enter and leave in
  std::vector<Step> steps;
  bool has_exit = false;
  Instruction exit{};
};

struct Program {
  std::vector<BufferSpec> buffers;
  std::vector<Step> head;
  std::vector<Stage> stages;
  std::vector<Step> tail;  // ends in the RECONSTRUCT
  int border = 0;          // widest zero border a convolution reads
  int widest = 1;          // most input channels of a Winograd convolution

  // table: [rows][16]; weight_count: elements in the weight buffer.
  // Throws std::invalid_argument for a table that is malformed or points outside buffers or weights:
  // the workers trust a Program.
  Program(const int32_t* table, int64_t rows, int64_t weight_count);

  const Instruction& reconstruct() const { return tail.back().in; }
  // Upscaling factor of the whole program.
  int upscale() const { return reconstruct().upscale * buffers[reconstruct().src].resolution; }
  int out_channels() const { return reconstruct().out_channels / (reconstruct().upscale * reconstruct().upscale); }

 private:
  void note_reads(const Step& step);
};

// 32-bit words of weights for LANES output channels of a CONV or RECONSTRUCT laid out as `layout`.
int64_t group_size(const Step& step, Layout layout, const std::vector<BufferSpec>& buffers);

}  // namespace ape::cpu
