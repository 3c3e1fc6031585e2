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
// y written once, no halo is computed twice. Weights stream in stages of kTaps taps, kStages of them in shared memory;
// one barrier a stage serves weights, x and h alike. A warp owns a pixel row of a step and C / kSplit output channels.
// What later stages need is copied between the products of a tap: no product waits for addresses.
//
// Rings are [slot][C / 8][50] cells: columns -1 and W stay zero, a tap is a start address. Shared memory is two rings
// of kRows + 2 rows, the stages, and the sums over pixels of every channel of y, for an exit or attention that follows.
// With the instructions of a warp, a tap (worker.h lists the shapes):
//      C   kRows kSplit  stages    rings + weights + sums                             mma, ldmatrix.x4, 16-byte loads
//     16     8     1    4 or 3x3   2 * 10 * 1600 + 9 *   512 +  512 B =  37 120 B       6    3    1
//     32     8     1    4 or 3x3   2 * 10 * 3200 + 9 *  2048 + 1024 B =  83 456 B      24    6    4
//     48     8     1    4 or 3x3   2 * 10 * 4800 + 9 *  4608 + 1536 B = 139 008 B      54    9    9
//     64     8     1       4       2 * 10 * 6400 + 4 *  8192 + 2048 B = 162 816 B      96   12   16
//     64     8     1      3x3      2 * 10 * 6400 + 9 *  8192 + 2048 B = 203 776 B      96   12   16
//     64     4     2       2       2 *  6 * 6400 + 2 *  8192 + 1024 B =  94 208 B      48   12    8
//     96     4     2    2 or 4    2 *  6 * 9600 + 4 * 18432 + 1536 B = 190 464 B  2 * 54    9    9
#pragma once

#include "conv.h"

namespace ape::cuda {

constexpr int kPairTiles = 3;  // of 16 pixels along a row
constexpr int kPairWidth = kPairTiles * 16;
static_assert(kPairWidth == kWindow);

template <int C, int ROWS, int TAPS, int STAGES>
struct PairShape {
  static constexpr int kChannels = C, kRows = ROWS, kTaps = TAPS, kStages = STAGES;
  static constexpr int kSplit = kWarps / ROWS;     // warps that share a row
  static constexpr int kColumns = C / 8 / kSplit;  // mma columns of eight channels of a warp
  static constexpr int kGroups = C / kCellChannels, kChunks = C / kUnitChannels;
  static constexpr int kPitch = kPairWidth + 2, kRing = ROWS + 2;
  static constexpr bool kUnrolled = kChunks <= 4;   // a tap; for more there are not the registers
  static constexpr int kUnits = kChunks * kChunks;  // of a tap
  static_assert(kUnits <= kChunks * kWarps && (kUnrolled || kChunks % 3 == 0), "a warp copies one unit per chunk");
  // A warp copies kPieces times two groups of channels of a row of the next x: one half in each of the first two rows
  // of taps, 16 pixels per tap.
  static constexpr int kPieces = kChunks / kSplit, kPieceTurns = (kPieces + 1) / 2;
  static constexpr uint32_t kTileBytes = 16 * Half::kCellBytes;
  static constexpr uint32_t kGroupBytes = kPitch * Half::kCellBytes, kRowBytes = kGroups * kGroupBytes;
  static constexpr uint32_t kTapBytes = kUnits * Half::kUnitBytes, kStageBytes = TAPS * kTapBytes;
  static constexpr uint32_t kX = 0, kH = kRing * kRowBytes, kWeights = 2 * kH, kSums = kWeights + STAGES * kStageBytes;
  static constexpr uint32_t kBytes = kSums + kWarps * kColumns * 8 * sizeof(float);
  static_assert(kWarps % ROWS == 0 && kColumns % 2 == 0 && kChunks % kSplit == 0, "whole units for a warp");
  static_assert(C % kUnitChannels == 0 && STAGES >= 2 && (TAPS == 1 || TAPS == 3), "a stage is a tap or a row of them");
  static_assert(6 / TAPS + STAGES - 2 <= 9 / TAPS, "a copy of x is complete before its convolution ends");
  static_assert(kRowBytes % 16 == 0, "16-byte copies");
};

// S: a PairShape. B: a carrier.
template <class S, class B>
struct Pair {
  using Element = Half::Element;
  static constexpr int kConvStages = 9 / S::kTaps;

