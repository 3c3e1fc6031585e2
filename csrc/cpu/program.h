// The instruction table taken apart and checked, ready to run.
#pragma once

#include <vector>

#include "../table.h"
#include "kernels.h"

namespace ape::cpu {

// A feature map: `channels` at `resolution` times the patch's height and width.
struct BufferSpec {
  int channels, resolution;
  bool floats = false, rounded = false;  // read as floats, as bf16
  bool handed = false;                   // a stage's features: floats where one stage runs on its own
  bool grouped = false;  // stored in whole groups of channels: convolutions and attention read or write it
};

struct Step {
  Instruction in;
  std::vector<int32_t> sources;  // buffers that a CONV or RECONSTRUCT reads, in the order of its input channels
  int64_t row = 0;               // of the table
  bool summed = false;           // a CONV that adds up, as it goes, the channels an exit averages
};

struct Stage {
  int src, dst;  // buffers that features enter and leave in
  std::vector<Step> steps;
  bool has_exit = false;
  Instruction exit{};
};

class Program final : public Table {
 public:
  std::vector<BufferSpec> buffers;
  std::vector<Step> head;
  std::vector<Stage> stages;
  std::vector<Step> tail;  // ends in the RECONSTRUCT
  int border = 0;          // widest zero border a convolution reads
  int widest = 1;          // most input channels of a Winograd convolution

  // table: [row_count][16]; weight_count: elements in the weight buffer.
  // Throws std::invalid_argument for a table that is malformed or points outside buffers or weights:
  // the workers trust a Program.
  Program(const int32_t* table, int64_t row_count, int64_t weight_count);

  // Upscaling factor of the whole program.
  int upscale() const { return reconstruct().upscale * buffers[reconstruct().src].resolution; }

  // 32-bit words of weights for one group of output channels, laid out as `layout`, of a convolution of `sources`.
  int64_t group_size(const Instruction& in, const Sources& sources, int32_t layout) const;

 private:
  int64_t kernel_elements(const Instruction& in, const Sources& sources) const override;
  void add(const Instruction& in, Sources sources) override;
  void note_reads(const Step& step);
};

// The layout of a RECONSTRUCT's kernels by border class.
inline int32_t edge_layout(const Instruction& in) { return in.layout() == kWinograd ? kDirect : in.layout(); }

}  // namespace ape::cpu
