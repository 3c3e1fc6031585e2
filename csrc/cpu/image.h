// Runs a program on whole images: tiles share feature maps, so the picture is the model's own.
#pragma once

#include <cstdint>

#include "kept.h"
#include "levels.h"
#include "program.h"

namespace ape::cpu {

struct ImageArgs {
  const float* weights;    // the packed weight buffer
  const int32_t* sharing;  // [rows of the table][2], reach and carry: see ape_kernels/sharing.py
  const float* folded;     // [count, C, height, width], what the program reads; null: `levels` has the image
  const int64_t* exit_at;  // [count, rows, columns] of cells; null: full depth
  float* sr;               // [count, O, upscale * height, upscale * width]; null: `levels` has the picture
  int64_t count;
  int height, width;
  int cell, ring;  // pixels of the program's input
  // What cells at -1 are interpolated from: [count, colour_channels, fold * height, fold * width], `scale` to the
  // picture; null: from `levels`.
  const float* colours;
  int colour_channels, scale;
  Levels levels;   // of one image, instead of floats
  int64_t* watch;  // parts done, parts there are, and whether to stop, which others may write; or null
  int threads;
  // Of the image before, or null. Then count is 1, and the picture holds what the run before with it has written: tiles
  // for which nothing changed are left as they are.
  Kept* kept = nullptr;
};

// Low-resolution pixels a side of the tiles in which images run.
int image_tile(const Program& program);

// Bytes that are kept of an image.
int64_t kept_bytes(const Program& program, const ImageArgs& args);

// Throws std::invalid_argument for a program or `sharing` that cannot run so, std::bad_alloc, std::runtime_error when
// it was to stop.
void run_image(const Program& program, const ImageArgs& args);

}  // namespace ape::cpu
