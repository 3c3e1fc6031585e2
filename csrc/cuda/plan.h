// The instruction table as the launcher sees it on the host: checked, and what a launch needs to know of it.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "args.h"

namespace ape::cuda {

enum ElementType : int { kFloatElements = 0, kHalfElements = 1 };

// What the checks throw std::invalid_argument for is what would make the kernel read or write outside its memory; the
// kernel trusts a table that has passed.
class Plan {
 public:
  std::vector<int> stage_rows;  // row of each STAGE
  int first_row = 0;            // after the BUFFER rows
  int tail_row = -1;
  int64_t scratch_elements = 0;  // a low-resolution pixel's share of an arena
  int64_t most_cells = 1;        // of a buffer or the pixels of a picture's channel, a low-resolution pixel

  // table: [rows][16] on the host. weight_count: elements in the weight buffer, element: ElementType.
  Plan(const int32_t* table, int64_t rows, int64_t weight_count, int element)
      : rows_(rows), weight_count_(weight_count), vector_size_(element == kHalfElements ? 2 : 1) {
    instructions_.resize(rows);
    if (rows) std::memcpy(instructions_.data(), table, rows * sizeof(Instruction));
    std::vector<int32_t> sources;
    for (at_ = 0; at_ < rows; ++at_) check(instructions_[at_], sources);
    at_ = rows - 1;
    require(tail_row >= 0 && instructions_.back().opcode == RECONSTRUCT, "the reconstruction ends the tail");
  }

  const Instruction& row(int64_t number) const { return instructions_[number]; }

  // The buffer that the input goes to: that of `stage`, or the patch itself for WHOLE. Refuses stages there are not.
  const Instruction& input_buffer(int stage) const {
    const int count = static_cast<int>(stage_rows.size());
    if (stage != WHOLE && (stage < 0 || stage >= count))
      throw std::invalid_argument("stage: expected 0 to " + std::to_string(count - 1) + ", got " +
                                  std::to_string(stage));
    return row(stage == WHOLE ? 0 : row(stage_rows[stage]).src);
  }

 private:
  static constexpr int kMostUpscale = 64;  // squares of it are far from what an int holds
  int64_t rows_, weight_count_, vector_size_;
  int64_t at_ = 0;
  int buffers_ = 0;
  bool has_exit_ = false;
  std::vector<Instruction> instructions_;

  void require(bool condition, const char* what) const {
    if (!condition) throw std::invalid_argument("table: row " + std::to_string(at_) + ": " + what);
  }
  static int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

  const Instruction& buffer(int32_t number) const {
    require(number >= 0 && number < buffers_, "no such buffer");
    return instructions_[number];
  }
  void fits(int32_t number, int64_t channels, int resolution) const {
    require(buffer(number).in_channels == channels, "channels differ from the buffer's");
    require(buffer(number).upscale == resolution, "resolutions differ");
  }
  // float32 values, as stored among the elements
  void vector(int32_t offset, int64_t count, const char* what) const {
    require(offset >= 0 && offset % 16 == 0 && offset + count * vector_size_ <= weight_count_, what);
  }
  void units(int32_t offset, int64_t count) const {
    require(offset >= 0 && offset % 16 == 0 && offset + count <= weight_count_, "weights outside the weight buffer");
  }

  void check(const Instruction& in, std::vector<int32_t>& sources) {
    require(sources.empty() || in.opcode == SOURCE || in.opcode == CONV, "a source without its convolution");
    switch (in.opcode) {
      case BUFFER:
        require(in.src == buffers_ && at_ == buffers_, "buffers come first, in order");
        require(in.in_channels >= 1 && in.upscale >= 1, "a buffer has channels and a resolution");
        require(in.weight == scratch_elements, "a buffer lies after the one before");
        require(in.upscale <= kMostUpscale, "resolution: expected at most 64");
        scratch_elements += padded(in.in_channels) * in.upscale * in.upscale;
        most_cells = std::max(most_cells, padded(in.in_channels) / 8 * in.upscale * in.upscale);
        first_row = ++buffers_;
        break;
      case STAGE: {
        require(tail_row < 0, "a stage after the tail");
        fits(in.dst, buffer(in.src).in_channels, buffer(in.src).upscale);
        if (!stage_rows.empty()) {
          const int32_t before = instructions_[stage_rows.back()].dst;
          require(in.src == before && in.dst == before, "stages hand on in one buffer");
        }
        stage_rows.push_back(static_cast<int>(at_));
        has_exit_ = false;
        break;
      }
      case TAIL:
        require(!stage_rows.empty() && tail_row < 0, "the tail follows the stages");
        tail_row = static_cast<int>(at_);
        break;
      case SOURCE:
        buffer(in.src);
        sources.push_back(in.src);
        break;
      case CONV:
        sources.push_back(in.src);
        conv(in, sources);
        sources.clear();
        break;
      case UPSAMPLE:
        require(in.mode == NEAREST || in.mode == BICUBIC, "unknown interpolation");
        require(in.upscale >= 1, "upscale: expected at least 1");
        fits(in.dst, buffer(in.src).in_channels, buffer(in.src).upscale * in.upscale);
        require(in.dst != in.src, "an interpolation cannot write the buffer it reads");
        break;
      case ATTENTION:
        attention(in);
        break;
      case EXIT:
        require(!stage_rows.empty() && tail_row < 0 && !has_exit_, "an exit ends a stage");
        has_exit_ = true;
        fits(in.src, in.in_channels, buffer(in.src).upscale);
        pooled(in.in_channels, 0);
        vector(in.weight, in.in_channels, "weights outside the weight buffer");
        vector(in.bias, 1, "bias outside the weight buffer");
        break;
      case RECONSTRUCT:
        require(tail_row >= 0 && at_ == rows_ - 1, "the reconstruction ends the tail");
        reconstruct(in);
        break;
      default:
        require(false, "unknown opcode");
    }
  }

