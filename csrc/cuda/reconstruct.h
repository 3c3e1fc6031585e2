// What a RECONSTRUCT row does besides its convolution: pixels to the picture, and the ring of border pixels, whose
// kernels differ from the interior's (docs/program.md, border classes).
#pragma once

#include "block.h"

namespace ape::cuda {

// Whether a pixel has the interior class along both axes.
FN bool is_interior(int y, int x, int height, int width) { return y > 0 && y < height - 1 && x > 0 && x < width - 1; }

// Where values go in the picture of a patch: shuffled and added to.
template <class B>
struct Outlet {
  using E = typename B::Type;

  // Where the values of an output channel and the next one go.
  struct Place {
    float* out[2];                      // at the picture's first pixel of that phase; null past the last channel
    const typename E::Element* add[2];  // the same in the buffer that is added, or null
  };

  float* picture;       // [colors][s * height][s * width]
  int64_t pixels;       // of a color
  int s, colors, down;  // down: pixels of the picture from one low-resolution pixel to the one below
  bool adds, paired;    // paired: the two channels are neighbours in the picture, one store
  typename B::Map added{};

  FN Outlet(B& b, const Instruction& in, int64_t patch) {
    const auto src = b.feature(in.src);
    s = in.upscale;
    colors = in.picture_channels();
    down = s * s * src.pitch();
    pixels = static_cast<int64_t>(s) * s * src.plane();
    picture = b.picture(patch, colors, pixels, down, s);
    adds = in.add != kNoBuffer;
    if (adds) added = b.added(in.add, down, s);
    paired = !adds && s % 2 == 0 && reinterpret_cast<uintptr_t>(picture) % sizeof(F2) == 0;
  }
  FN Place place(int channel) const {
    Place at{};
    UNROLL for (int i = 0; i < 2; ++i) {
      const int color = (channel + i) / (s * s), phase = (channel + i) % (s * s);
      const int first = phase / s * (down / s) + phase % s;
      at.out[i] = color < colors ? picture + color * pixels + first : nullptr;
      at.add[i] = adds ? added.cell(color / kCellChannels, first) + color % kCellChannels : nullptr;
    }
    return at;
  }
  // Where pixel (y, x) is, from that of (0, 0).
  FN int64_t at(int y, int x) const { return static_cast<int64_t>(y) * down + x * s; }
  FN void put(B& b, const Place& place, int64_t at, float v0, float v1) const {
    if (paired) {
      if (place.out[0]) b.w.store(place.out[0] + at, F2{v0, v1});
      return;
    }
    UNROLL for (int i = 0; i < 2; ++i) {
      if (!place.out[i]) continue;
      float value = i ? v1 : v0;
      if (place.add[i]) value += E::load_one(b.w, place.add[i] + at * kCellChannels);
      b.w.store(place.out[i] + at, value);
    }
  }
};

// The pixels [begin, end) of an axis that have a border class.
struct Span {
  int begin, end;
};
FN Span span_of(int border_class, int size) {
  if (size == 1) return {0, border_class == kOnly ? 1 : 0};
  if (border_class == kFirst) return {0, 1};
  if (border_class == kLast) return {size - 1, size};
  if (border_class == kOnly) return {0, 0};
  return {1, size - 1};
}

// The taps [begin, end) along an axis that touch the patch for pixels of a border class.
FN Span taps_of(int border_class, int kernel) {
  const bool starts = border_class == kFirst || border_class == kOnly,
             ends = border_class == kLast || border_class == kOnly;
  return {starts ? kernel / 2 : 0, ends ? kernel / 2 + 1 : kernel};
}

// The ring: the border pixels by class, up to 48 at a time, operands straight from global memory. A warp takes every
// eighth (48 pixels, up to kRingUnits * 16 output channels): of 48 x 48 pixels the four edges and the four corners are
// one for each warp. Of k = 5 an edge has 15 taps that touch the patch, a corner 9.
template <class B>
struct Ring {
  using E = typename B::Type;
  using Element = typename E::Element;
  static constexpr int kMost = B::kRingUnits, kRest = kMost > 2 ? 2 : 1;  // units of output channels at once
  static constexpr int kTiles = 3;                                        // of 16 pixels

  B& b;
  const Instruction& in;
  const int64_t patch;  // its number in the output
  const typename B::Map src;
  const int kernel, chunks, pairs;  // chunks of 16 input channels, units of 16 output channels
  // of the class at hand
  int variant = 0;
  Span lines{}, columns{};  // its pixels
  Span down{}, right{};     // its taps

  FN Ring(B& b_, const Instruction& in_, int64_t patch_)
      : b(b_),
        in(in_),
        patch(patch_),
        src(b.feature(in.src)),
        kernel(in.kernel),
        chunks(src.groups / 2),
        pairs(padded(in.out_channels) / kUnitChannels) {}

