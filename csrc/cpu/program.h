// The instruction table taken apart and checked, ready to run.
#pragma once

#include <vector>

#include "../program.h"
#include "kernels.h"

namespace ape::cpu {

// Channels of a buffer as stored: whole groups of output channels.
inline int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

struct Stage {
  int src, dst;  // buffers that features enter and leave in
  std::vector<Instruction> steps;
  bool has_exit = false;
  Instruction exit{};
};

struct Program {
  std::vector<int> channels;  // of each buffer
  std::vector<Instruction> head;
  std::vector<Stage> stages;
  std::vector<Instruction> tail;  // ends in the RECONSTRUCT
  int border = 0;                 // widest zero border a convolution reads

  // table: [rows][12]; weight_count: elements in the weight buffer.
  // Throws std::invalid_argument for a table that is malformed or points outside buffers or weights:
  // the worker trusts a Program.
  Program(const int32_t* table, int64_t rows, int64_t weight_count);
};

}  // namespace ape::cpu
