// One convolution of whole rows: a 3x3 CONV of one source, or the interior of a 5x5 RECONSTRUCT that adds nothing.
//
// The rows of the patch stream through shared memory, eight a step. A warp owns a row and all its output channels:
//
//     ring     rows 8s-r .. 8s+7+r   from the arena, and the eight rows of step s + 1, which come while s is computed
//     weights  a row of taps for some chunks of 16 input channels a stage, two stages: computed, and coming
//
// One barrier a stage serves both. What the next stage needs is copied between the products, a piece after a tap.
// Ring and weights are for as many channels as the row has: `stage_chunks` tells whether they fit.
//      C   k   out  stages             ring + weights                               mma, ldmatrix.x4, 16-byte loads
//     16   3    64  6 x 3 x 1 chunk    18 * 1600 + 2 *  6144 B =  41 088 B           72    9   12
//     64   3    64  6 x 3 x 4 chunks   18 * 6400 + 2 * 24576 B = 164 352 B      4 *  72    9   12
//     64   5    48  6 x 5 x 4 chunks   20 * 6656 + 2 * 30720 B = 194 560 B      4 *  90   15   15
#pragma once

#include <type_traits>

#include "pair.h"

namespace ape::cuda {

// B: a carrier.
template <int K, int UNITS, class B>
struct Stream {
  using Element = Half::Element;
  static constexpr int kReach = K / 2, kSlots = 2 * kWarps + K - 1;
  static constexpr uint32_t kTileBytes = 16 * Half::kCellBytes;
  static constexpr uint32_t kGroupBytes = (kPairWidth + K - 1) * Half::kCellBytes;
  static constexpr uint32_t kChunkBytes = K * UNITS * Half::kUnitBytes;  // of weights: a row of taps
  static constexpr int kTurns = (K * UNITS + kWarps - 1) / kWarps;       // a warp copies a unit a turn
  static_assert(kTurns < K && kPairTiles <= K, "what is copied during a chunk has a tap of it, or a row of taps");

  B& b;
  const Instruction& in;
  const typename B::Map from;
  const int64_t patch;  // its number in the output
  const int chunks;     // of 16 input channels
  const int of_stage;   // chunks of a stage
  const int height, width;
  PerLane<uint32_t> rows;                  // ldmatrix addresses
  PerLane<const Element* [kTurns]> units;  // what the lane copies of a chunk of weights, in the first row of taps
  int stages_left;                         // to be fetched
  int ky = 0, chunk = 0;                   // the stage fetched next
  uint32_t slot;                           // where it goes
  // The row that the warp fetches for the next step: the lane's pixel of the first 16, of the first two groups.
  PerLane<const Element*> row_from;
  PerLane<uint32_t> row_to;
  int row_pixels;   // none where there is no such row
  bool row_inside;  // the patch
  Accumulators<kPairTiles, 2 * UNITS> acc;

  // How many chunks of 16 input channels a stage can have in `bytes` of shared memory; 0: too many channels.
  static FN int stage_chunks(int chunks, uint32_t bytes) {
    int count = chunks;
    while (count && (chunks % count || kSlots * chunks * 2 * kGroupBytes + 2 * count * kChunkBytes > bytes)) --count;
    return count;
  }

  FN Stream(B& b_, const Instruction& in_, int64_t patch_, int of_stage_)
      : b(b_),
        in(in_),
        from(b_.feature(in_.src)),
        patch(patch_),
        chunks(from.groups / 2),
        of_stage(of_stage_),
        height(from.height),
        width(from.width),
        stages_left(steps() * K * (chunks / of_stage_)),
        slot(weights()) {
    b.w.lanes([&](int l) {
      rows[l] = l / 16 * kGroupBytes + l % 16 * Half::kCellBytes;
      UNROLL for (int turn = 0; turn < kTurns; ++turn) {
        const int unit = turn * kWarps + b.w.id;
        units[l][turn] = b.weights(in.weight) + (unit / K * chunks * K * K + unit % K) * kUnitElements + l * 8;
      }
    });
  }

  FN int steps() const { return (height + kWarps - 1) / kWarps; }
  FN uint32_t row_bytes() const { return static_cast<uint32_t>(chunks) * 2 * kGroupBytes; }
  FN uint32_t weights() const { return kSlots * row_bytes(); }
  FN uint32_t stage_bytes() const { return static_cast<uint32_t>(of_stage) * kChunkBytes; }
  FN uint32_t slot_of(int row) const { return static_cast<uint32_t>((row + kSlots) % kSlots) * row_bytes(); }
  FN uint32_t other(uint32_t stage) const { return 2 * weights() + stage_bytes() - stage; }

