#include "maps.h"

#include <algorithm>
#include <cstring>

namespace ape::cpu {

namespace {

// Calls visit(from, to, count) for the elements of each row of the pixels of `area`, in each form that both maps have,
// until it returns false. Returns whether it never did.
template <class F>
bool for_rows(const FeatureMap& from, const FeatureMap& to, const Area& area, F visit) {
  if (area.empty()) return true;
  for (int y = area.y; y < area.bottom(); y++) {
    if (from.pixels != nullptr && to.pixels != nullptr &&
        !visit(from.pixels + y * from.row + area.x * from.pixel, to.pixels + y * to.row + area.x * to.pixel,
               area.width * from.pixel))
      return false;
    if (from.rounded == nullptr || to.rounded == nullptr) continue;
    for (int slice = 0; slice < slices(from.channels); slice++)
      if (!visit(from.rounded + slice * from.rounded_slice + y * from.rounded_row + area.x * kSlice,
                 to.rounded + slice * to.rounded_slice + y * to.rounded_row + area.x * kSlice,
                 int64_t(area.width) * kSlice))
        return false;
  }
  return true;
}

}  // namespace

void copy(const FeatureMap& from, const FeatureMap& to, const Area& area) {
  for_rows(from, to, area, [](const auto* source, auto* target, int64_t count) {
    std::copy_n(source, count, target);
    return true;
  });
}

bool same(const FeatureMap& from, const FeatureMap& to, const Area& area) {
  return for_rows(from, to, area, [](const auto* one, const auto* other, int64_t count) {
    return std::memcmp(one, other, size_t(count) * sizeof *one) == 0;
  });
}

void clear(const FeatureMap& map, const Area& area) {
  if (area.empty()) return;
  for (int y = area.y; y < area.bottom(); y++) {
    if (map.pixels != nullptr) std::fill_n(map.pixels + y * map.row + area.x * map.pixel, area.width * map.pixel, 0.0f);
    if (map.rounded == nullptr) continue;
    for (int slice = 0; slice < slices(map.channels); slice++)
      std::fill_n(map.rounded + slice * map.rounded_slice + y * map.rounded_row + area.x * kSlice, area.width * kSlice,
                  bf16(0));
  }
}

Maps::Maps(const Program& program, int height, int width, bool handed)
    : rows_(height), columns_(width), margin_(program.margin) {
  int64_t widest = 0, longest_row = 0;
  std::vector<int64_t> float_start, rounded_start;
  const auto has_floats = [&](const BufferSpec& spec) { return spec.floats || (handed && spec.handed); };
  for (const BufferSpec& spec : program.buffers) {
    FeatureMap map{};
    map.channels = spec.channels;
    resolution_.push_back(spec.resolution);
    const int64_t rows = height * spec.resolution + 2 * margin_, columns = width * spec.resolution + 2 * margin_;
    map.pixel = spec.grouped ? padded(spec.channels) : spec.channels;
    map.row = columns * map.pixel;
    map.rounded_row = columns * kSlice;
    map.rounded_slice = rows * map.rounded_row;
    float_start.push_back(float_count_);
    rounded_start.push_back(rounded_count_);
    if (has_floats(spec)) float_count_ += padded(rows * map.row);  // the next one begins a cache line
    if (spec.rounded) rounded_count_ += slices(spec.channels) * map.rounded_slice;
    widest = std::max(widest, map.pixel);
    longest_row = std::max(longest_row, map.rounded_row);
    buffers_.push_back(map);
  }
  const Instruction& last = program.reconstruct();
  const int resolution = program.buffers[last.src].resolution;
  phases_ = FeatureMap{};
  phases_.channels = last.out_channels;
  phases_.pixel = padded(last.out_channels);
  const int64_t phase_count = int64_t(height) * resolution * width * resolution * phases_.pixel;
  const int64_t scratch_count = std::max(winograd_scratch(program.widest), kBf16Scratch);
  floats_ = allocate<float>(float_count_ + phase_count + scratch_count);
  rounded_count_ += 15 * longest_row;  // from any pixel of a map, 16 pixels to the right or downward may be read
  rounded_ = allocate<bf16>(rounded_count_);
  for (size_t i = 0; i < buffers_.size(); i++) {
    const BufferSpec& spec = program.buffers[i];
    float_start_.push_back(has_floats(spec) ? floats_.get() + float_start[i] : nullptr);
    rounded_start_.push_back(spec.rounded ? rounded_.get() + rounded_start[i] : nullptr);
  }
  phases_.pixels = floats_.get() + float_count_;
  scratch_ = phases_.pixels + phase_count;
  zeros_.assign(widest, 0.0f);
}

// The first call also clears all maps: the worker does, not who made them, so that workers do it side by side and pages
// lie near the core that uses them.
void Maps::place(int top, int left, int height, int width) {
  const bool fits = top == 0 && left == 0 && height == rows_ && width == columns_;
  if (cleared_ && fits && top_ == 0 && left_ == 0 && buffers_[0].height == height) return;  // a patch after a patch
  top_ = top;
  left_ = left;
  for (size_t i = 0; i < buffers_.size(); i++) {
    FeatureMap& map = buffers_[i];
    map.height = height * resolution_[i];
    map.width = width * resolution_[i];
    const int64_t y = margin_ - int64_t(top) * resolution_[i], x = margin_ - int64_t(left) * resolution_[i];
    if (float_start_[i] != nullptr) map.pixels = float_start_[i] + y * map.row + x * map.pixel;
    if (rounded_start_[i] != nullptr) map.rounded = rounded_start_[i] + y * map.rounded_row + x * kSlice;
  }
  if (!cleared_) {
    std::fill_n(floats_.get(), float_count_, 0.0f);
    std::fill_n(rounded_.get(), rounded_count_, bf16(0));
    cleared_ = true;
  } else {
    clear_outside();
  }
}

// It clears the margin, which is as far as convolutions read.
void Maps::clear_outside() {
  for (size_t i = 0; i < buffers_.size(); i++) {
    const FeatureMap& map = buffers_[i];
    const int top = top_ * resolution_[i] - margin_, left = left_ * resolution_[i] - margin_;
    const int bottom = (top_ + rows_) * resolution_[i] + margin_, right = (left_ + columns_) * resolution_[i] + margin_;
    const auto clear_part = [&](int y0, int y1, int x0, int x1) {
      y0 = std::max(y0, top), y1 = std::min(y1, bottom), x0 = std::max(x0, left), x1 = std::min(x1, right);
      clear(map, {y0, x0, y1 - y0, x1 - x0});
    };
    clear_part(-margin_, 0, left, right);
    clear_part(map.height, map.height + margin_, left, right);
    clear_part(top, bottom, -margin_, 0);
    clear_part(top, bottom, map.width, map.width + margin_);
  }
}

void Maps::slide(int up, int left, const std::vector<int32_t>& buffers) {
  for (int32_t i : buffers) {
    const FeatureMap& map = buffers_[i];
    const int64_t rows = int64_t(rows_ - up) * resolution_[i] + 2 * margin_;
    const int64_t columns = int64_t(columns_ - left) * resolution_[i] + 2 * margin_;
    const int64_t down = int64_t(up) * resolution_[i], right = int64_t(left) * resolution_[i];
    // from the last row on: each goes to a later place
    for (int64_t y = rows - 1; y >= 0; y--) {
      if (float_start_[i] != nullptr) {
        float* const row = float_start_[i] + y * map.row;
        std::copy_backward(row, row + columns * map.pixel, row + down * map.row + (right + columns) * map.pixel);
      }
      if (rounded_start_[i] == nullptr) continue;
      for (int slice = 0; slice < slices(map.channels); slice++) {
        bf16* const row = rounded_start_[i] + slice * map.rounded_slice + y * map.rounded_row;
        std::copy_backward(row, row + columns * kSlice, row + down * map.rounded_row + (right + columns) * kSlice);
      }
    }
  }
  place(top_ - up, left_ - left, buffers_[0].height / resolution_[0], buffers_[0].width / resolution_[0]);
}

void Maps::load(int buffer, const Planes<const float>& planes, const Area& area) {
  const FeatureMap& b = buffers_[buffer];
  for (int y = area.y; y < area.bottom(); y++)
    for (int group = 0; group < b.channels; group += kGroup)  // a cache line of a pixel is filled at once
      for (int x = area.x; x < area.right(); x++)
        for (int c = group; c < std::min(group + kGroup, b.channels); c++)
          b.pixels[y * b.row + x * b.pixel + c] = *planes.at(c, y, x);
}

void Maps::save(int buffer, float* planes) const {
  const FeatureMap& b = buffers_[buffer];
  for (int c = 0; c < b.channels; c++)
    for (int y = 0; y < b.height; y++)
      for (int x = 0; x < b.width; x++) *planes++ = b.pixels[y * b.row + x * b.pixel + c];
}

FeatureMap Maps::phases(const Area& area) const {
  FeatureMap map = phases_;
  map.height = area.bottom();
  map.width = area.right();
  map.row = area.width * map.pixel;
  map.pixels -= area.y * map.row + area.x * map.pixel;
  return map;
}

}  // namespace ape::cpu
