// What a launch of the worker kernel is told: one plain struct, passed by value.
#pragma once

#include <cstdint>

#include "../program.h"

namespace ape::cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 8;  // of a block
constexpr int kThreads = kWarps * kLanes;

constexpr int64_t kPoolBytes = 64 * 1024;  // of shared memory, for pooled sums and gates (steps.h)
constexpr int32_t kWhole = -1;             // in the place of a stage: the whole forward

// All pointers are device memory. P patches, of height x width low-resolution pixels; E is the element type of the
// weights and features: half, or float for exact runs.
struct WorkerArgs {
  const Instruction* rows;  // [row_count] the instruction table
  const void* weights;      // E [..] the weight buffer (docs/program.md, column cuda)
  void* scratch;            // E [blocks][scratch_elements * height * width] one arena of feature buffers a block
  int32_t* queue;           // [1] zero: how many patches have been taken

  // run_patches: patches [count, C_in, height, width]
  // run_stage:   features [input_rows, C, r * height, r * width], r the resolution of the stage's buffers
  const float* input;
  const int64_t* active;   // run_stage: [count] rows of `input`; null: the whole forward of every row
  const int64_t* exit_at;  // [P] or [input_rows] stage after which a patch leaves; null: where it is predicted
  // run_patches: pictures [count, out_channels, s * height, s * width]
  // run_stage:   features [count, C, r * height, r * width], in the order of `active`
  float* output;
  int64_t* exit_index;  // run_patches: [count] stage after which the patch left; else null
  float* capacity;      // [count] 1 - the last prediction, NaN before the first exit
  uint8_t* leaves;      // run_stage: [count] 1 where the patch leaves; else null

  int64_t scratch_elements;  // a low-resolution pixel's share of an arena
  int32_t count, input_rows;
  int32_t height, width;
  int32_t stage;      // run_stage: which; kWhole for run_patches
  int32_t first_row;  // of the table to run: after the BUFFER rows, or the STAGE row of `stage`
  int32_t tail_row;   // the TAIL row
  float boundary;
};

}  // namespace ape::cuda
