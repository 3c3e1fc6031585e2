// Two 3x3 convolutions in one pass: h = act(conv(x)), y = act(conv(h)) or conv(h) + x, in place where y's buffer is
// x's.
//
// The rows of the patch stream through shared memory. A step computes R rows of h and, one row behind, R rows of y:
//
//     x ring   rows sR-1 .. sR+R     from the arena, the next R rows while y is computed
//     h ring   rows sR-2 .. sR+R-1   never leaves shared memory
//     step s   h rows sR .. sR+R-1,  then y rows sR-1 .. sR+R-2
//
// The accumulators of y start from bias + x read off the x ring, so R + 2 rows of each ring are enough: x is read once,
// y written once, no halo is computed twice. Weights stream by tap, kStages deep; one barrier a tap serves weights, x
// and h alike. A warp owns a pixel row of a step and C / kSplit output channels.
//
// Rings are [slot][C / 8][50] cells: columns -1 and W stay zero, a tap is a start address. Shared memory is two rings
// of kRows + 2 rows, the weights of kStages taps, and the sums over pixels of every channel of y, for an exit or
// attention that follows. With the instructions of a warp, a tap (worker.h lists the shapes):
//      C   kRows kSplit kStages   rings + weights + sums                              mma, ldmatrix.x4, 16-byte loads
//     16     8     1      4       2 * 10 * 1600 + 4 *   512 +  512 B =  34 560 B        6    3    1
//     32     8     1      4       2 * 10 * 3200 + 4 *  2048 + 1024 B =  73 216 B       24    6    4
//     48     8     1      4       2 * 10 * 4800 + 4 *  4608 + 1536 B = 115 968 B       54    9    9
//     64     8     1      4       2 * 10 * 6400 + 4 *  8192 + 2048 B = 162 816 B       96   12   16
//     64     4     2      2       2 *  6 * 6400 + 2 *  8192 + 1024 B =  94 208 B       48   12    8
//     96     4     2      2       2 *  6 * 9600 + 2 * 18432 + 1536 B = 153 600 B      108   18   18
#pragma once

#include "conv.h"

namespace ape::cuda {

constexpr int kPairTiles = 3;  // of 16 pixels along a row
constexpr int kPairWidth = kPairTiles * 16;

template <int C, int ROWS, int STAGES>
struct PairShape {
  static constexpr int kChannels = C, kRows = ROWS, kStages = STAGES;
  static constexpr int kSplit = kWarps / ROWS;     // warps that share a row
  static constexpr int kColumns = C / 8 / kSplit;  // mma columns of eight channels of a warp
  static constexpr int kGroups = C / kCellChannels, kChunks = C / kUnitChannels;
  static constexpr int kPitch = kPairWidth + 2, kRing = ROWS + 2;
  static constexpr uint32_t kTileBytes = 16 * Half::kCellBytes;
  static constexpr uint32_t kGroupBytes = kPitch * Half::kCellBytes, kRowBytes = kGroups * kGroupBytes;
  static constexpr uint32_t kTapBytes = kChunks * kChunks * Half::kUnitBytes;
  static constexpr uint32_t kX = 0, kH = kRing * kRowBytes, kWeights = 2 * kH, kSums = kWeights + STAGES * kTapBytes;
  static constexpr uint32_t kBytes = kSums + kWarps * kColumns * 8 * sizeof(float);
  static_assert(kWarps % ROWS == 0 && kColumns % 2 == 0, "whole units for a warp");
  static_assert(C % kUnitChannels == 0 && STAGES >= 2 && STAGES <= 9,
                "a copy of x is complete before its convolution ends");
  static_assert(kRowBytes % 16 == 0 && kTapBytes % (kLanes * 16) == 0, "16-byte copies, whole units");
};

template <class S>
struct Pair {
  using Element = Half::Element;
  Carrier<Half>& b;
  const int number;         // of the first of the two rows
  const int height, width;  // of x, h and y
  const bool sums;          // wanted
  int tap = 0;
  PerLane<uint32_t> rows;  // ldmatrix addresses
  Accumulators<kPairTiles, S::kColumns> acc;

  FN Pair(Carrier<Half>& b_, int row, bool sums_)
      : b(b_), number(row), height(x().height), width(x().width), sums(sums_) {
    b.w.lanes([&](int l) { rows[l] = l / 16 * S::kGroupBytes + l % 16 * Half::kCellBytes; });
  }

