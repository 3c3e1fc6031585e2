// The order in which a program's steps run on a part of an image, and where each of them runs.
//
// An image is cut into tiles. A worker carries a tile through the whole network, and the tile moves: each step runs as
// far up and to the left of the step before as its kernel reads. So what a step reads below and to the right of its
// tile has been computed by the step before, and what it reads above and to the left was computed by the tiles there,
// which hand on a few rows and columns of each result. Nothing is computed twice, and no step waits for a tile that
// comes later. Tiles at the image's edge are cut off by it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "program.h"

namespace ape::cpu {

enum class Section { kHead, kStages, kTail };

struct Move {
  Step step;
  Section section;
  int stage;       // whose cells run it; 0 in head and tail: cells that run at all
  int resolution;  // of the step's destination; of the reconstruction: of its source
  int reach;       // pixels around those cells, and what stands elsewhere: see ape_kernels/sharing.py
  int32_t carry;
  int shift = 0;              // pixels by which the tile has moved up and to the left
  int keep = 0;               // pixels above and to the left of the tile that later steps read
  int slide = 0;              // low-resolution pixels by which the window moves before this step
  std::vector<int32_t> live;  // the buffers that must be kept then

  bool reconstructs() const { return step.in.opcode == kReconstruct; }
  int factor() const { return step.in.opcode == kUpsample ? step.in.upscale : 1; }
  // Pixels of the sources that it reads around each of its own.
  int radius() const;
  bool has_source(int32_t buffer) const;
  // Whether the pixels that are not computed must be what they were before.
  bool renews() const { return !reconstructs() && carry == step.in.dst && step.in.add == step.in.dst; }
  bool reads(int32_t buffer) const;
};

class Course {
 public:
  std::vector<Move> moves;  // the reconstruction comes last
  int lead = 0;             // low-resolution pixels of the window around a tile: above and to the left,
  int rest = 0;             // below and to the right

  // sharing: [rows of the table][2], reach and carry. Throws std::invalid_argument for a program that cannot run so.
  Course(const Program& program, const int32_t* sharing);

 private:
  void add_needed(const Program& program, const int32_t* sharing, std::vector<bool> needed);
  void add(const Program& program, const int32_t* sharing, const Step& step, Section section, int stage);
  void set_shifts(size_t buffers);
  void set_keeps();
  void set_window(size_t buffers);
};

// The pixels of a step's destination, of an image of height x width low-resolution pixels, in the tile of `size`
// low-resolution pixels a side that begins at (top, left).
inline Area tile_of(const Move& move, int top, int left, int size, int height, int width) {
  const auto clip = [](int value, int limit) { return value < 0 ? 0 : value > limit ? limit : value; };
  const int q = move.resolution;
  const int y0 = clip(top * q - move.shift, height * q), y1 = clip((top + size) * q - move.shift, height * q);
  const int x0 = clip(left * q - move.shift, width * q), x1 = clip((left + size) * q - move.shift, width * q);
  return {y0, x0, y1 - y0, x1 - x0};
}

}  // namespace ape::cpu
