// The instruction table as a backend receives it. It is checked here, so that kernels can trust it.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace ape {

// Channels, rounded up to a multiple of 16. The native backends pad their weights like this.
inline int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

// The checks that all native backends share. A table with which a kernel would read or write outside its memory throws
// std::invalid_argument. A backend derives from this class. Its constructor calls `check`, and its `add` may check
// more.
class Table {
 public:
  std::vector<Instruction> rows;
  int buffer_count = 0;         // BUFFER rows; they come first
  std::vector<int> stage_rows;  // the row number of each STAGE
  int tail_row = -1;

  // The STAGE row of stage `number`, counted from 0. Throws std::invalid_argument for a stage that does not exist.
  const Instruction& stage(int number) const {
    const int count = static_cast<int>(stage_rows.size());
    if (number < 0 || number >= count)
      throw std::invalid_argument("stage: expected 0 to " + std::to_string(count - 1) + ", got " +
                                  std::to_string(number));
    return rows[stage_rows[number]];
  }
  const Instruction& reconstruct() const { return rows.back(); }

 protected:
  using Sources = std::vector<int32_t>;  // the buffers that a convolution reads, in the order of its input channels

  // table: [row_count][16]. weight_count: elements of the weight buffer. float_elements: elements per float32 value.
  Table(const int32_t* table, int64_t row_count, int64_t weight_count, int float_elements)
      : rows(row_count), weight_count_(weight_count), float_elements_(float_elements) {
    if (row_count) std::memcpy(rows.data(), table, row_count * sizeof(Instruction));
  }
  ~Table() = default;

  void check() {
    const int64_t count = static_cast<int64_t>(rows.size());
    for (at_ = 0; at_ < count; ++at_) check(rows[at_]);
    at_ = count - 1;
    require(tail_row >= 0 && reconstruct().opcode == kReconstruct, "the reconstruction ends the tail");
  }

  // Elements that the weights of a CONV or RECONSTRUCT take in the weight buffer.
  virtual int64_t kernel_elements(const Instruction& in, const Sources& sources) const = 0;
  // Called for each row after its checks. SOURCE rows have no call of their own: they come as `sources` of their CONV.
  virtual void add(const Instruction& in, Sources sources) = 0;

  // The number of the row that is being checked, and whether the next row has this opcode.
  int64_t at() const { return at_; }
  bool follows(int32_t opcode) const {
    return at_ + 1 < static_cast<int64_t>(rows.size()) && rows[at_ + 1].opcode == opcode;
  }
  void require(bool condition, const char* what) const {
    if (!condition) throw std::invalid_argument("table: row " + std::to_string(at_) + ": " + what);
  }
  const Instruction& buffer(int32_t number) const {
    require(number >= 0 && number < buffer_count, "no such buffer");
    return rows[number];
  }
  // The number of kernels of a CONV or RECONSTRUCT: one, or one per pair of border classes.
  static int64_t variants(const Instruction& in) {
    return in.has_border_classes() ? kBorderClasses * kBorderClasses : 1;
  }

 private:
  static constexpr int kMostChannels = 65536;  // of a buffer: then products of sizes stay within 64 bits
  static constexpr int kMostUpscale = 64;      // then its square stays within 32 bits
  int64_t weight_count_, float_elements_;
  int64_t at_ = 0;
  Sources sources_;  // of the convolution whose rows are being checked

  void fits(int32_t number, int64_t channels, int resolution) const {
    require(buffer(number).in_channels == channels, "channels differ from the buffer's");
    require(buffer(number).resolution() == resolution, "resolutions differ");
  }
  void fits_added(const Instruction& in, int64_t channels, int resolution) const {
    if (in.add != kNoBuffer) fits(in.add, channels, resolution);
  }
  void elements(int32_t offset, int64_t count, const char* what) const {
    require(offset >= 0 && offset % kWeightAlignment == 0 && offset + count <= weight_count_, what);
  }
  // The same for values that are float32 whatever the type of the elements.
  void floats(int32_t offset, int64_t count, const char* what) const {
    elements(offset, count * float_elements_, what);
  }
  void weights_and_biases(const Instruction& in, int64_t weights, int64_t biases) const {
    elements(in.weight, weights, "weights outside the weight buffer");
    floats(in.bias, biases, "bias outside the weight buffer");
  }

