// A call of the worker as Python makes it: addresses as integers, sizes, and the table on the host.
#pragma once

#include <limits>

#include "plan.h"

namespace ape::cuda {

struct Request {
  uintptr_t table;  // int32 [table_rows][16] on the host; a copy ends the weight buffer
  int64_t table_rows;
  uintptr_t weights;  // [weight_count] elements
  int64_t weight_count;
  int64_t element;  // ElementType
  int64_t stage;    // or kWhole
  uintptr_t input;  // this and the pointers below: see WorkerArgs
  int64_t input_rows;
  uintptr_t active;
  uintptr_t exit_at;
  uintptr_t output;
  uintptr_t exit_index;
  uintptr_t capacity;
  uintptr_t leaves;
  uintptr_t scratch;
  uintptr_t queue;
  int64_t blocks;
  int64_t count;
  int64_t height, width;  // low-resolution
  double boundary;
};

// Elements of the weight buffer that the copy of the table takes.
inline int64_t table_elements(int64_t table_rows, int element) {
  return table_rows * int64_t(sizeof(Instruction)) / bytes_of(element);
}

// Throws std::invalid_argument for a malformed table.
inline Plan plan_of(uintptr_t table, int64_t table_rows, int64_t weight_count, int element) {
  if (weight_count % 16)
    throw std::invalid_argument("weights: expected a multiple of 16 elements, got " + std::to_string(weight_count));
  return {reinterpret_cast<const int32_t*>(table), table_rows, weight_count - table_elements(table_rows, element),
          element};
}

// Throws std::invalid_argument for what the kernel could not count or address.
inline void check(const Request& request, const Plan& plan) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - kThreads;  // loops step past their end by a block
  const auto within = [](const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(least) + " to " +
                                  std::to_string(most) + ", got " + std::to_string(value));
  };
  const auto aligned = [](const char* name, uintptr_t address) {
    if (address % 16) throw std::invalid_argument(std::string(name) + ": expected memory aligned to 16 bytes");
  };
  plan.input_buffer(int(request.stage));
  within("count", request.count, 0, kMost);
  within("input_rows", request.input_rows, 0, kMost);
  within("blocks", request.blocks, 0, kMost - request.count);  // the queue counts a patch too many for each
  within("height", request.height, 1, kMost);
  within("width", request.width, 1, kMost / request.height);
  within("height * width", request.height * request.width, 1, kMost / plan.most_cells);
  aligned("weights", request.weights);
  aligned("scratch", request.scratch);
}

// Throws std::invalid_argument as `check` does.
inline WorkerArgs args_of(const Request& request, const Plan& plan) {
  check(request, plan);
  const int64_t size = bytes_of(request.element);
  const int64_t rows_at = request.weight_count - table_elements(request.table_rows, request.element);
  WorkerArgs args{};
  args.rows = reinterpret_cast<const Instruction*>(request.weights + rows_at * size);
  args.weights = reinterpret_cast<const void*>(request.weights);
  args.scratch = reinterpret_cast<void*>(request.scratch);
  args.queue = reinterpret_cast<int32_t*>(request.queue);
  args.input = reinterpret_cast<const float*>(request.input);
  args.active = reinterpret_cast<const int64_t*>(request.active);
  args.exit_at = reinterpret_cast<const int64_t*>(request.exit_at);
  args.output = reinterpret_cast<float*>(request.output);
  args.exit_index = reinterpret_cast<int64_t*>(request.exit_index);
  args.capacity = reinterpret_cast<float*>(request.capacity);
  args.leaves = reinterpret_cast<uint8_t*>(request.leaves);
  args.scratch_elements = plan.scratch_elements;
  args.count = int32_t(request.count);
  args.input_rows = int32_t(request.input_rows);
  args.height = int32_t(request.height);
  args.width = int32_t(request.width);
  args.stage = int32_t(request.stage);
  args.first_row = request.stage == kWhole ? plan.buffer_count : plan.stage_rows[request.stage];
  args.tail_row = plan.tail_row;
  args.boundary = float(request.boundary);
  return args;
}

}  // namespace ape::cuda
