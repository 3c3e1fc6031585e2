// The packed patch program: int32 instruction table and weight buffer (docs/program.md).
#pragma once

#include <cstdint>
#include <cstring>

namespace ape {

enum Opcode : int32_t {
  BUFFER = 0,
  STAGE = 1,
  TAIL = 2,
  CONV = 3,
  EXIT = 4,
  RECONSTRUCT = 5,
  SOURCE = 6,
  UPSAMPLE = 7,
  ATTENTION = 8,
  MODULE = 9,  // runs in PyTorch only
};

enum Activation : int32_t { NO_ACTIVATION = 0, RELU = 1, PRELU = 2 };

enum Interpolation : int32_t { NEAREST = 0, BICUBIC = 1 };

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
  int32_t slope;
  int32_t hidden;
  int32_t mode;
  int32_t fused;  // CONV: its result is read by the CONV that follows and by nothing else

  float scale() const {
    float value;
    std::memcpy(&value, &scale_bits, sizeof value);
    return value;
  }
};
static_assert(sizeof(Instruction) == 16 * sizeof(int32_t), "a row has sixteen columns");

}  // namespace ape
