// Convolutions of any size: CONV and RECONSTRUCT rows as implicit matrix products, feature buffers in and out.
//
// The block computes one tile of 16 x 16 pixels and up to 64 output channels at a time; warp w owns the tile's pixel
// rows 2w and 2w + 1. Work comes in steps: the taps of 16 input channels (k = 5: a row of them). What a step needs, the
// weights and the 16 channels of the tile and its halo, comes to shared memory by asynchronous copies, kStages - 1
// steps ahead and across tiles, issued between the products of a step; one barrier a step. In shared memory the halo
// tile is [2][lines][columns] cells, so a tap is a start address; what is outside the patch is filled with zeros.
//
// Shared memory: kStages slots for weights and kStages for inputs (k = 5: two). Half, k = 3, 64 channels: 3 * 9 * 4 *
// 512 B + 3 * 2 * 18 * 18 * 16 B = 86 400 B. A tap costs a warp two ldmatrix.x4 and four 16-byte loads for 16
// mma.m16n8k16, 192 B of shared memory each; a step of k = 3 is 144 of them between two barriers.
#pragma once

#include "reconstruct.h"

namespace ape::cuda {

constexpr int kTile = 16;                  // pixels, both ways
constexpr int kTileRows = kTile / kWarps;  // of a warp
static_assert(kTileRows * kWarps == kTile && kTile == 16, "a warp's pixel rows are whole mma tiles");

template <class E>
struct ConvShared {
  static constexpr int kSide5 = kTile + 4, kSide3 = kTile + 2;
  static constexpr uint32_t kBytes3 =
      E::kStages * (2 * kSide3 * kSide3 * E::kCellBytes + 9 * E::kMostUnits * E::kUnitBytes);
  static constexpr uint32_t kBytes5 =
      2 * (2 * kSide5 * kSide5 * E::kCellBytes) + E::kStages * 5 * E::kMostUnits5 * E::kUnitBytes;
  static constexpr uint32_t kBytes = kBytes3 > kBytes5 ? kBytes3 : kBytes5;  // k = 1 needs less
  static_assert(kBytes <= 99 * 1024 - 16, "fits the smallest shared memory of sm_80 and up");
  static_assert(E::kStages >= 2 && E::kStages - 1 <= 5, "two inputs of k = 5 last as long as the steps fetched ahead");
};

// What negative values of output channel `channel` and the next are multiplied with.
template <class B>
FN F2 slope_of(B& b, const Instruction& in, int channel) {
  if (in.activation == kPrelu) return b.w.template load<F2>(b.vector(in.slope) + channel);
  const float slope = in.activation == kRelu ? 0.0f : 1.0f;
  return {slope, slope};
}

FN F2 activated(float x, float y, F2 slope) { return {x < 0.0f ? x * slope.x : x, y < 0.0f ? y * slope.y : y}; }

// B: a carrier.
template <class B>
struct Conv {
  using E = typename B::Type;
  using Element = typename E::Element;

  // Where work stands: the tile's first pixel, its first unit of output channels, the row of taps.
  struct Place {
    int y, x, pair;
    int step, ky;             // steps done of this tile; first row of taps
    uint32_t weights, input;  // slots in shared memory
  };

  B& b;
  const Instruction& in;
  const typename B::Map to;  // geometry of the pixels computed; also the buffer written by a CONV
  const int first;           // the first SOURCE row, or the row itself
  const int64_t patch;       // its number in the output
  const int kernel, side, pairs, most;
  const int lines;          // rows of taps a step
  const int taps, inverse;  // of a step; 512 / taps, rounded up
  int steps = 0;            // of a tile
  Place ahead, now;         // fetched next, computed next
  const Element* units;     // fetched next: the weights of the step
  int source, chunks;       // row of the table that names the buffer, chunks of 16 channels left of it,
  const Element* channels;  // the first of these
  PerLane<uint32_t> rows;   // ldmatrix addresses
  Accumulators<kTileRows, 2 * E::kMostUnits> acc;

