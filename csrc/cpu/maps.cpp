#include "maps.h"

#include <algorithm>

namespace ape::cpu {
namespace {

// Pixels of an axis, rounded up so that the tiles of Winograd cover it.
int tiled(int size) { return (size + 3) / 4 * 4; }

}  // namespace

Maps::Maps(const Program& program, int height, int width, bool handed) {
  const int margin = program.margin;
  int64_t widest = 0, longest_row = 0;
  std::vector<int64_t> float_start, rounded_start;  // of the buffers' origins
  const auto has_floats = [&](const BufferSpec& spec) { return spec.floats || (handed && spec.handed); };
  for (const BufferSpec& spec : program.buffers) {
    FeatureMap map{};
    map.channels = spec.channels;
    map.height = height * spec.resolution;
    map.width = width * spec.resolution;
    const int64_t rows = tiled(map.height) + 2 * margin, columns = tiled(map.width) + 2 * margin;
    map.pixel = spec.grouped ? padded(spec.channels) : spec.channels;
    map.row = columns * map.pixel;
    map.rounded_row = columns * kSlice;
    map.rounded_slice = rows * map.rounded_row;
    float_start.push_back(float_count_ + margin * (map.row + map.pixel));
    rounded_start.push_back(rounded_count_ + margin * (map.rounded_row + kSlice));
    if (has_floats(spec)) float_count_ += padded(rows * map.row);  // the next map begins at a cache line
    if (spec.rounded) rounded_count_ += slices(spec.channels) * map.rounded_slice;
    widest = std::max(widest, map.pixel);
    longest_row = std::max(longest_row, map.rounded_row);
    buffers_.push_back(map);
  }
  const Instruction& last = program.reconstruct();
  phases_ = buffers_[last.src];
  phases_.channels = last.out_channels;
  phases_.pixel = padded(last.out_channels);
  phases_.row = phases_.width * phases_.pixel;
  const int64_t phase_count = phases_.height * phases_.row;
  const int64_t scratch_count = std::max(winograd_scratch(program.widest), kBf16Scratch);
  floats_ = allocate<float>(float_count_ + phase_count + scratch_count);
  rounded_count_ += 15 * longest_row;  // from any pixel of a map, 16 pixels to the right or downward may be read
  rounded_ = allocate<bf16>(rounded_count_);
  for (size_t i = 0; i < buffers_.size(); i++) {
    const BufferSpec& spec = program.buffers[i];
    if (has_floats(spec)) buffers_[i].pixels = floats_.get() + float_start[i];
    if (spec.rounded) buffers_[i].rounded = rounded_.get() + rounded_start[i];
  }
  phases_.pixels = floats_.get() + float_count_;
  scratch_ = phases_.pixels + phase_count;
  zeros_.assign(widest, 0.0f);
}

void Maps::load(int buffer, const float* planes) {
  if (!cleared_) {
    std::fill_n(floats_.get(), float_count_, 0.0f);
    std::fill_n(rounded_.get(), rounded_count_, bf16(0));
    cleared_ = true;
  }
  const FeatureMap& b = buffers_[buffer];
  const int64_t plane = int64_t(b.height) * b.width;
  for (int y = 0; y < b.height; y++, planes += b.width)
    for (int group = 0; group < b.channels; group += kGroup)  // fills a cache line of a pixel at once
      for (int x = 0; x < b.width; x++)
        for (int c = group; c < std::min(group + kGroup, b.channels); c++)
          b.pixels[y * b.row + x * b.pixel + c] = planes[c * plane + x];
}

void Maps::save(int buffer, float* planes) const {
  const FeatureMap& b = buffers_[buffer];
  for (int c = 0; c < b.channels; c++)
    for (int y = 0; y < b.height; y++)
      for (int x = 0; x < b.width; x++) *planes++ = b.pixels[y * b.row + x * b.pixel + c];
}

}  // namespace ape::cpu
