#include "program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ape::cpu {
namespace {

struct Checker {
  const Program& program;
  int64_t weight_count;
  int64_t row;

  void require(bool condition, const char* what) const {
    if (!condition) throw std::invalid_argument("table: row " + std::to_string(row) + ": " + what);
  }

  void buffer(int32_t number, int64_t channels) const {
    require(number >= 0 && number < int64_t(program.channels.size()), "no such buffer");
    require(program.channels[number] == channels, "channels differ from the buffer's");
  }

  void weights(const Instruction& in, int64_t weight, int64_t bias) const {
    require(in.weight >= 0 && in.weight + weight <= weight_count, "weights outside the weight buffer");
    require(in.bias >= 0 && in.bias + bias <= weight_count, "bias outside the weight buffer");
  }

  void conv(const Instruction& in) const {
    require(in.kernel == 1 || in.kernel == 3 || in.kernel == 5, "kernel: expected 1, 3 or 5");
    require(in.activation == NO_ACTIVATION || in.activation == RELU, "unknown activation");
    require(in.src != in.dst, "a convolution cannot write the buffer it reads");
    buffer(in.src, in.in_channels);
    buffer(in.dst, in.out_channels);
    if (in.add != NO_BUFFER) buffer(in.add, in.out_channels);
    weights(in, padded(in.out_channels) * in.kernel * in.kernel * in.in_channels, padded(in.out_channels));
  }

  void exit(const Instruction& in) const {
    require(!program.stages.empty() && !program.stages.back().has_exit, "an exit ends a stage");
    buffer(in.src, in.in_channels);
    weights(in, in.in_channels, 1);
  }

  void reconstruct(const Instruction& in) const {
    require(in.kernel == 5, "kernel: expected 5");
    require(in.upscale >= 1 && in.out_channels % (in.upscale * in.upscale) == 0, "channels do not shuffle");
    buffer(in.src, in.in_channels);
    const int64_t phases = padded(in.out_channels);
    const int64_t variants = BORDER_CLASSES * BORDER_CLASSES;
    weights(in, variants * phases * in.kernel * in.kernel * in.in_channels, variants * phases);
  }
};

}  // namespace

Program::Program(const int32_t* table, int64_t rows, int64_t weight_count) {
  bool in_tail = false;
  Checker check{*this, weight_count, 0};
  for (int64_t row = 0; row < rows; row++) {
    check.row = row;
    Instruction in;
    std::memcpy(&in, table + row * (sizeof in / sizeof(int32_t)), sizeof in);
    std::vector<Instruction>& section = in_tail ? tail : stages.empty() ? head : stages.back().steps;
    switch (in.opcode) {
      case BUFFER:
        check.require(in.src == int32_t(channels.size()) && in.in_channels >= 1, "buffers come first, in order");
        channels.push_back(in.in_channels);
        break;
      case STAGE:
        check.require(!in_tail, "a stage after the tail");
        check.require(in.src >= 0 && in.src < int64_t(channels.size()), "no such buffer");
        check.buffer(in.dst, channels[in.src]);
        stages.push_back({in.src, in.dst, {}});
        break;
      case TAIL:
        check.require(!stages.empty() && !in_tail, "the tail follows the stages");
        in_tail = true;
        break;
      case CONV:
        check.conv(in);
        section.push_back(in);
        break;
      case EXIT:
        check.exit(in);
        stages.back().has_exit = true;
        stages.back().exit = in;
        break;
      case RECONSTRUCT:
        check.require(in_tail && row == rows - 1, "the reconstruction ends the tail");
        check.reconstruct(in);
        section.push_back(in);
        break;
      default:
        check.require(false, "unknown opcode");
    }
    border = std::max(border, in.kernel / 2);
  }
  check.require(!tail.empty() && tail.back().opcode == RECONSTRUCT, "the reconstruction ends the tail");
}

}  // namespace ape::cpu
