// What a RECONSTRUCT row does besides its convolution: pixels to the picture, and the ring of border pixels, whose
// kernels differ from the interior's (docs/program.md, border classes).
#pragma once

#include "block.h"

namespace ape::cuda {

// Whether a pixel has the interior class along both axes.
FN bool is_interior(int y, int x, int height, int width) { return y > 0 && y < height - 1 && x > 0 && x < width - 1; }

// Where output channel `channel` and the next go in the picture: shuffled and added to.
template <class E>
struct Outlet {
  float* out[2];                      // at the picture's first pixel of that phase; null past the last channel
  const typename E::Element* add[2];  // the same in the buffer that is added, or null
  int down, right;                    // pixels of the picture from one low-resolution pixel to the next

  FN Outlet(Carrier<E>& b, const Instruction& in, int64_t patch, int channel) {
    const Feature<E> src = b.feature(in.src);
    const int s = in.upscale, colors = in.out_channels / (s * s), width = src.width * s;
    const int64_t pixels = static_cast<int64_t>(src.pixels()) * s * s;
    right = s;
    down = s * width;
    UNROLL for (int i = 0; i < 2; ++i) {
      const int color = (channel + i) / (s * s), phase = (channel + i) % (s * s);
      const int first = phase / s * width + phase % s;
      out[i] = color < colors ? b.args.output + (patch * colors + color) * pixels + first : nullptr;
      add[i] =
          in.add == NO_BUFFER ? nullptr : b.feature(in.add).cell(color / kCellChannels, first) + color % kCellChannels;
    }
  }
  FN void put(Carrier<E>& b, int y, int x, float v0, float v1) const {
    const int64_t at = static_cast<int64_t>(y) * down + x * right;
    UNROLL for (int i = 0; i < 2; ++i) {
      if (!out[i]) continue;
      float value = i ? v1 : v0;
      if (add[i]) value += E::load_one(b.w, add[i] + at * kCellChannels);
      b.w.store(out[i] + at, value);
    }
  }
};

// The pixels [begin, end) of an axis that have a border class.
struct Span {
  int begin, end;
};
FN Span span_of(int border_class, int size) {
  if (size == 1) return {0, border_class == ONLY ? 1 : 0};
  if (border_class == FIRST) return {0, 1};
  if (border_class == LAST) return {size - 1, size};
  if (border_class == ONLY) return {0, 0};
  return {1, size - 1};
}

// The ring: the border pixels by class, 16 at a time, operands straight from global memory. A warp takes every eighth
// (16 pixels, 16 output channels). 188 of 48 x 48 pixels are in the ring: 16 tiles next to the interior's 144.
template <class E>
FN void reconstruct_ring(Carrier<E>& b, const Instruction& in, int64_t patch) {
  using Element = typename E::Element;
  const Feature<E> src = b.feature(in.src);
  const int kernel = in.kernel, chunks = src.groups / 2, pairs = padded(in.out_channels) / kUnitChannels;
  const int64_t next = static_cast<int64_t>(src.pixels()) * kCellChannels;
  const int64_t variant_elements = static_cast<int64_t>(pairs) * chunks * kernel * kernel * kUnitElements;
  int turn = 0;
  ROLLED for (int variant = 1; variant < BORDER_CLASSES * BORDER_CLASSES; ++variant) {  // 0 is the interior
    const Span lines = span_of(variant / BORDER_CLASSES, src.height),
               columns = span_of(variant % BORDER_CLASSES, src.width);
    const int across = columns.end - columns.begin;
    const int count = across > 0 && lines.end > lines.begin ? across * (lines.end - lines.begin) : 0;
    const int tiles = (count + 15) / 16;
    const float* bias = b.vector(in.bias) + variant * pairs * kUnitChannels;
    ROLLED for (int item = 0; item < tiles * pairs; ++item) {
      if (turn++ % kWarps != b.w.id) continue;
      const int first = item / pairs * 16, pair = item % pairs;
      PerLane<int[2]> at;  // the lane's two pixels, as y * width + x; -1 past the end
      Accumulators<1, 2> acc;
      b.w.lanes([&](int l) {
        UNROLL for (int j = 0; j < 2; ++j) {
          const int number = first + fragment_pixel(l, j);
          at[l][j] =
              number < count ? (lines.begin + number / across) * src.width + columns.begin + number % across : -1;
        }
        UNROLL for (int n = 0; n < 2; ++n) {
          const F2 start = b.w.template load<F2>(bias + pair * kUnitChannels + n * 8 + fragment_channel(l));
          acc[0][n][l][0] = acc[0][n][l][2] = start.x;
          acc[0][n][l][1] = acc[0][n][l][3] = start.y;
        }
      });
      const Element* units = b.weights(in.weight) + variant * variant_elements +
                             static_cast<int64_t>(pair) * chunks * kernel * kernel * kUnitElements;
      ROLLED for (int tap = 0; tap < kernel * kernel; ++tap) {
        PerLane<const Element* [2]> cells;
        b.w.lanes([&](int l) {
          UNROLL for (int j = 0; j < 2; ++j) {
            const int y = at[l][j] / src.width + tap / kernel - kernel / 2;
            const int x = at[l][j] % src.width + tap % kernel - kernel / 2;
            const bool inside = at[l][j] >= 0 && y >= 0 && y < src.height && x >= 0 && x < src.width;
            cells[l][j] = inside ? src.cell(0, y * src.width + x) : nullptr;
          }
        });
        UNROLL_4 for (int chunk = 0; chunk < chunks; ++chunk) {
          E::multiply_direct(b.w, acc, cells, next,
                             units + static_cast<int64_t>(chunk * kernel * kernel + tap) * kUnitElements);
          b.w.lanes([&](int l) { UNROLL for (int j = 0; j < 2; ++j) if (cells[l][j]) cells[l][j] += 2 * next; });
        }
      }
      UNROLL for (int n = 0; n < 2; ++n) b.w.lanes([&](int l) {
        const Outlet<E> outlet(b, in, patch, pair * kUnitChannels + n * 8 + fragment_channel(l));
        UNROLL for (int j = 0; j < 2; ++j) if (at[l][j] >= 0)
            outlet.put(b, at[l][j] / src.width, at[l][j] % src.width, acc[0][n][l][2 * j], acc[0][n][l][2 * j + 1]);
      });
    }
  }
}

}  // namespace ape::cuda
