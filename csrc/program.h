// The packed patch program: int32 instruction table and weight buffer (docs/program.md).
#pragma once

#include <cstdint>
#include <cstring>

namespace ape {

enum Opcode : int32_t { BUFFER = 0, STAGE = 1, TAIL = 2, CONV = 3, EXIT = 4, RECONSTRUCT = 5 };

enum Activation : int32_t { NO_ACTIVATION = 0, RELU = 1 };

// Border classes of a pixel along one axis; they pick the kernel of a RECONSTRUCT.
enum BorderClass : int32_t { INTERIOR = 0, FIRST = 1, LAST = 2, ONLY = 3, BORDER_CLASSES = 4 };

constexpr int32_t NO_BUFFER = -1;

// One row of the table.
struct Instruction {
  int32_t opcode;
  int32_t src;
  int32_t dst;
  int32_t add;
  int32_t in_channels;
  int32_t out_channels;
  int32_t kernel;
  int32_t activation;
  int32_t scale_bits;
  int32_t weight;  // offsets into the weight buffer, elements
  int32_t bias;
  int32_t upscale;

  float scale() const {
    float value;
    std::memcpy(&value, &scale_bits, sizeof value);
    return value;
  }
};
static_assert(sizeof(Instruction) == 12 * sizeof(int32_t), "a row has twelve columns");

}  // namespace ape
