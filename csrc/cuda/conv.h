// Convolutions of any size: CONV and RECONSTRUCT rows as implicit matrix products, feature buffers in and out.
//
// The block computes one tile of 16 x 16 pixels and up to 64 output channels at a time; warp w owns the tile's pixel
// rows 2w and 2w + 1. Work comes in units: one row of taps for 16 input channels. Of a unit, the weights of its taps
// and, with the first row of taps, the 16 channels of the tile and its halo come to shared memory by asynchronous
// copies, kStages - 1 units ahead and across tiles; one barrier a unit. In shared memory the halo tile is
// [2][rows][columns] cells, so a tap is a start address; what is outside the patch is filled with zeros.
//
// Shared memory: kStages weight slots and two input slots (kStages where every unit brings an input, k = 1). Half,
// k = 3, 64 channels: 3 * 3 * 4 * 512 B + 2 * 2 * 18 * 18 * 16 B = 39 168 B. A tap costs a warp two ldmatrix.x4 and four
// 16-byte loads for 16 mma.m16n8k16: 192 B of shared memory each.
#pragma once

#include "reconstruct.h"

namespace ape::cuda {

constexpr int kTile = 16;  // pixels, both ways
constexpr int kTileRows = kTile / kWarps;  // of a warp
static_assert(kTileRows * kWarps == kTile && kTile == 16, "a warp's pixel rows are whole mma tiles");

template <class E>
struct ConvShared {
  static constexpr int side(int kernel) { return kTile + kernel - 1; }
  static constexpr int input_slots(int kernel) { return kernel == 1 ? E::kStages : 2; }
  static constexpr uint32_t input_bytes(int kernel) { return 2 * side(kernel) * side(kernel) * E::kCellBytes; }
  static constexpr uint32_t unit_bytes(int kernel) { return E::most_pairs(kernel) * kernel * E::kUnitBytes; }
  static constexpr uint32_t bytes(int kernel) {
    return input_slots(kernel) * input_bytes(kernel) + E::kStages * unit_bytes(kernel);
  }
  static constexpr uint32_t kBytes = bytes(5) > bytes(3) ? bytes(5) : bytes(3);
  static_assert(bytes(1) <= kBytes, "k = 1 needs least");
  static_assert(kBytes <= 64 * 1024, "leaves room for two blocks on every device but the smallest");
};

template <class E>
FN void activate(const Instruction& in, Carrier<E>& b, const float* slopes, int channel, F2& v) {
  if (in.activation == NO_ACTIVATION) return;
  F2 slope{0.0f, 0.0f};
  if (in.activation == PRELU) slope = b.w.template load<F2>(slopes + channel);
  if (v.x < 0.0f) v.x *= slope.x;
  if (v.y < 0.0f) v.y *= slope.y;
}

template <class E>
struct Conv {
  using Element = typename E::Element;
  static constexpr int kMaxPairs = E::most_pairs(3);

  Carrier<E>& b;
  const Instruction in;
  const Feature<E> to;  // geometry of the pixels computed; also the buffer written by a CONV
  const int first_source;
  const int64_t patch;
  const int kernel, radius, side, pairs, most_pairs;
  int chunks = 0;  // of 16 input channels, all sources
  uint32_t weight_base;  // of the shared memory
  PerLane<uint32_t> rows;  // ldmatrix addresses
  Accumulators<kTileRows, 2 * kMaxPairs> acc;

  // A unit of work, in the order in which they are done.
  struct Unit {
    int y, x;            // the tile's first pixel
    int pair;            // first unit of 16 output channels
    int source, within;  // row of the table that names the buffer; chunk in that buffer
    int chunk, ky;       // chunk in all sources; row of taps
    int number, input;   // units and inputs before this one
  };

  // row: that of the CONV or RECONSTRUCT; first: the first SOURCE row before it, or itself. patch: as the output counts.
  FN Conv(Carrier<E>& b_, int row, int first, int64_t patch_)
      : b(b_),
        in(b_.row(row)),
        to(b_.feature(in.opcode == CONV ? in.dst : in.src)),
        first_source(first),
        patch(patch_),
        kernel(in.kernel),
        radius(in.kernel / 2),
        side(kTile + in.kernel - 1),
        pairs(padded(in.out_channels) / kUnitChannels),
        most_pairs(E::most_pairs(in.kernel)) {
    for (int source = first; source <= row; ++source) chunks += padded(b.row(b.row(source).src).in_channels) / kUnitChannels;
    weight_base = (kernel == 1 ? E::kStages : 2) * input_bytes();
    b.w.lanes([&](int l) { rows[l] = (l / 16 * side * side + l % 16) * E::kCellBytes; });
  }

  FN uint32_t input_bytes() const { return 2 * side * side * E::kCellBytes; }
  FN uint32_t input_slot(const Unit& unit) const {
    return unit.input % (kernel == 1 ? E::kStages : 2) * input_bytes();
  }
  FN uint32_t weight_slot(const Unit& unit) const {
    return weight_base + unit.number % E::kStages * (most_pairs * kernel * E::kUnitBytes);
  }
  FN int pairs_at(int pair) const { return pairs - pair < most_pairs ? pairs - pair : most_pairs; }
  FN bool done(const Unit& unit) const { return unit.y >= to.height; }

  FN void next(Unit& unit) const {
    ++unit.number;
    if (++unit.ky < kernel) return;
    unit.ky = 0;
    ++unit.input;
    ++unit.within;
    if (++unit.chunk < chunks) {
      if (unit.within * 2 >= b.feature(b.row(unit.source).src).groups) {
        unit.within = 0;
        ++unit.source;
      }
      return;
    }
    unit.chunk = unit.within = 0;
    unit.source = first_source;
    unit.pair += most_pairs;
    if (unit.pair < pairs) return;
    unit.pair = 0;
    unit.x += kTile;
    if (unit.x < to.width) return;
    unit.x = 0;
    unit.y += kTile;
  }