  FN Conv(B& b_, int row, int first_, int64_t patch_)
      : b(b_),
        in(b_.row(row)),
        to(in.opcode == kConv ? b_.target(in.dst) : b_.feature(in.src)),
        first(first_),
        patch(patch_),
        kernel(in.kernel),
        side(kTile + in.kernel - 1),
        pairs(padded(in.out_channels) / kUnitChannels),
        most(in.kernel == 5 ? E::kMostUnits5 : E::kMostUnits),
        lines(in.kernel == 5 ? 1 : in.kernel),
        taps(lines * in.kernel),
        inverse((512 + taps - 1) / taps),
        units(b_.weights(in.weight)),
        source(first_) {
    for (int i = first; i <= row; ++i)
      steps += padded(b.row(b.row(i).src).in_channels) / kUnitChannels * (kernel / lines);
    ahead = now = {0, 0, 0, 0, 0, weight_slots(), 0};
    open();
    b.w.lanes([&](int l) { rows[l] = (l / 16 * side * side + l % 16) * E::kCellBytes; });
    clear(b.w, acc);
  }

  FN uint32_t input_bytes() const { return 2 * side * side * E::kCellBytes; }
  FN uint32_t weight_slots() const { return (kernel == 5 ? 2 : E::kStages) * input_bytes(); }
  FN uint32_t slot_bytes() const { return most * taps * E::kUnitBytes; }
  FN int units_at(const Place& place) const { return pairs - place.pair < most ? pairs - place.pair : most; }
  FN bool done(const Place& place) const { return place.y >= to.height; }

  FN void next(Place& place) const {
    place.weights += slot_bytes();
    if (place.weights == weight_slots() + E::kStages * slot_bytes()) place.weights = weight_slots();
    place.ky += lines;
    if (place.ky == kernel) {
      place.ky = 0;
      place.input += input_bytes();
      if (place.input == weight_slots()) place.input = 0;
    }
    if (++place.step < steps) return;
    place.step = 0;
    place.pair += most;
    if (place.pair < pairs) return;
    place.pair = 0;
    place.x += kTile;
    if (place.x < to.width) return;
    place.x = 0;
    place.y += kTile;
  }

  FN void open() {
    const auto src = b.feature(b.row(source).src);
    channels = src.data;
    chunks = src.groups / 2;
  }

  // The warp's part of the copies of what comes next, in kTurns turns: a unit of weights and, with the first of 16
  // channels, a line of the halo tile.
  static constexpr int kTurns = 5;
  static_assert(kTurns * kWarps >= 2 * (kTile + 4) && kTurns * kWarps >= 9 * E::kMostUnits &&
                    kTurns * kWarps >= 5 * E::kMostUnits5 && kTile + 4 <= kLanes,
                "every unit and every line has a turn and fits a warp");
  FN void fetch(int turn) {
    const int number = turn * kWarps + b.w.id;
    if (number < units_at(ahead) * taps) {
      const int pair = number * inverse >> 9;  // number / taps
      const Element* from = units + (static_cast<int64_t>(pair) * (steps - 1) * taps + number) * kUnitElements;
      b.w.lanes([&](int l) {
        UNROLL for (uint32_t part = 0; part < E::kUnitBytes; part += kLanes * 16) b.w.copy(
            ahead.weights + number * E::kUnitBytes + part + l * 16, from + (part + l * 16) / sizeof(Element), true);
      });
    }
    if (ahead.ky || number >= 2 * side) return;
    const int group = number >= side, y = ahead.y + number - group * side - kernel / 2;
    b.w.lanes([&](int l) {
      const int x = ahead.x + l - kernel / 2;
      const bool inside = y >= 0 && y < to.height && x >= 0 && x < to.width;
      const int64_t cell = inside ? static_cast<int64_t>(group) * to.plane() + y * to.pitch() + x : 0;
      UNROLL for (uint32_t part = 0; part < E::kCellBytes; part += 16) if (l < side)
          b.w.copy(ahead.input + (number * side + l) * E::kCellBytes + part,
                   channels + cell * kCellChannels + part / sizeof(Element), inside);
    });
  }

  // After the last turn.
  FN void advance() {
    if (!ahead.ky) {
      channels += static_cast<int64_t>(2) * to.plane() * kCellChannels;
      if (!--chunks) {
        source = ahead.step + kernel / lines < steps ? source + 1 : first;
        open();
      }
    }
    next(ahead);
    units += taps * kUnitElements;
    if (ahead.step == 0) units = b.weights(in.weight) + static_cast<int64_t>(ahead.pair) * steps * taps * kUnitElements;
  }