  // The warp fetches `row`, if there is one: zeros above and below the patch.
  FN void expect(int row) {
    row_pixels = row < height + kReach ? width : 0;
    row_inside = row >= 0 && row < height;
    b.w.lanes([&](int l) {
      row_from[l] = from.cell(l / 16, row_inside ? row : 0, l % 16);
      row_to[l] = slot_of(row) + l / 16 * kGroupBytes + (l % 16 + kReach) * Half::kCellBytes;
    });
  }
  // 16 pixels of 16 channels of it.
  FN void fetch_pixels(int tile, int of_chunk) {
    const int pixels = tile < kPairTiles ? row_pixels : 0;
    b.w.lanes([&](int l) {
      if (tile * 16 + l % 16 < pixels)
        b.w.copy(row_to[l] + of_chunk * 2 * kGroupBytes + tile * kTileBytes,
                 row_from[l] + (static_cast<int64_t>(of_chunk) * 2 * from.plane() + tile * 16) * kCellChannels,
                 row_inside);
    });
  }
  // A unit of the weights of chunk `i` of the stage that comes.
  FN void fetch_units(int i, int turn) {
    const int unit = turn * kWarps + b.w.id;
    if (unit < K * UNITS && stages_left > 0)
      b.w.lanes([&](int l) {
        b.w.copy(slot + i * kChunkBytes + unit * Half::kUnitBytes + l * 16,
                 units[l][turn] + ((chunk + i) * K + ky) * K * kUnitElements, true);
      });
  }
  // To the stage after the one that has been fetched.
  FN void advance() {
    --stages_left;
    slot = other(slot);
    chunk += of_stage;
    if (chunk < chunks) return;
    chunk = 0;
    if (++ky == K) ky = 0;
  }

  FN void run() {
    // the columns left and right of the patch
    b.each(kSlots * chunks * 2 * (K - 1), [&](int i) {
      const int column = i % (K - 1);
      b.w.sts(i / (K - 1) * kGroupBytes + (column < kReach ? column : width + column) * Half::kCellBytes, U4{});
    });
    ROLLED for (int row = b.w.id - kReach; row < kWarps + kReach; row += kWarps) {
      expect(row);
      ROLLED for (int i = 0; i < chunks; ++i) UNROLL for (int tile = 0; tile < kPairTiles; ++tile)
          fetch_pixels(tile, i);
    }
    ROLLED for (int i = 0; i < of_stage; ++i) UNROLL for (int turn = 0; turn < kTurns; ++turn) fetch_units(i, turn);
    b.w.commit();
    advance();
    uint32_t now = weights();
    ROLLED for (int row = b.w.id; row < steps() * kWarps; row += kWarps) {
      expect(row + kWarps + kReach);
      start();
      ROLLED for (int y = 0; y < K; ++y) {
        ROLLED for (int first = 0; first < chunks; first += of_stage) {
          b.w.forget();
          b.w.template wait<0>();
          b.w.sync();  // the stage and its rows have arrived for every warp, and every warp is done with those before
          b.w.converge();
          ROLLED for (int i = 0; i < of_stage; ++i) {
            taps(slot_of(row + y - kReach) + (first + i) * 2 * kGroupBytes, now + i * kChunkBytes, y, first + i, i);
          }
          b.w.commit();
          advance();
          now = other(now);
        }
      }
      if (row >= height) continue;
      if constexpr (K == 5)
        put_pixels(row);
      else
        put_features(row);
    }
  }

  // A row of taps for 16 input channels, and what is fetched during it.
  FN void taps(uint32_t pixels, uint32_t units_at, int y, int of_chunk, int i) {
    UNROLL for (int x = 0; x < K; ++x) {
      Half::multiply<kPairTiles, 2 * UNITS, UNITS>(b.w, acc, rows, pixels + x * Half::kCellBytes, kTileBytes, 0,
                                                   units_at + x * Half::kUnitBytes, K * Half::kUnitBytes);
      if (x < kTurns)
        fetch_units(i, x);
      else if (x == kTurns)
        fetch_pixels(y,
                     of_chunk);  // nothing past the third tile: a condition of the copy, no branch parts the products
    }
  }

  FN void start() {
    const float* bias = b.vector(in.bias);
    UNROLL for (int n = 0; n < 2 * UNITS; ++n) b.w.lanes([&](int l) {
      const F2 v = b.w.template load<F2>(bias + n * 8 + fragment_channel(l));
      UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        acc[m][n][l][2 * j] = v.x;
        acc[m][n][l][2 * j + 1] = v.y;
      }
    });
  }

  FN int pixel(int l, int m, int j) const { return m * 16 + fragment_pixel(l, j); }

