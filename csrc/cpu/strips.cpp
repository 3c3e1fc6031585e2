#include "strips.h"

#include <algorithm>

namespace ape::cpu {

Strips::Strips(const Program& program, const Course& course, int tile, int width, int slots)
    : course_(course), tile_(tile), slots_(slots), rows_(course.moves.size()), columns_(course.moves.size()) {
  for (size_t i = 0; i < course.moves.size(); i++) {
    const Move& move = course.moves[i];
    if (move.keep == 0) continue;
    const BufferSpec& spec = program.buffers[move.step.in.dst];
    rows_[i] = {spec.floats, spec.rounded, move.keep, width * move.resolution, 0, 0};
    reserve(rows_[i], spec, 1);
    columns_[i] = {spec.floats, spec.rounded, tile * move.resolution + move.keep, move.keep, 0, 0};
    reserve(columns_[i], spec, slots);
  }
  floats_ = allocate<float>(float_count_);
  rounded_ = allocate<bf16>(rounded_count_);
}

void Strips::reserve(Place& place, const BufferSpec& spec, int count) {
  place.float_start = float_count_;
  place.rounded_start = rounded_count_;
  const int64_t pixels = int64_t(count) * place.rows * place.columns;
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
    strip.pixels = floats_.get() + place.float_start + slot * pixels * map.pixel - top * strip.row - left * map.pixel;
  if (place.rounded)
    strip.rounded = rounded_.get() + place.rounded_start + slot * slices(map.channels) * strip.rounded_slice -
                    top * strip.rounded_row - left * int64_t(kSlice);
  return strip;
}

void Strips::take(int number, const Tile& tile, bool above, bool left, const FeatureMap& map) const {
  const Span span = span_of(number, tile);
  if (above) copy(at(rows_[number], map, 0, span.top - span.keep, 0), map, inside(map, span.above()));
  if (left)
    copy(at(columns_[number], map, tile.row % slots_, span.top - span.keep, span.left - span.keep), map,
         inside(map, span.before(span.left)));
}

void Strips::give(int number, const Tile& tile, const FeatureMap& map) const {
  const Span span = span_of(number, tile);
  copy(map, at(rows_[number], map, 0, span.top + span.size - span.keep, 0), inside(map, span.below()));
  const int right = span.left + span.size;
  copy(map, at(columns_[number], map, tile.row % slots_, span.top - span.keep, right - span.keep),
       inside(map, span.before(right)));
}

Strips::Span Strips::span_of(int number, const Tile& tile) const {
  const Move& move = course_.moves[number];
  const int q = move.resolution;
  return {tile.top * q - move.shift, tile.left * q - move.shift, tile_ * q, move.keep};
}

Area Strips::inside(const FeatureMap& map, const Area& area) {
  const int y0 = std::max(area.y, 0), y1 = std::min(area.bottom(), map.height);
  const int x0 = std::max(area.x, 0), x1 = std::min(area.right(), map.width);
  return {y0, x0, y1 - y0, x1 - x0};
}

}  // namespace ape::cpu