  // The stage of weights that is fetched next.
  struct Ahead {
    int left, of_conv;             // stages left, of the pair and of their convolution
    PerLane<const Element*> from;  // what the lane copies first of it
    uint32_t slot;                 // in shared memory
  };
  // The row of x that the warp fetches next.
  struct Coming {
    int pixels;  // of it that are fetched: none where there is no such row, negative where it is below the patch
    PerLane<const Element*> from;
    PerLane<uint32_t> to;
  };
  B& b;
  int number;              // of the first of the two rows
  int height, width;       // of x, h and y
  const bool sums;         // wanted
  PerLane<uint32_t> rows;  // ldmatrix addresses
  uint32_t now = 0;        // slot of the stage computed next
  Ahead ahead;
  Coming coming;
  Accumulators<kPairTiles, S::kColumns> acc;

  FN Pair(B& b_, int row, bool sums_) : b(b_), number(row), height(x().height), width(x().width), sums(sums_) {
    b.w.lanes([&](int l) { rows[l] = l / 16 * S::kGroupBytes + l % 16 * Half::kCellBytes; });
  }

  // Looked up whenever they are needed: the tap loop has no registers left to keep them in.
  FN const Instruction& in1() const { return b.row(number); }
  FN const Instruction& in2() const { return b.row(number + 1); }
  FN auto x() const { return b.feature(in1().src); }
  FN int line() const { return b.w.id / S::kSplit; }  // of a step
  // The warp's first mma column of N: its share of a row that kSplit warps have, or two where all have the same row.
  template <int N>
  FN int column() const {
    return N == S::kColumns ? b.w.id % S::kSplit * N : b.w.id % (S::kGroups / N) * N;
  }
  FN int steps() const { return (height + S::kRows) / S::kRows; }
  // In the last step of a height of whole steps there is no h left to compute.
  FN bool has_h(int step) const { return step * S::kRows < height; }
  FN static uint32_t slot(int row) { return static_cast<uint32_t>((row + S::kRing) % S::kRing) * S::kRowBytes; }
  FN static uint32_t cell(int pixel, int channel) {
    return channel / 8 * S::kGroupBytes + (pixel + 1) * Half::kCellBytes + channel % 8 * sizeof(Element);
  }

  // Where the lane's pixel of the first 16 in `row` of x is, and where it goes: of the two groups from `group` on.
  FN const Element* x_from(int l, int group, int row) const {
    return x().cell(group + l / 16, row >= 0 && row < height ? row : 0, l % 16);
  }
  FN uint32_t x_to(int l, int group, int row) const {
    return S::kX + slot(row) + cell(l % 16, (group + l / 16) * kCellChannels);
  }

  // The rows of x that the first step begins with, zeros outside the patch.
  FN void fetch_first_rows() {
    ROLLED for (int i = b.w.id; i < S::kRing * S::kChunks; i += kWarps) {
      const int row = i / S::kChunks - 1, group = i % S::kChunks * 2;
      if (row <= height)
        b.w.lanes([&](int l) {
          UNROLL for (int m = 0; m < kPairTiles; ++m) if (m * 16 + l % 16 < width)
              b.w.copy(x_to(l, group, row) + m * S::kTileBytes, x_from(l, group, row) + m * 16 * kCellChannels,
                       row >= 0 && row < height);
        });
    }
  }
  // The warp's row of x for step `step`, if there is one.
  FN void expect_row(int step) {
    const int row = step * S::kRows + 1 + line(), group = b.w.id % S::kSplit * S::kPieces * 2;
    coming.pixels = row < height ? width : row == height ? -width : 0;
    b.w.lanes([&](int l) {
      coming.from[l] = x_from(l, group, row);
      coming.to[l] = x_to(l, group, row);
    });
  }