  void check(const Instruction& in) {
    require(sources_.empty() || in.opcode == kSource || in.opcode == kConv, "a source without its convolution");
    switch (in.opcode) {
      case kBuffer:
        require(in.src == buffer_count && at_ == buffer_count, "buffers come first, in order");
        require(in.in_channels >= 1 && in.in_channels <= kMostChannels, "channels: expected 1 to 65536");
        require(in.resolution() >= 1 && in.resolution() <= kMostUpscale, "resolution: expected 1 to 64");
        ++buffer_count;
        break;
      case kStage:
        require(tail_row < 0, "a stage after the tail");
        fits(in.dst, buffer(in.src).in_channels, buffer(in.src).resolution());
        if (!stage_rows.empty()) {
          const int32_t before = rows[stage_rows.back()].dst;
          require(in.src == before && in.dst == before, "stages hand on in one buffer");
        }
        stage_rows.push_back(static_cast<int>(at_));
        break;
      case kTail:
        require(!stage_rows.empty() && tail_row < 0, "the tail follows the stages");
        tail_row = static_cast<int>(at_);
        break;
      case kSource:
        buffer(in.src);
        sources_.push_back(in.src);
        return;
      case kConv:
        sources_.push_back(in.src);
        conv(in);
        break;
      case kUpsample:
        require(in.interpolation() == kNearest || in.interpolation() == kBicubic, "unknown interpolation");
        require(in.upscale >= 1 && in.upscale <= kMostUpscale, "upscale: expected 1 to 64");
        fits(in.dst, buffer(in.src).in_channels, buffer(in.src).resolution() * in.upscale);
        require(in.dst != in.src, "an interpolation cannot write the buffer it reads");
        break;
      case kAttention:
        attention(in);
        break;
      case kExit:
        require(!stage_rows.empty() && (follows(kStage) || follows(kTail)), "an exit ends a stage");
        fits(in.src, in.in_channels, buffer(in.src).resolution());
        weights_and_biases(in, in.in_channels * float_elements_, 1);
        break;
      case kReconstruct:
        require(tail_row >= 0 && at_ + 1 == static_cast<int64_t>(rows.size()), "the reconstruction ends the tail");
        sources_.push_back(in.src);
        reconstruct(in);
        break;
      default:
        require(false, "unknown opcode");
    }
    add(in, std::move(sources_));
    sources_.clear();
  }

  void conv(const Instruction& in) const {
    taps(in);
    require(!in.has_border_classes(), "a convolution has no border classes");
    require(in.activation >= kNone && in.activation <= kPrelu, "unknown activation");
    const int resolution = buffer(in.dst).resolution();
    int64_t channels = 0;
    for (int32_t source : sources_) {
      require(source != in.dst, "a convolution cannot write the buffer it reads");
      channels += buffer(source).in_channels;
      fits(source, buffer(source).in_channels, resolution);
    }
    require(channels == in.in_channels, "channels differ from the buffer's");
    fits(in.dst, in.out_channels, resolution);
    fits_added(in, in.out_channels, resolution);
    weights_and_biases(in, kernel_elements(in, sources_), padded(in.out_channels));
    if (in.activation == kPrelu) floats(in.slope, padded(in.out_channels), "slopes outside the weight buffer");
  }

  void taps(const Instruction& in) const {
    require(in.kernel == 1 || in.kernel == 3 || in.kernel == 5, "kernel: expected 1, 3 or 5");
  }

  void attention(const Instruction& in) const {
    const int resolution = buffer(in.src).resolution();
    fits(in.src, in.in_channels, resolution);
    fits(in.dst, in.in_channels, resolution);
    fits_added(in, in.in_channels, resolution);
    require(in.hidden >= 1, "hidden: expected at least 1");
    const int64_t hidden = in.hidden;
    weights_and_biases(in, 2 * hidden * in.in_channels * float_elements_, hidden + in.in_channels);
  }

  void reconstruct(const Instruction& in) const {
    taps(in);
    require(in.upscale >= 1 && in.upscale <= kMostUpscale && in.out_channels >= 1 &&
                in.out_channels % (in.upscale * in.upscale) == 0,
            "channels do not shuffle");
    const int resolution = buffer(in.src).resolution();
    fits(in.src, in.in_channels, resolution);
    fits_added(in, in.picture_channels(), resolution * in.upscale);
    weights_and_biases(in, kernel_elements(in, sources_), variants(in) * padded(in.out_channels));
  }
};

}  // namespace ape