  // Starts the copies of a unit.
  FN void fetch(const Unit& unit) {
    const int pieces = kernel * (E::kUnitBytes / 16);  // of 16 bytes, a row of taps
    const Element* weights = b.weights(in.weight) +
                             (static_cast<int64_t>(unit.pair * chunks + unit.chunk) * kernel + unit.ky) * kernel * kUnitElements;
    const int64_t pair_stride = static_cast<int64_t>(chunks) * kernel * kernel * kUnitElements;
    const uint32_t slot = weight_slot(unit);
    b.each(pairs_at(unit.pair) * pieces, [&](int i) {
      b.w.copy(slot + i * 16, weights + i / pieces * pair_stride + i % pieces * (16 / sizeof(Element)), true);
    });
    if (unit.ky) return;
    const Feature<E> src = b.feature(b.row(unit.source).src);
    const uint32_t input = input_slot(unit);
    b.each(2 * side * side, [&](int i) {
      const int column = i % side, line = i / side % side, group = i / (side * side);
      const int y = unit.y + line - radius, x = unit.x + column - radius;
      const bool inside = y >= 0 && y < to.height && x >= 0 && x < to.width;
      const Element* from = src.cell(2 * unit.within + group, inside ? y * to.width + x : 0);
      UNROLL for (uint32_t part = 0; part < E::kCellBytes; part += 16)
          b.w.copy(input + i * E::kCellBytes + part, from + part / sizeof(Element), inside);
    });
  }

  FN void run() {
    Unit ahead{0, 0, 0, first_source, 0, 0, 0, 0, 0};
    Unit unit = ahead;
    for (int i = 0; i < E::kStages - 1; ++i) advance(ahead);
    while (!done(unit)) {
      switch (pairs_at(unit.pair)) {
        case 1:
          tile<1>(unit, ahead);
          break;
        case 2:
          tile<2>(unit, ahead);
          break;
        case 3:
          if constexpr (kMaxPairs >= 3) tile<3>(unit, ahead);
          break;
        default:
          if constexpr (kMaxPairs >= 4) tile<4>(unit, ahead);
      }
    }
  }

  FN void advance(Unit& ahead) {
    if (!done(ahead)) {
      fetch(ahead);
      next(ahead);
    }
    b.w.commit();
  }

  // One tile and PAIRS units of output channels, all input channels and taps.
  template <int PAIRS>
  FN void tile(Unit& unit, Unit& ahead) {
    const Unit begin = unit;
    const bool live = begin.y + b.w.id * kTileRows < to.height;
    const float* bias = b.vector(in.bias);
    UNROLL for (int n = 0; n < 2 * PAIRS; ++n) b.w.lanes([&](int l) {
      const F2 start = b.w.template load<F2>(bias + begin.pair * kUnitChannels + n * 8 + fragment_channel(l));
      UNROLL for (int m = 0; m < kTileRows; ++m) UNROLL for (int j = 0; j < 2; ++j) {
        acc[m][n][l][2 * j] = start.x;
        acc[m][n][l][2 * j + 1] = start.y;
      }
    });
    const uint32_t row_bytes = side * E::kCellBytes;
    ROLLED for (int left = chunks * kernel; left > 0; --left) {
      b.w.template wait<E::kStages - 2>();
      b.w.sync();  // this unit has come for every warp, and every warp is done with the one before
      advance(ahead);
      if (live) {
        const uint32_t pixels = input_slot(unit) + (b.w.id * kTileRows + unit.ky) * row_bytes;
        const uint32_t units = weight_slot(unit);
        ROLLED for (int kx = 0; kx < kernel; ++kx)
            E::template multiply<kTileRows, 2 * kMaxPairs, PAIRS>(b.w, acc, rows, pixels + kx * E::kCellBytes, row_bytes,
                                                                  side * row_bytes, units + kx * E::kUnitBytes,
                                                                  kernel * E::kUnitBytes);
      }
      next(unit);
    }
    if (live) finish<PAIRS>(begin);
  }

  template <int PAIRS>
  FN void finish(const Unit& unit) {
    const float scale = scale_of(in);
    const float* slopes = b.vector(in.slope);
    UNROLL for (int n = 0; n < 2 * PAIRS; ++n) UNROLL for (int m = 0; m < kTileRows; ++m) UNROLL for (int j = 0; j < 2; ++j) {
      b.w.lanes([&](int l) {
        const int y = unit.y + b.w.id * kTileRows + m, x = unit.x + fragment_pixel(l, j);
        const int channel = unit.pair * kUnitChannels + n * 8 + fragment_channel(l);
        if (y >= to.height || x >= to.width) return;
        F2 v{acc[m][n][l][2 * j], acc[m][n][l][2 * j + 1]};
        if (in.opcode == RECONSTRUCT) {
          if (in.mode == 0 || is_interior(y, x, to.height, to.width)) put_pixels(b, in, patch, y, x, channel, v);
          return;
        }
        activate(in, b, slopes, channel, v);
        const int64_t at = channel / kCellChannels * static_cast<int64_t>(to.pixels()) + y * to.width + x;
        const int64_t element = at * kCellChannels + channel % kCellChannels;
        v = {v.x * scale, v.y * scale};
        if (in.add != NO_BUFFER) {
          const F2 added = E::load_pair(b.w, b.feature(in.add).data + element);
          v = {v.x + added.x, v.y + added.y};
        }
        E::store_pair(b.w, to.data + element, v);
      });
    }
  }
};

}  // namespace ape::cuda