  // Points `ahead` to the weights of its convolution.
  FN void aim() {
    const int convs = ahead.left / kConvStages;
    const bool is_y = convs == 1 || convs % 2 == has_h(steps() - 1);
    const Element* weights = b.weights((is_y ? in2() : in1()).weight) + b.w.id * 9 * kUnitElements;
    b.w.lanes([&](int l) { ahead.from[l] = weights + l * 8; });
    ahead.of_conv = kConvStages;
  }
  FN static uint32_t next(uint32_t slot) {
    return slot == (S::kStages - 1) * S::kStageBytes ? 0 : slot + S::kStageBytes;
  }
  // What the warp copies of tap `t` of the stage ahead after chunk `turn` of a tap: a unit. Conditions are those of the
  // copy itself, so that no branch parts the products; kUnrolled: the compiler knows `turn`.
  FN void fetch_units(int t, int turn) {
    if (S::kUnrolled && turn * kWarps >= S::kUnits) return;
    const int unit = turn * kWarps + b.w.id, units = ahead.left > 0 ? S::kUnits : 0;
    const bool wanted = (turn + 1) * kWarps <= S::kUnits ? units : unit < units;
    b.w.lanes([&](int l) {
      if (wanted)
        b.w.copy(S::kWeights + ahead.slot + t * S::kTapBytes + unit * Half::kUnitBytes + l * 16,
                 ahead.from[l] + (t + turn * kWarps * 9) * kUnitElements, true);
    });
  }
  // And of x, during tap (ky, kx): 16 pixels of two groups.
  FN void fetch_x(int ky, int kx, int turn) {
    if (S::kUnrolled && turn >= S::kPieceTurns) return;
    const bool has = turn < S::kPieceTurns && (S::kPieces % 2 == 0 || ky * S::kPieceTurns + turn < S::kPieces);
    const int pixels = has ? coming.pixels : 0;
    b.w.lanes([&](int l) {
      if (kx * 16 + l % 16 < (pixels < 0 ? -pixels : pixels))
        b.w.copy(coming.to[l] + turn * 2 * S::kGroupBytes + kx * S::kTileBytes,
                 coming.from[l] + (turn * 2 * static_cast<int64_t>(b.plane(height, width)) + kx * 16) * kCellChannels,
                 pixels > 0);
    });
  }
  // After a stage of which the last tap was (ky, kx).
  FN void advance(int ky, int kx) {
    ahead.slot = next(ahead.slot);
    b.w.lanes([&](int l) { ahead.from[l] += S::kTaps * kUnitElements; });
    --ahead.left;
    if (--ahead.of_conv == 0 && ahead.left > 0) aim();
    if (kx < 2) return;
    if (ky == 1) coming.pixels = 0;
    b.w.lanes([&](int l) {
      coming.to[l] += S::kPieceTurns * 2 * S::kGroupBytes;
      coming.from[l] += S::kPieceTurns * 2 * static_cast<int64_t>(b.plane(height, width)) * kCellChannels;
    });
  }

  template <int N>
  FN void start(const float* bias) {
    UNROLL for (int n = 0; n < N; ++n) b.w.lanes([&](int l) {
      const F2 v = b.w.template load<F2>(bias + channel_at<N>(l, n));
      UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        acc[m][n][l][2 * j] = v.x;
        acc[m][n][l][2 * j + 1] = v.y;
      }
    });
  }

  // Nine taps over rows row - 1 .. row + 1 of a ring.
  template <int N>
  FN void convolve(uint32_t ring, int row) {
    ROLLED for (int i = 0; i < kConvStages; ++i) {
      const int ky = S::kTaps == 3 ? i : i / 3, kx = S::kTaps == 3 ? 0 : i % 3;
      const uint32_t from = ring + slot(row + ky - 1) + kx * Half::kCellBytes;
      b.w.template wait<S::kStages - 2>();
      b.w.sync();
      b.w.converge();
      taps<N>(from, ky, kx);
      b.w.commit();
      now = next(now);
      advance(ky, kx + S::kTaps - 1);
    }
  }

