#include "strips.h"

#include <algorithm>
#include <utility>

#include "regions.h"

namespace ape::cpu {

Strips::Strips(const Program& program, const Course& course, int tile, int rows, int columns, int slots)
    : course_(course), tile_(tile), count_(columns), slots_(slots), rows_(course.moves.size()), columns_(rows_) {
  const int64_t all = int64_t(rows) * columns;
  for (size_t i = 0; i < course.moves.size(); i++) {
    const Move& move = course.moves[i];
    if (move.keep == 0) continue;
    const BufferSpec& spec = program.buffers[move.step.in.dst];
    const int side = tile * move.resolution;
    rows_[i] = {spec.floats, spec.rounded, move.keep, side, 0, 0};
    reserve(rows_[i], spec, slots == 0 ? all : columns);
    columns_[i] = {spec.floats, spec.rounded, side + move.keep, move.keep, 0, 0};
    reserve(columns_[i], spec, slots == 0 ? all : slots);
  }
  if (slots == 0) return;
  own_floats_ = allocate<float>(float_count_);
  own_rounded_ = allocate<bf16>(rounded_count_);
  lie(own_floats_.get(), own_rounded_.get());
}

void Strips::reserve(Place& place, const BufferSpec& spec, int64_t count) {
  place.float_start = float_count_;
  place.rounded_start = rounded_count_;
  const int64_t pixels = count * place.rows * place.columns;
  if (place.floats) float_count_ += pixels * (spec.grouped ? padded(spec.channels) : spec.channels);
  if (place.rounded) rounded_count_ += pixels * slices(spec.channels) * kSlice;
}

FeatureMap Strips::at(const Place& place, const FeatureMap& map, int64_t slot, int top, int left) const {
  FeatureMap strip = map;
  const int64_t pixels = int64_t(place.rows) * place.columns;
  strip.row = place.columns * map.pixel;
  strip.rounded_row = int64_t(place.columns) * kSlice;
  strip.rounded_slice = pixels * kSlice;
  strip.pixels = nullptr;
  strip.rounded = nullptr;
  if (place.floats)
    strip.pixels = floats_ + place.float_start + slot * pixels * map.pixel - top * strip.row - left * map.pixel;
  if (place.rounded)
    strip.rounded = rounded_ + place.rounded_start + slot * slices(map.channels) * strip.rounded_slice -
                    top * strip.rounded_row - left * int64_t(kSlice);
  return strip;
}

void Strips::take(int number, const Tile& tile, bool above, bool left, const FeatureMap& map) const {
  const Span span = span_of(number, tile);
  const Area rows = overlap(whole(map), span.above()), columns = overlap(whole(map), span.before(span.left));
  const int top = span.top - span.keep;
  if (above)
    copy(at(rows_[number], map, slot_below(tile.row - 1, tile.column), top, span.left), map, rows);
  else
    clear(map, rows);
  if (left)
    copy(at(columns_[number], map, slot_right(tile.row, tile.column - 1), top, span.left - span.keep), map, columns);
  else
    clear(map, columns);
}

bool Strips::give(int number, const Tile& tile, const FeatureMap& map, bool compare) const {
  const Span span = span_of(number, tile);
  const int bottom = span.top + span.size, right = span.left + span.size;
  const FeatureMap rows = at(rows_[number], map, slot_below(tile.row, tile.column), bottom - span.keep, span.left);
  const FeatureMap columns =
      at(columns_[number], map, slot_right(tile.row, tile.column), span.top - span.keep, right - span.keep);
  bool differs = false;
  for (const auto& [strip, area] : {std::make_pair(rows, span.below()), std::make_pair(columns, span.before(right))}) {
    const Area part = overlap(whole(map), area);
    if (compare && !differs) differs = !same(map, strip, part);
    if (!compare || differs) copy(map, strip, part);
  }
  return differs;
}

Strips::Span Strips::span_of(int number, const Tile& tile) const {
  const Move& move = course_.moves[number];
  const int q = move.resolution;
  return {tile.top * q - move.shift, tile.left * q - move.shift, tile_ * q, move.keep};
}

}  // namespace ape::cpu