  void conv(const Instruction& in, const std::vector<int32_t>& sources) const {
    require(in.kernel == 1 || in.kernel == 3 || in.kernel == 5, "kernel: expected 1, 3 or 5");
    require(in.activation >= NO_ACTIVATION && in.activation <= PRELU, "unknown activation");
    const int resolution = buffer(in.dst).upscale;
    int64_t channels = 0, stored = 0;
    for (int32_t source : sources) {
      require(source != in.dst, "a convolution cannot write the buffer it reads");
      fits(source, buffer(source).in_channels, resolution);
      channels += buffer(source).in_channels;
      stored += padded(buffer(source).in_channels);
    }
    require(channels == in.in_channels, "channels differ from the buffer's");
    fits(in.dst, in.out_channels, resolution);
    if (in.add != NO_BUFFER) fits(in.add, in.out_channels, resolution);
    units(in.weight, padded(in.out_channels) * in.kernel * in.kernel * stored);
    vector(in.bias, padded(in.out_channels), "bias outside the weight buffer");
    if (at_ > 0 && row(at_ - 1).opcode == CONV && row(at_ - 1).fused) fused(row(at_ - 1), in);
    require(!in.fused || (at_ + 1 < rows_ && row(at_ + 1).opcode == CONV), "fused with no convolution");
    if (in.activation == PRELU) vector(in.slope, padded(in.out_channels), "slopes outside the weight buffer");
  }

  // Two rows that the kernel runs as one: conv, activation, conv, then an activation or the sum with the input.
  void fused(const Instruction& one, const Instruction& two) const {
    require(one.kernel == 3 && two.kernel == 3 && one.in_channels == one.out_channels &&
                two.in_channels == two.out_channels && two.src == one.dst && two.dst != one.dst && !two.fused &&
                (at_ < 2 || row(at_ - 2).opcode != SOURCE) && one.scale() == 1.0f && two.scale() == 1.0f &&
                one.add == NO_BUFFER &&
                (two.add == NO_BUFFER || (two.add == one.src && two.activation == NO_ACTIVATION)),
            "not what can be fused with the row before");
  }

  void attention(const Instruction& in) const {
    const int resolution = buffer(in.src).upscale;
    fits(in.src, in.in_channels, resolution);
    fits(in.dst, in.in_channels, resolution);
    if (in.add != NO_BUFFER) fits(in.add, in.in_channels, resolution);
    require(in.hidden >= 1, "hidden: expected at least 1");
    pooled(in.in_channels, in.hidden);
    vector(in.weight, 2 * int64_t(in.hidden) * in.in_channels, "weights outside the weight buffer");
    vector(in.bias, int64_t(in.hidden) + in.in_channels, "bias outside the weight buffer");
  }

  void pooled(int64_t channels, int64_t hidden) const {
    require((2 * padded(channels) + hidden) * int64_t(sizeof(float)) <= kPoolBytes, "more channels than can be pooled");
  }

  void reconstruct(const Instruction& in) {
    require(in.kernel == 1 || in.kernel == 3 || in.kernel == 5, "kernel: expected 1, 3 or 5");
    require(in.mode == 0 || in.mode == 1, "unknown mode");
    require(in.upscale >= 1 && in.upscale <= kMostUpscale && in.out_channels >= 1 &&
                in.out_channels % (in.upscale * in.upscale) == 0,
            "channels do not shuffle");
    const int resolution = buffer(in.src).upscale;
    most_cells = std::max(most_cells, int64_t(resolution) * in.upscale * resolution * in.upscale);
    fits(in.src, in.in_channels, resolution);
    if (in.add != NO_BUFFER) fits(in.add, in.out_channels / (in.upscale * in.upscale), resolution * in.upscale);
    const int64_t variants = in.mode ? BORDER_CLASSES * BORDER_CLASSES : 1, phases = padded(in.out_channels);
    units(in.weight, variants * phases * in.kernel * in.kernel * padded(in.in_channels));
    vector(in.bias, variants * phases, "bias outside the weight buffer");
  }
};

}  // namespace ape::cuda