  // The taps of a stage from (ky, kx) on, and what is fetched during them.
  template <int N>
  FN void taps(uint32_t from, int ky, int kx) {
    const uint32_t units = S::kWeights + now + column<N>() / 2 * S::kChunks * Half::kUnitBytes;
    constexpr int kAtOnce = S::kUnrolled ? S::kChunks : 3;
    UNROLL for (int t = 0; t < S::kTaps; ++t) {
      ROLLED for (int done = 0; done < S::kChunks; done += kAtOnce) UNROLL for (int k = done; k < done + kAtOnce; ++k) {
        Half::multiply<kPairTiles, S::kColumns, N / 2>(
            b.w, acc, rows, from + t * Half::kCellBytes + k * 2 * S::kGroupBytes, S::kTileBytes, 0,
            units + t * S::kTapBytes + k * Half::kUnitBytes, S::kChunks * Half::kUnitBytes);
        if (k == done) b.w.forget();  // addresses are cheaper to compute again than to keep
        fetch_units(t, k);
        if constexpr (N == S::kColumns) fetch_x(ky, kx + t, S::kChunks - 1 - k);
      }
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
    fetch_first_rows();
    coming = {};
    ahead = {};
    ahead.left = kConvStages * (2 * steps() - !has_h(steps() - 1));
    aim();
    for (int i = 0; i < S::kStages - 1; ++i) {
      UNROLL for (int t = 0; t < S::kTaps; ++t) UNROLL for (int k = 0; k < S::kChunks; ++k) fetch_units(t, k);
      b.w.commit();
      advance(0, 0);
    }
    ROLLED for (int half = 0; half < 2 * steps(); ++half) {
      b.w.forget();
      Warp::forget(number);
      Warp::forget(height);
      Warp::forget(width);
      const int step = half / 2;
      const bool makes_y = half % 2;
      const int row = step * S::kRows + line() - makes_y;
      if (makes_y && step + 1 < steps()) expect_row(step + 1);
      if (has_h(step) || (makes_y && S::kSplit > 1))
        compute<S::kColumns>(makes_y, row, row >= 0 && row < height);
      else if constexpr (S::kSplit == 1) {
        // the last row of y, alone: 16 of its channels a warp
        if (makes_y) compute<2>(true, height - 1, b.w.id < S::kChunks);
      }
      if (!makes_y && row == height) zero_h(row);
    }
    if (sums) gather_sums();
  }

  // A row of h or y. A warp without one (not live) computes another's and keeps nothing: a branch around the taps costs
  // registers.
  template <int N>
  FN void compute(bool makes_y, int row, bool live) {
    clear(b.w, acc);
    start<N>(b.vector(makes_y ? in2().bias : in1().bias));
    if (makes_y && live && in2().add != kNoBuffer) add_x<N>(row);
    convolve<N>(makes_y ? S::kH : S::kX, row < 0 ? 0 : row < height ? row : height - 1);
    if (live && makes_y) put_y<N>(row);
    if (live && !makes_y) put_h(row);
    coming.pixels = 0;
  }

  template <int N>
  FN int channel_at(int l, int n) const {
    return (column<N>() + n) * 8 + fragment_channel(l);
  }

  // The row of x times one: a unit whose diagonal is 1.0 hands channels on as they are.
  template <int N>
  FN void add_x(int row) {
    PerLane<U4> one;
    b.w.lanes([&](int l) {
      const int out = l / 4 - fragment_channel(l);
      one[l].r[0] = one[l].r[3] = out == 0 ? 0x00003c00u : out == 1 ? 0x3c000000u : 0u;
      one[l].r[1] = one[l].r[2] = 0u;
    });
    b.w.converge();
    const uint32_t from = S::kX + slot(row) + cell(0, column<N>() * kCellChannels);
    UNROLL for (int p = 0; p < N / 2; ++p) UNROLL for (int m = 0; m < kPairTiles; ++m) {
      PerLane<U4> a;
      b.w.ldmatrix(a, rows, from + p * 2 * S::kGroupBytes + m * S::kTileBytes);
      b.w.mma(acc[m][2 * p], a, one, 0);
      b.w.mma(acc[m][2 * p + 1], a, one, 1);
    }
  }

  // The warp's part of a row of h that is outside the patch.
  FN void zero_h(int row) {
    b.w.lanes([&](int l) {
      ROLLED for (int i = l; i < S::kColumns * width; i += kLanes)
          b.w.sts(S::kH + slot(row) + cell(i % width, (column<S::kColumns>() + i / width) * 8), U4{});
    });
  }

  template <int N>
  FN void activate(const Instruction& in) {
    if (in.activation == kNone) return;
    UNROLL for (int n = 0; n < N; ++n) b.w.lanes([&](int l) {
      const F2 slope = slope_of(b, in, channel_at<N>(l, n));
      UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        const F2 v = activated(acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1], slope);
        acc[m][n][l][2 * j] = v.x;
        acc[m][n][l][2 * j + 1] = v.y;
      }
    });
  }

  // A row of h to its ring.
  FN void put_h(int row) {
    if (in1().activation == kRelu) return put_h<true>(row);
    activate<S::kColumns>(in1());
    put_h<false>(row);
  }
  template <bool RECTIFIED>
  FN void put_h(int row) {
    b.w.lanes([&](int l) {
      const uint32_t at = S::kH + slot(row) + cell(fragment_pixel(l, 0), channel_at<S::kColumns>(l, 0));
      UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        if (m * 16 + fragment_pixel(l, j) >= width) continue;
        UNROLL for (int n = 0; n < S::kColumns; ++n)
            b.w.sts(at + n * S::kGroupBytes + (m * 16 + 8 * j) * Half::kCellBytes,
                    (RECTIFIED ? pack_rectified : pack_halves)(acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1]));
      }
    });
  }

  template <int N>
  FN void put_y(int row) {
    activate<N>(in2());
    b.w.lanes([&](int l) {
      const auto y = b.target(in2().dst);
      Element* to = y.cell(column<N>(), row, fragment_pixel(l, 0)) + fragment_channel(l);
      Kept<kPairTiles> kept;
      find_kept<kPairTiles, 0, 16>(b, l, row, 0, kept);
      UNROLL for (int n = 0; n < N; ++n, to += y.plane() * kCellChannels) {
        UNROLL for (int m = 0; m < kPairTiles; ++m)
            UNROLL for (int j = 0; j < 2; ++j) if (m * 16 + fragment_pixel(l, j) < width && kept[m][j])
                Half::store_pair(b.w, to + (m * 16 + 8 * j) * kCellChannels,
                                 {acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1]});
      }
    });
    if (sums) add_sums<N>();
  }

  template <int N>
  FN void add_sums() {
    UNROLL for (int n = 0; n < N; ++n) {
      PerLane<float> part[2];
      b.w.lanes([&](int l) {
        part[0][l] = part[1][l] = 0.0f;
        UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          if (m * 16 + fragment_pixel(l, j) >= width) continue;
          part[0][l] += acc[m][n][l][2 * j];
          part[1][l] += acc[m][n][l][2 * j + 1];
        }
      });
      UNROLL for (int i = 0; i < 2; ++i) b.w.sum_rows(part[i]);
      const uint32_t at =
          S::kSums + ((N == S::kColumns ? line() * S::kGroups : 0) + column<N>() + n) * 8 * sizeof(float);
      b.w.lanes([&](int l) {
        if (l >= 4) return;  // a lane reads and writes the sums it owns, so that none reads what another writes
        const F2 before = b.w.template lds<F2>(at + fragment_channel(l) * sizeof(float));
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
      float total_sum = 0.0f;
      UNROLL for (int i = 0; i < S::kRows; ++i) total_sum +=
          b.w.template lds<float>(S::kSums + (i * S::kChannels + channel) * sizeof(float));
      b.w.sts(kPooled + channel * sizeof(float), total_sum);
    });
  }
};

}  // namespace ape::cuda