  // All that is added is loaded before the first value is stored.
  FN void put_features(int row) {
    if (in.activation != kNone || scale_of(in) != 1.0f) {
      const float scale = scale_of(in);
      UNROLL for (int n = 0; n < 2 * UNITS; ++n) b.w.lanes([&](int l) {
        const F2 slope = slope_of(b, in, n * 8 + fragment_channel(l));
        UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          const F2 v = activated(acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1], slope);
          acc[m][n][l][2 * j] = v.x * scale;
          acc[m][n][l][2 * j + 1] = v.y * scale;
        }
      });
    }
    if (in.add != kNoBuffer)
      b.w.lanes([&](int l) {
        const auto add = b.feature(in.add);
        const Element* at = add.cell(0, row, pixel(l, 0, 0)) + fragment_channel(l);
        UNROLL for (int n = 0; n < 2 * UNITS; ++n, at += add.plane() * kCellChannels) {
          UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
            if (pixel(l, m, j) >= width) continue;
            const F2 v = Half::load_pair(b.w, at + pixel(0, m, j) * kCellChannels);
            acc[m][n][l][2 * j] += v.x;
            acc[m][n][l][2 * j + 1] += v.y;
          }
        }
      });
    b.w.lanes([&](int l) {
      const auto to = b.target(in.dst);
      Element* at = to.cell(0, row, pixel(l, 0, 0)) + fragment_channel(l);
      Kept<kPairTiles> kept;
      find_kept<kPairTiles, 0, 16>(b, l, row, 0, kept);
      UNROLL for (int n = 0; n < 2 * UNITS; ++n, at += to.plane() * kCellChannels) {
        UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2;
                                                                ++j) if (pixel(l, m, j) < width && kept[m][j])
            Half::store_pair(b.w, at + pixel(0, m, j) * kCellChannels, {acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1]});
      }
    });
  }

  // The ring of border pixels, where it has kernels of its own, is left out.
  FN void put_pixels(int row) {
    const int border = b.border(in);
    if (row < border || row >= height - border) return;
    const Outlet<B> outlet(b, in, patch);
    if (outlet.paired)
      put_pixels<true>(outlet, row, border);
    else
      put_pixels<false>(outlet, row, border);
  }
  template <bool PAIRED>
  FN void put_pixels(const Outlet<B>& outlet, int row, int border) {
    PerLane<Kept<kPairTiles>> kept;
    b.w.lanes([&](int l) { find_kept<kPairTiles, 0, 16>(b, l, row, 0, kept[l]); });
    UNROLL for (int n = 0; n < 2 * UNITS; ++n) b.w.lanes([&](int l) {
      const auto place = outlet.place(n * 8 + fragment_channel(l));
      UNROLL for (int i = 0; i < (PAIRED ? 1 : 2); ++i) {
        float* at = place.out[i] + outlet.at(row, pixel(l, 0, 0));
        const int end = place.out[i] ? width - border : 0;
        UNROLL for (int m = 0; m < kPairTiles; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          if (pixel(l, m, j) < border || pixel(l, m, j) >= end || !kept[l][m][j]) continue;
          float* to = at + pixel(0, m, j) * outlet.s;
          if constexpr (PAIRED)
            b.w.store(to, F2{acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1]});
          else
            b.w.store(to, acc[m][n][l][2 * j + i]);
        }
      }
    });
  }
};

template <int K, int UNITS, class B>
FN bool stream_units(B& b, const Instruction& in, int64_t patch, uint32_t bytes) {
  using S = Stream<K, UNITS, B>;
  const int of_stage = S::stage_chunks(b.feature(in.src).groups / 2, bytes);
  if (of_stage) S(b, in, patch, of_stage).run();
  return of_stage > 0;
}

// Runs a convolution of one source by whole rows, if it is one of those and its rows fit in so much shared memory.
template <class B>
FN bool stream(B& b, const Instruction& in, int64_t patch, uint32_t bytes) {
  if constexpr (std::is_same_v<typename B::Type, Half>) {
    if (b.feature(in.src).width > kPairWidth) return false;
    const int units = padded(in.out_channels) / kUnitChannels;
    if (in.opcode == kConv && in.kernel == 3) {
      switch (units) {
        case 1:
          return stream_units<3, 1>(b, in, patch, bytes);
        case 2:
          return stream_units<3, 2>(b, in, patch, bytes);
        case 3:
          return stream_units<3, 3>(b, in, patch, bytes);
        case 4:
          return stream_units<3, 4>(b, in, patch, bytes);
      }
    }
    if (in.opcode == kReconstruct && in.kernel == 5 && in.add == kNoBuffer) {
      switch (units) {
        case 1:
          return stream_units<5, 1>(b, in, patch, bytes);
        case 2:
          return stream_units<5, 2>(b, in, patch, bytes);
        case 3:
          return stream_units<5, 3>(b, in, patch, bytes);
      }
    }
  }
  return false;
}

}  // namespace ape::cuda
