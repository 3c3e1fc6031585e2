// The instruction table, checked and divided into head, stages and tail.
#pragma once

#include <vector>

#include "../table.h"
#include "kernels.h"

namespace ape::cpu {

// A feature map: `channels` at `resolution` times the patch's height and width.
struct BufferSpec {
  int channels, resolution;
  bool floats = false, rounded = false;  // whether steps read it as floats, as bf16
  bool handed = false;                   // whether it holds a stage's features, which are floats in run_stage
  bool grouped = false;  // whether its channels are padded to whole groups, for convolutions and attention
};

struct Step {
  Instruction in;
  std::vector<int32_t> sources;  // buffers that a CONV or RECONSTRUCT reads, in the order of its input channels
  int64_t row = 0;               // of the table
  bool summed = false;           // a CONV that adds up, as it goes, the channels an exit averages
};

struct Stage {
  int src, dst;  // the buffers in which features enter and leave
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
  int margin = 0;          // zeros around each map, in pixels: as far as the largest convolution reaches
  int widest = 1;          // the most input channels of a Winograd convolution

  // table: [row_count][16]. weight_count: elements of the weight buffer.
  // Throws std::invalid_argument for a table that is malformed or points outside the buffers or the weights, so that
  // workers can trust a Program.
  Program(const int32_t* table, int64_t row_count, int64_t weight_count);

  // Upscaling factor of the whole program.
  int upscale() const { return reconstruct().upscale * buffers[reconstruct().src].resolution; }

  // 32-bit words that the weights of one group of output channels take in `layout`, for a convolution of `sources`.
  int64_t group_size(const Instruction& in, const Sources& sources, int32_t layout) const;

 private:
  int64_t kernel_elements(const Instruction& in, const Sources& sources) const override;
  void add(const Instruction& in, Sources sources) override;
  void note_reads(const Step& step);
};

// The layout of a RECONSTRUCT's kernels by border class.
inline int32_t edge_layout(const Instruction& in) { return in.layout() == kWinograd ? kDirect : in.layout(); }

}  // namespace ape::cpu
