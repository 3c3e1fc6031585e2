// What tiles of an image hand on to the tiles to their right and below: the last columns and rows of each step's
// result.
#pragma once

#include <vector>

#include "course.h"
#include "maps.h"

namespace ape::cpu {

// Where a tile begins: low-resolution pixels, and the numbers of its row and column of tiles.
struct Tile {
  int row, column, top, left;
};

// What steps keep for the tiles that follow: the last rows and the last columns of tiles. The columns begin `keep`
// pixels above the tile, so that the corner is handed on to the right. Where an image is run once, rows are kept of one
// row of tiles, and columns of the latest tile of some rows (`slots`): the tile that reads a strip writes its own in
// its place. Where they are kept for the next image, each tile has places of its own.
class Strips {
 public:
  // rows, columns: of tiles. slots: 0 if each tile has places of its own; then memory is handed in (`lie`).
  Strips(const Program& program, const Course& course, int tile, int rows, int columns, int slots);

  int64_t float_count() const { return float_count_; }
  int64_t rounded_count() const { return rounded_count_; }
  // Where they are: so many elements.
  void lie(float* floats, bf16* rounded) { floats_ = floats, rounded_ = rounded; }

  // The rows above and the columns to the left of a tile, from strips to the maps: what step `number` made. Those that
  // are not wanted are cleared.
  void take(int number, const Tile& tile, bool above, bool left, const FeatureMap& map) const;
  // The last rows and columns of the tile's own, from the map to the strips. compare: whether to tell if they differ
  // from what was there.
  bool give(int number, const Tile& tile, const FeatureMap& map, bool compare) const;

 private:
  // Where a step computes a tile, not cut off by the image's edge.
  struct Span {
    int top, left, size, keep;

    Area above() const { return {top - keep, left, keep, size}; }
    Area below() const { return {top + size - keep, left, keep, size}; }
    // The columns right before column `x`.
    Area before(int x) const { return {top - keep, x - keep, size + keep, keep}; }
  };
  Span span_of(int number, const Tile& tile) const;

  // A strip as a map of which those pixels are in memory that begin at (top, left).
  struct Place {
    bool floats, rounded;
    int rows, columns;
    int64_t float_start, rounded_start;
  };
  FeatureMap at(const Place& place, const FeatureMap& map, int64_t slot, int top, int left) const;
  void reserve(Place& place, const BufferSpec& spec, int64_t count);
  // The place of the strips of a tile.
  int64_t slot_below(int row, int column) const { return slots_ == 0 ? int64_t(row) * count_ + column : column; }
  int64_t slot_right(int row, int column) const { return slots_ == 0 ? int64_t(row) * count_ + column : row % slots_; }

  const Course& course_;
  const int tile_, count_, slots_;  // count_: tiles of a row
  int64_t float_count_ = 0, rounded_count_ = 0;
  std::vector<Place> rows_, columns_;  // of each step
  Memory<float> own_floats_;
  Memory<bf16> own_rounded_;
  float* floats_;
  bf16* rounded_;
};

}  // namespace ape::cpu