  FN void run() {
    ROLLED for (int lead = E::kStages - 1; !done(now); --lead) {
      if (lead > 0) {
        ROLLED for (int turn = 0; turn < kTurns && !done(ahead); ++turn) fetch(turn);
      } else {
        b.w.template wait<E::kStages - 2>();
        b.w.sync();  // what comes now has arrived for every warp, and every warp is done with what came before
        if (now.step == 0) begin();
        b.w.converge();
        multiply();  // and fetch
      }
      b.w.commit();
      if (!done(ahead)) advance();
      if (lead > 0) continue;
      if (now.step == steps - 1) finish();
      next(now);
    }
  }

  FN void begin() {
    const float* bias = b.vector(in.bias) + now.pair * kUnitChannels;
    UNROLL for (int n = 0; n < 2 * E::kMostUnits; ++n) {
      if (n >= 2 * units_at(now)) continue;
      b.w.lanes([&](int l) {
        const F2 start = b.w.template load<F2>(bias + n * 8 + fragment_channel(l));
        UNROLL for (int m = 0; m < kTileRows; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          acc[m][n][l][2 * j] = start.x;
          acc[m][n][l][2 * j + 1] = start.y;
        }
      });
    }
  }

  FN void multiply() {
    switch (units_at(now)) {
      case 1:
        return multiply_by<1>();
      case 2:
        return multiply_by<2>();
      case 3:
        if constexpr (E::kMostUnits >= 3) return multiply_by<3>();
        return;
      default:
        if constexpr (E::kMostUnits >= 4) return multiply_by<4>();
    }
  }

  // The taps of a step for UNITS times 16 output channels; between them the copies.
  template <int UNITS>
  FN void multiply_by() {
    const uint32_t row_bytes = side * E::kCellBytes;
    const int turns = done(ahead) ? 0 : kTurns;
    uint32_t pixels = now.input + (b.w.id * kTileRows + now.ky) * row_bytes, weights = now.weights;
    ROLLED for (int tap = 0, kx = 0; tap < taps; ++tap) {
      E::template multiply<kTileRows, 2 * E::kMostUnits, UNITS>(b.w, acc, rows, pixels, row_bytes, side * row_bytes,
                                                                weights, taps * E::kUnitBytes);
      ROLLED for (int turn = tap; turn < turns; turn += taps) fetch(turn);
      weights += E::kUnitBytes;
      pixels += E::kCellBytes;
      if (++kx < kernel) continue;
      kx = 0;
      pixels += row_bytes - kernel * E::kCellBytes;
    }
  }

  FN void finish() {
    PerLane<Kept<kTileRows>> kept;
    b.w.lanes([&](int l) { find_kept<kTileRows, 1, 0>(b, l, line(0), now.x, kept[l]); });
    if (in.opcode == kReconstruct) return put_pixels(kept);
    UNROLL for (int n = 0; n < 2 * E::kMostUnits; ++n) {
      if (n >= 2 * units_at(now)) continue;
      b.w.lanes([&](int l) {
        const int channel = now.pair * kUnitChannels + n * 8 + fragment_channel(l);
        const F2 slope = slope_of(b, in, channel);
        UNROLL for (int m = 0; m < kTileRows; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          const int y = line(m), x = now.x + fragment_pixel(l, j);
          if (y >= to.height || x >= to.width || !kept[l][m][j]) continue;
          const int64_t element = to.cell(channel / kCellChannels, y, x) - to.data + channel % kCellChannels;
          F2 v = activated(acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1], slope);
          v = {v.x * scale_of(in), v.y * scale_of(in)};
          if (in.add != kNoBuffer) {
            const F2 added = E::load_pair(b.w, b.feature(in.add).data + element);
            v = {v.x + added.x, v.y + added.y};
          }
          E::store_pair(b.w, to.data + element, v);
        }
      });
    }
  }

  FN int line(int m) const { return now.y + b.w.id * kTileRows + m; }

  FN void put_pixels(const PerLane<Kept<kTileRows>>& kept) {
    const Outlet<B> outlet(b, in, patch);
    UNROLL for (int n = 0; n < 2 * E::kMostUnits; ++n) {
      if (n >= 2 * units_at(now)) continue;
      b.w.lanes([&](int l) {
        const auto place = outlet.place(now.pair * kUnitChannels + n * 8 + fragment_channel(l));
        UNROLL for (int m = 0; m < kTileRows; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          const int y = line(m), x = now.x + fragment_pixel(l, j);
          if (y >= to.height || x >= to.width || !kept[l][m][j]) continue;
          if (b.border(in) && !is_interior(y, x, to.height, to.width)) continue;
          outlet.put(b, place, outlet.at(y, x), acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1]);
        }
      });
    }
  }
};

}  // namespace ape::cuda