  FN void run() {
    int turn = 0;
    ROLLED for (variant = 1; variant < kBorderClasses * kBorderClasses; ++variant) {  // 0 is the interior
      const int row_class = variant / kBorderClasses, column_class = variant % kBorderClasses;
      lines = span_of(row_class, src.height);
      columns = span_of(column_class, src.width);
      down = taps_of(row_class, kernel);
      right = taps_of(column_class, kernel);
      if (lines.begin >= lines.end) continue;
      const int count = (lines.end - lines.begin) * (columns.end - columns.begin);
      ROLLED for (int first = 0; first < count; first += kTiles * 16) {
        ROLLED for (int pair = 0; pair < pairs; pair += kMost) {
          if (!b.takes(turn++)) continue;
          const int units = pairs - pair;
          if (units >= kMost)
            run<kMost>(first, count, pair);
          else if (units == kRest)
            run<kRest>(first, count, pair);
          else
            run<1>(first, count, pair);
        }
      }
    }
  }

  // Pixels `first` to `first` + 47 of the class's `count`, UNITS units of output channels from `pair` on.
  template <int UNITS>
  FN void run(int first, int count, int pair) {
    PerLane<int[kTiles][2]> y, x;  // the lane's pixels; y is -1 past the end
    Accumulators<kTiles, 2 * UNITS> acc;
    const int across = columns.end - columns.begin;
    const int number = variant * pairs + pair;
    b.w.lanes([&](int l) {
      UNROLL for (int m = 0; m < kTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        const int pixel = first + m * 16 + fragment_pixel(l, j);
        y[l][m][j] = pixel < count ? lines.begin + pixel / across : -1;
        x[l][m][j] = columns.begin + pixel % across;
      }
      const float* bias = b.vector(in.bias) + number * kUnitChannels + fragment_channel(l);
      UNROLL for (int n = 0; n < 2 * UNITS; ++n) {
        const F2 start = b.w.template load<F2>(bias + n * 8);
        UNROLL for (int m = 0; m < kTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          acc[m][n][l][2 * j] = start.x;
          acc[m][n][l][2 * j + 1] = start.y;
        }
      }
    });
    const int64_t chunk_stride = static_cast<int64_t>(kernel) * kernel * kUnitElements;
    const Element* units = b.weights(in.weight) + number * chunks * chunk_stride;
    ROLLED for (int ky = down.begin; ky < down.end; ++ky) {
      ROLLED for (int kx = right.begin; kx < right.end; ++kx) tap<UNITS>(
          acc, y, x, ky - kernel / 2, kx - kernel / 2, units + (ky * kernel + kx) * kUnitElements, chunk_stride);
    }
    const Outlet<B> outlet(b, in, patch);
    UNROLL for (int n = 0; n < 2 * UNITS; ++n) b.w.lanes([&](int l) {
      const auto place = outlet.place(pair * kUnitChannels + n * 8 + fragment_channel(l));
      UNROLL for (int m = 0; m < kTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) if (y[l][m][j] >= 0)
          outlet.put(b, place, outlet.at(y[l][m][j], x[l][m][j]), acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1]);
    });
  }

  template <int UNITS>
  FN void tap(Accumulators<kTiles, 2 * UNITS>& acc, const PerLane<int[kTiles][2]>& y, const PerLane<int[kTiles][2]>& x,
              int below, int beside, const Element* units, int64_t chunk_stride) {
    const int64_t next = static_cast<int64_t>(src.plane()) * kCellChannels;
    PerLane<int[kTiles][2]> cells;
    b.w.lanes([&](int l) {
      UNROLL for (int m = 0; m < kTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        const int at_y = y[l][m][j] + below, at_x = x[l][m][j] + beside;
        const bool inside = y[l][m][j] >= 0 && at_y >= 0 && at_y < src.height && at_x >= 0 && at_x < src.width;
        cells[l][m][j] = inside ? at_y * src.pitch() + at_x : -1;
      }
    });
    const Element* channels = src.data;
    int chunk = 0;
    ROLLED for (; chunk + 2 <= chunks; chunk += 2, channels += 4 * next, units += 2 * chunk_stride)
        E::template multiply_direct<2, UNITS>(b.w, acc, channels, next, cells, units, chunk_stride,
                                              chunks * chunk_stride);
    ROLLED for (; chunk < chunks; ++chunk, channels += 2 * next, units += chunk_stride)
        E::template multiply_direct<1, UNITS>(b.w, acc, channels, next, cells, units, chunk_stride,
                                              chunks * chunk_stride);
  }
};

}  // namespace ape::cuda
