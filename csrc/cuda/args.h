// What launches of the kernels are told: plain structs, passed by value.
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

constexpr int kWindow = 48;                 // most pixels of a window's side
constexpr int kMostBuffers = 16;            // of a program that runs on images
constexpr int32_t kZeros = -1, kKeep = -2;  // in the place of a map to carry: zeros; what is there
constexpr int32_t kNever = -1;              // in the place of a stage

// A launch for whole images (window.h). All pointers are device memory.
struct ImageArgs {
  const Instruction* rows;  // [row_count] the instruction table
  const void* weights;      // E [..] as in WorkerArgs
  void* maps;               // E [images][map_elements * height * width] the feature buffers of each image
  const int64_t* exit_at;   // [images][cell_rows][cell_columns] stage that each cell runs to; null: compute all pixels
  float* output;            // [images][out_channels][s * height][s * width]

  int64_t map_elements;           // a low-resolution pixel's share of the maps of an image
  int32_t height, width;          // of the image
  int32_t first, last;            // rows of the table: SOURCE rows and their convolution, or a pair
  int32_t fused;                  // they are a pair
  int32_t map_height, map_width;  // of the map: of the image, times `resolution`
  int32_t resolution;
  int32_t margin;          // pixels of a window that are spoilt
  int32_t side_y, side_x;  // pixels of a window that are stored, at most
  int32_t across, down;    // windows
  int32_t border_blocks;   // blocks after the windows, for the border pixels of a RECONSTRUCT
  int32_t cell, cell_rows, cell_columns;
  int32_t stage, radius, ring;  // what is computed: so far around cells that run to `stage`, and their ring
  int32_t target, carry;        // places of the map written and of what stands where nothing is computed
  int32_t carry_stage,
      carry_ring;               // only pixels that ran in this stage are carried: the maps agree elsewhere; or kNever
  int32_t place[kMostBuffers];  // where each buffer begins, in elements per low-resolution pixel
};

}  // namespace ape::cuda
