// The instruction table as the launcher sees it on the host: checked, and what a launch needs to know of it.
#pragma once

#include <algorithm>

#include "../table.h"
#include "args.h"

namespace ape::cuda {

// A table that has passed is trusted by the kernel.
class Plan final : public Table {
 public:
  int64_t scratch_elements = 0;  // a low-resolution pixel's share of an arena
  // per low-resolution pixel, of a buffer; or the elements from a group of its channels to the next; or the pixels of a
  // channel of the picture
  int64_t most_cells = 1;

  // table: [row_count][16] on the host. weight_count: elements in the weight buffer, of ElementType `element`.
  Plan(const int32_t* table, int64_t row_count, int64_t weight_count, int element)
      : Table(table, row_count, weight_count, int(sizeof(float)) / bytes_of(element)) {
    check();
  }

  // The buffer that the input goes to: that of `stage`, or the patch itself for kWhole. Refuses stages there are not.
  const Instruction& input_buffer(int number) const { return rows[number == kWhole ? 0 : stage(number).src]; }

 private:
  int64_t kernel_elements(const Instruction& in, const Sources& sources) const override {
    require(in.layout() == 0, "unknown layout of the weights");
    int64_t channels = 0;
    for (int32_t source : sources) channels += ape::padded(buffer(source).in_channels);
    return variants(in) * ape::padded(in.out_channels) * in.kernel * in.kernel * channels;
  }

  void add(const Instruction& in, Sources sources) override {
    switch (in.opcode) {
      case kBuffer: {
        const int64_t elements = ape::padded(in.in_channels) * in.resolution() * in.resolution();
        require(in.arena_offset() == scratch_elements, "a buffer lies after the one before");
        scratch_elements += elements;
        // all cells are counted in 32 bits, and so are the elements from a group of channels to the next
        most_cells = std::max({most_cells, elements / 8, int64_t(8) * in.resolution() * in.resolution()});
        break;
      }
      case kConv:
        if (at() > 0 && rows[at() - 1].opcode == kConv && rows[at() - 1].fused) check_fused(rows[at() - 1], in);
        if (!in.fused) break;
        require(follows(kConv), "fused with no convolution");
        require(sources.size() == 1, "fused with several sources");
        break;
      case kExit:
        check_pooled(in.in_channels, 0);
        break;
      case kAttention:
        check_pooled(in.in_channels, in.hidden);
        break;
      case kReconstruct: {
        const int64_t factor = int64_t(buffer(in.src).resolution()) * in.upscale;
        most_cells = std::max(most_cells, factor * factor);
        break;
      }
    }
  }

  // Two rows that the kernel runs as one: conv, activation, conv, then an activation or the sum with the input.
  void check_fused(const Instruction& one, const Instruction& two) const {
    require(one.kernel == 3 && two.kernel == 3 && one.in_channels == one.out_channels &&
                two.in_channels == two.out_channels && two.src == one.dst && two.dst != one.dst && !two.fused &&
                one.scale() == 1.0f && two.scale() == 1.0f && one.add == kNoBuffer &&
                (two.add == kNoBuffer || (two.add == one.src && two.activation == kNone)),
            "not what can be fused with the row before");
  }

  void check_pooled(int64_t channels, int64_t hidden) const {
    require((2 * ape::padded(channels) + hidden) * int64_t(sizeof(float)) <= kPoolBytes,
            "more channels than can be pooled");
  }
};

}  // namespace ape::cuda
