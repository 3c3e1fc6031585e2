// Runs patch programs. Every worker takes one patch at a time and runs it through the whole network.
#pragma once

#include <cstdint>

#include "program.h"

namespace ape::cpu {

struct RunArgs {
  const float* weights;    // the packed weight buffer
  const float* patches;    // [count, C_in, height, width]
  const int64_t* exit_at;  // [count], the stage after which each patch leaves; null if the predictions decide
  float* sr;               // [count, C_out, s * height, s * width]
  int64_t* exit_index;     // [count]
  float* capacity;         // [count]
  int64_t count;
  int height, width;
  float boundary;
  int threads;
};

// The whole forward of every patch. Throws nothing but std::bad_alloc.
void run_patches(const Program& program, const RunArgs& args);

struct StageArgs {
  const float* weights;    // the packed weight buffer
  const float* features;   // [rows, C, height, width]
  const int64_t* active;   // [count], rows of `features`
  const int64_t* exit_at;  // [rows], or null
  float* out;              // [count, C, height, width]
  float* capacity;         // [count]
  bool* leaves;            // [count]
  int64_t count;
  int height, width;  // of the features: those of the patch times the resolution of the stage's buffers
  float boundary;
  int threads;
};

// One stage and its exit for the patches `active`. The results are in the order of `active`. Throws
// std::invalid_argument for a stage that does not exist.
void run_stage(const Program& program, int stage, const StageArgs& args);

}  // namespace ape::cpu
