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

// What steps keep for the tiles that follow. For all columns of the image these are the last rows of the row of tiles
// that is being computed. For some rows of tiles (`slots`) they are the last columns of the latest tile; they begin
// `keep` pixels above the row, so that the corner is handed on to the right. The tile that reads a strip
// writes its own in its place.
class Strips {
 public:
  Strips(const Program& program, const Course& course, int tile, int width, int slots);

  // The rows above and the columns to the left of a tile, from strips to the maps: what step `number` made.
  void take(int number, const Tile& tile, bool above, bool left, const FeatureMap& map) const;
  // The last rows and columns of the tile's own, from the map to the strips.
  void give(int number, const Tile& tile, const FeatureMap& map) const;

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
  static Area inside(const FeatureMap& map, const Area& area);

  // A strip as a map of which those pixels are in memory that begin at (top, left).
  struct Place {
    bool floats, rounded;
    int rows, columns;
    int64_t float_start, rounded_start;
  };
  FeatureMap at(const Place& place, const FeatureMap& map, int64_t slot, int top, int left) const;
  void reserve(Place& place, const BufferSpec& spec, int count);

  const Course& course_;
  const int tile_, slots_;
  int64_t float_count_ = 0, rounded_count_ = 0;
  std::vector<Place> rows_, columns_;  // of each step
  Memory<float> floats_;
  Memory<bf16> rounded_;
};

}  // namespace ape::cpu
