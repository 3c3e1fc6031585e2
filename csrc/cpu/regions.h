// Which pixels of a part of an image a step has to compute.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace ape::cpu {

// How far each cell of one image runs: cells of `size` low-resolution pixels a side, the last cut off by the edge.
struct Cells {
  const int64_t* exit_at;  // [rows][columns], -1 where nothing runs; null: full depth everywhere
  int rows, columns, size;

  bool everywhere() const { return exit_at == nullptr; }
};

// The pixels of `area`, of a map at `resolution`, that are at most `around` pixels from a cell that runs to `stage` at
// least, as rectangles that do not overlap.
std::vector<Area> active_parts(const Cells& cells, int64_t stage, int around, const Area& area, int resolution);

// What two rectangles have in common; empty if they have nothing.
Area overlap(const Area& a, const Area& b);

// What is left of `area` without `parts`, which lie in it and do not overlap.
std::vector<Area> other_parts(const Area& area, const std::vector<Area>& parts);

}  // namespace ape::cpu