  // Looked up whenever they are needed: the tap loop has no registers left to keep them in.
  FN const Instruction& in1() const { return b.row(number); }
  FN const Instruction& in2() const { return b.row(number + 1); }
  FN Feature<Half> x() const { return b.feature(in1().src); }
  FN int line() const { return b.w.id / S::kSplit; }                            // of a step
  FN int column() const { return b.w.id % S::kSplit * S::kColumns; }            // the warp's first mma column
  FN int total() const { return 18 * steps() - (has_h(steps() - 1) ? 0 : 9); }  // taps
  FN int steps() const { return (height + S::kRows) / S::kRows; }
  // In the last step of a height of whole steps there is no h left to compute.
  FN bool has_h(int step) const { return step * S::kRows < height; }
  FN static uint32_t slot(int row) { return static_cast<uint32_t>((row + S::kRing) % S::kRing) * S::kRowBytes; }
  FN static uint32_t cell(int pixel, int channel) {
    return channel / 8 * S::kGroupBytes + (pixel + 1) * Half::kCellBytes + channel % 8 * sizeof(Element);
  }

  // Rows [begin, end) of x to the ring, zeros outside the patch.
  FN void fetch_rows(int begin, int end) {
    const Feature<Half> x = this->x();
    const int across = S::kGroups * x.width;
    b.each((end - begin) * across, [&](int i) {
      const int row = begin + i / across, group = i / x.width % S::kGroups, pixel = i % x.width;
      const bool inside = row >= 0 && row < x.height;
      if (row <= x.height)
        b.w.copy(S::kX + slot(row) + group * S::kGroupBytes + (pixel + 1) * Half::kCellBytes,
                 x.cell(group, inside ? row * x.width + pixel : 0), inside);
    });
  }

  // The weights of tap `fetched`, of which there are nine for h and nine for y in turn.
  FN void fetch_tap(int fetched) {
    if (fetched < total()) {
      const bool skips = fetched >= 18 * (steps() - 1) && !has_h(steps() - 1);
      const int in_pair = fetched % 18 + (skips ? 9 : 0);
      const Element* weights = b.weights(in_pair < 9 ? in1().weight : in2().weight) + in_pair % 9 * kUnitElements;
      const uint32_t to = S::kWeights + fetched % S::kStages * S::kTapBytes;
      b.each(S::kTapBytes / 16, [&](int i) {
        const int unit = i / kLanes, chunk = unit / S::kChunks, pair = unit % S::kChunks;
        b.w.copy(to + i * 16, weights + (pair * S::kChunks + chunk) * 9 * kUnitElements + i % kLanes * 8, true);
      });
    }
  }

  FN void start(const float* bias) {
    UNROLL for (int n = 0; n < S::kColumns; ++n) b.w.lanes([&](int l) {
      const F2 v = b.w.load<F2>(bias + channel_at(l, n));
      UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        acc[m][n][l][2 * j] = v.x;
        acc[m][n][l][2 * j + 1] = v.y;
      }
    });
  }

  // Nine taps over rows row - 1 .. row + 1 of a ring. coming: a step whose rows of x are fetched meanwhile, or 0.
  FN void convolve(uint32_t ring, int row, bool live, int coming) {
    ROLLED for (int i = 0; i < 9; ++i, ++tap) {
      b.w.template wait<S::kStages - 2>();
      b.w.sync();
      fetch_tap(tap + S::kStages - 1);
      if (i == 0 && coming) fetch_rows(coming * S::kRows + 1, (coming + 1) * S::kRows + 1);
      b.w.commit();
      if (!live) continue;
      b.w.converge();
      const uint32_t from = ring + slot(row + i / 3 - 1) + i % 3 * Half::kCellBytes;
      const uint32_t units = S::kWeights + tap % S::kStages * S::kTapBytes + column() / 2 * Half::kUnitBytes;
      UNROLL for (int k = 0; k < S::kChunks; ++k) Half::multiply<kPairTiles, S::kColumns, S::kColumns / 2>(
          b.w, acc, rows, from + k * 2 * S::kGroupBytes, S::kTileBytes, 0, units + k * S::kChunks * Half::kUnitBytes,
          Half::kUnitBytes);
    }
  }

  FN void run() {
    // the columns left and right of the patch, in both rings, and h above it
    b.each(2 * S::kRing * S::kGroups * 2, [&](int i) {
      const uint32_t side = i % 2 ? (width + 1) * Half::kCellBytes : 0;
      b.w.sts(i / 2 * S::kGroupBytes + side, U4{});
    });
    if (line() == 0) zero_h(-1);
    b.each(S::kSplit * S::kRows * S::kColumns * 2, [&](int i) { b.w.sts(S::kSums + i * 16, U4{}); });
    fetch_rows(-1, S::kRows + 1);
    for (int i = 0; i < S::kStages - 1; ++i) {
      fetch_tap(i);
      b.w.commit();
    }
    ROLLED for (int half = 0; half < 2 * steps(); ++half) {
      b.w.forget();
      const int step = half / 2;
      const bool makes_y = half % 2;
      const int row = step * S::kRows + line() - makes_y;
      const bool live = row >= 0 && row < height;
      if (makes_y || has_h(step)) {
        start(b.vector(makes_y ? in2().bias : in1().bias));
        if (makes_y && live && in2().add != NO_BUFFER) add_x(row);
        convolve(makes_y ? S::kH : S::kX, row, live, makes_y && step + 1 < steps() ? step + 1 : 0);
        if (live && makes_y) put_y(row);
        if (live && !makes_y) put_h(row);
      }
      if (!makes_y && row == height) zero_h(row);
    }
    if (sums) gather_sums();
  }

  FN int channel_at(int l, int n) const { return (column() + n) * 8 + fragment_channel(l); }

  FN void add_x(int row) {
    UNROLL for (int n = 0; n < S::kColumns; ++n) b.w.lanes([&](int l) {
      const uint32_t at = S::kX + slot(row) + cell(0, channel_at(l, n));
      UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        const F2 skip = unpack_halves(b.w.lds<uint32_t>(at + (m * 16 + fragment_pixel(l, j)) * Half::kCellBytes));
        acc[m][n][l][2 * j] += skip.x;
        acc[m][n][l][2 * j + 1] += skip.y;
      }
    });
  }

  // The warp's part of a row of h that is outside the patch.
  FN void zero_h(int row) {
    b.w.lanes([&](int l) {
      ROLLED for (int i = l; i < S::kColumns * width; i += kLanes)
          b.w.sts(S::kH + slot(row) + cell(i % width, (column() + i / width) * 8), U4{});
    });
  }

  // A row of h to its ring.
  FN void put_h(int row) {
    UNROLL for (int n = 0; n < S::kColumns; ++n) b.w.lanes([&](int l) {
      const uint32_t at = S::kH + slot(row) + cell(0, channel_at(l, n));
      const F2 slope = slope_of(b, in1(), channel_at(l, n));
      UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        const int pixel = m * 16 + fragment_pixel(l, j);
        if (pixel >= width) continue;
        const F2 v = activated(acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1], slope);
        b.w.sts(at + pixel * Half::kCellBytes, pack_halves(v.x, v.y));
      }
    });
  }

  FN void put_y(int row) {
    const Feature<Half> y = b.feature(in2().dst);
    UNROLL for (int n = 0; n < S::kColumns; ++n) {
      PerLane<float> part[2];
      b.w.lanes([&](int l) {
        const int channel = channel_at(l, n);
        const F2 slope = slope_of(b, in2(), channel);
        part[0][l] = part[1][l] = 0.0f;
        UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          const int pixel = m * 16 + fragment_pixel(l, j);
          if (pixel >= width) continue;
          const F2 value = activated(acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1], slope);
          Half::store_pair(b.w, y.cell(channel / 8, row * width + pixel) + channel % 8, value);
          part[0][l] += value.x;
          part[1][l] += value.y;
        }
      });
      if (!sums) continue;
      UNROLL for (int i = 0; i < 2; ++i) b.w.sum_rows(part[i]);
      const uint32_t at = S::kSums + (b.w.id * S::kColumns + n) * 8 * sizeof(float);
      b.w.lanes([&](int l) {
        if (l >= 4) return;  // a lane reads and writes the sums it owns, so that none reads what another writes
        const F2 before = b.w.lds<F2>(at + fragment_channel(l) * sizeof(float));
        part[0][l] += before.x;
        part[1][l] += before.y;
      });
      b.w.lanes([&](int l) {
        if (l < 4) b.w.sts(at + fragment_channel(l) * sizeof(float), F2{part[0][l], part[1][l]});
      });
    }
  }

  // The warps' sums, one after the other, to kPooled: over the x ring, hence the barrier.
  FN void gather_sums() {
    b.w.sync();
    b.each(S::kChannels, [&](int channel) {
      const int owner = channel / 8 / S::kColumns, at = channel - owner * S::kColumns * 8;
      float total_sum = 0.0f;
      UNROLL for (int i = 0; i < S::kRows; ++i) total_sum +=
          b.w.lds<float>(S::kSums + ((i * S::kSplit + owner) * S::kColumns * 8 + at) * sizeof(float));
      b.w.sts(kPooled + channel * sizeof(float), total_sum);
    });
  }
};

}  // namespace ape::cuda
