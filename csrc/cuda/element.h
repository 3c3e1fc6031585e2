// The two element types: Half is what networks run in, Float checks them exactly.
//
// A feature buffer is [C / 8][pixels][8] elements, C padded to a multiple of 16 with zeros: eight channels of a pixel
// are one cell, and a shift by a pixel is a shift by a cell. Weights of a convolution come in units of 16 input
// channels by 16 output channels for one tap.
#pragma once

#include "exec.h"

namespace ape::cuda {

constexpr int kCellChannels = 8;
constexpr int kUnitChannels = 16;
constexpr int kUnitElements = kUnitChannels * kUnitChannels;

// Accumulators: lane l holds of the tile [m][n] the pixels l / 4 and l / 4 + 8 (elements 0, 1 and 2, 3) and the output
// channels l % 4 * 2 and the next, as mma.m16n8k16 lays them out.
template <int M, int N>
using Accumulators = PerLane<float[4]>[M][N];

// Accumulators that the compiler need not keep from one use to the next.
template <int M, int N>
FN void clear(Warp& w, Accumulators<M, N>& acc) {
  w.lanes([&](int l) {
    UNROLL for (auto& row : acc) UNROLL for (auto& tile : row) UNROLL for (float& value : tile[l]) value = 0.0f;
  });
}

FN int fragment_pixel(int l, int j) { return l / 4 + 8 * j; }

// Which of the lane's pixels of TILES tiles of 16 pixels are stored. From a tile to the next are DOWN rows and RIGHT
// columns. Asked once, before the first store: else every store would be preceded by a read of shared memory and a
// branch.
template <int TILES>
using Kept = bool[TILES][2];
template <int TILES, int DOWN, int RIGHT, class B>
FN void find_kept(const B& b, int l, int y, int x, Kept<TILES>& kept) {
  UNROLL for (int m = 0; m < TILES; ++m) UNROLL for (int j = 0; j < 2; ++j) kept[m][j] =
      b.keeps(y + m * DOWN, x + m * RIGHT + fragment_pixel(l, j));
}
FN int fragment_channel(int l) { return l % 4 * 2; }

struct Half {
  using Element = uint16_t;
  static constexpr uint32_t kCellBytes = kCellChannels * sizeof(Element);
  static constexpr uint32_t kUnitBytes = kUnitElements * sizeof(Element);
  static constexpr int kStages = 3;  // units in shared memory at once, of which all but one are under way

  // Units of 16 output channels that a warp of a convolution accumulates at once, for k = 1 and 3, and for k = 5.
  static constexpr int kMostUnits = 4, kMostUnits5 = 3;

  static FN F2 load_pair(Warp& w, const Element* from) { return unpack_halves(w.load<uint32_t>(from)); }
  static FN void store_pair(Warp& w, Element* to, F2 v) { w.store(to, pack_halves(v.x, v.y)); }
  static FN float load_one(Warp& w, const Element* from) { return half_to_float(w.load<uint16_t>(from)); }

  static FN void load_cell(Warp& w, const Element* from, float (&v)[kCellChannels]) {
    const U4 bits = w.load<U4>(from);
    UNROLL for (int i = 0; i < 4; ++i) {
      const F2 pair = unpack_halves(bits.r[i]);
      v[2 * i] = pair.x;
      v[2 * i + 1] = pair.y;
    }
  }
  static FN void store_cell(Warp& w, Element* to, const float (&v)[kCellChannels]) {
    U4 bits;
    UNROLL for (int i = 0; i < 4; ++i) bits.r[i] = pack_halves(v[2 * i], v[2 * i + 1]);
    w.store(to, bits);
  }

  // acc[m][..] += 16 pixels x 16 channels at `pixels` + m * row_bytes, by PAIRS units at `units`, unit_stride apart.
  // rows: where each lane's row of the ldmatrix begins; both in shared memory.
  template <int M, int N, int PAIRS>
  static FN void multiply(Warp& w, Accumulators<M, N>& acc, const PerLane<uint32_t>& rows, uint32_t pixels,
                          uint32_t row_bytes, uint32_t, uint32_t units, uint32_t unit_stride) {
    PerLane<U4> a[M];
    UNROLL for (int m = 0; m < M; ++m) w.ldmatrix(a[m], rows, pixels + m * row_bytes);
    UNROLL for (int n = 0; n < PAIRS; ++n) {
      PerLane<U4> b;
      w.lanes([&](int l) { b[l] = w.lds<U4>(units + n * unit_stride + l * 16); });
      UNROLL for (int m = 0; m < M; ++m) {
        w.mma(acc[m][2 * n], a[m], b, 0);
        w.mma(acc[m][2 * n + 1], a[m], b, 1);
      }
    }
  }

  // acc[m][..] += 16 pixels by PAIRS units for each of COUNT chunks of 16 input channels, both straight from global
  // memory, all loaded before the first is used. channels: the first group of eight; next: elements from a group to the
  // next; cells: the lane's two pixels of each m, -1 outside the patch; units: of the first chunk.
  template <int COUNT, int PAIRS, int M>
  static FN void multiply_direct(Warp& w, Accumulators<M, 2 * PAIRS>& acc, const Element* channels, int64_t next,
                                 const PerLane<int[M][2]>& cells, const Element* units, int64_t chunk_stride,
                                 int64_t pair_stride) {
    PerLane<U4> a[COUNT][M], b[COUNT][PAIRS];
    w.lanes([&](int l) {
      UNROLL for (int c = 0; c < COUNT; ++c) {
        UNROLL for (int m = 0; m < M; ++m) UNROLL for (int i = 0; i < 4; ++i) {
          const int cell = cells[l][m][i & 1];
          const Element* group = channels + (2 * c + (i >> 1)) * next + fragment_channel(l);
          a[c][m][l].r[i] = cell < 0 ? 0u : w.load<uint32_t>(group + static_cast<int64_t>(cell) * kCellChannels);
        }
        UNROLL for (int n = 0; n < PAIRS; ++n) b[c][n][l] =
            w.load<U4>(units + c * chunk_stride + n * pair_stride + l * 8);
      }
    });
    w.converge();
    UNROLL for (int c = 0; c < COUNT; ++c) UNROLL for (int n = 0; n < PAIRS; ++n) UNROLL for (int m = 0; m < M; ++m) {
      w.mma(acc[m][2 * n], a[c][m], b[c][n], 0);
      w.mma(acc[m][2 * n + 1], a[c][m], b[c][n], 1);
    }
  }
};

struct Float {
  using Element = float;
  static constexpr uint32_t kCellBytes = kCellChannels * sizeof(Element);
  static constexpr uint32_t kUnitBytes = kUnitElements * sizeof(Element);
  static constexpr int kStages = 2;
  static constexpr int kMostUnits = 2, kMostUnits5 = 1;

  static FN F2 load_pair(Warp& w, const Element* from) { return w.load<F2>(from); }
  static FN void store_pair(Warp& w, Element* to, F2 v) { w.store(to, v); }
  static FN float load_one(Warp& w, const Element* from) { return w.load<float>(from); }

  static FN void load_cell(Warp& w, const Element* from, float (&v)[kCellChannels]) {
    UNROLL for (int i = 0; i < 2; ++i) {
      const F4 part = w.load<F4>(from + 4 * i);
      UNROLL for (int c = 0; c < 4; ++c) v[4 * i + c] = part.v[c];
    }
  }
  static FN void store_cell(Warp& w, Element* to, const float (&v)[kCellChannels]) {
    UNROLL for (int i = 0; i < 2; ++i) w.store(to + 4 * i, F4{{v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]}});
  }

  // The same as Half::multiply, with plain multiplications. group_bytes: from the first eight channels to the next.
  template <int M, int N, int PAIRS>
  static FN void multiply(Warp& w, Accumulators<M, N>& acc, const PerLane<uint32_t>&, uint32_t pixels,
                          uint32_t row_bytes, uint32_t group_bytes, uint32_t units, uint32_t unit_stride) {
    w.lanes([&](int l) {
      ROLLED for (int k = 0; k < kUnitChannels; k += 4) {
        const uint32_t at = pixels + k / 8 * group_bytes + k % 8 * sizeof(float);
        F4 a[M][2];
        UNROLL for (int m = 0; m < M; ++m) UNROLL for (int j = 0; j < 2; ++j) a[m][j] =
            w.lds<F4>(at + m * row_bytes + fragment_pixel(l, j) * kCellBytes);
        UNROLL for (int n = 0; n < 2 * PAIRS; ++n) UNROLL for (int c = 0; c < 4; ++c) {
          const int element = (k + c) * kUnitChannels + n % 2 * 8 + fragment_channel(l);
          const F2 b = w.lds<F2>(units + n / 2 * unit_stride + element * sizeof(float));
          UNROLL for (int m = 0; m < M; ++m) UNROLL for (int j = 0; j < 2; ++j) {
            acc[m][n][l][2 * j] += a[m][j].v[c] * b.x;
            acc[m][n][l][2 * j + 1] += a[m][j].v[c] * b.y;
          }
        }
      }
    });
  }

  template <int COUNT, int PAIRS, int M>
  static FN void multiply_direct(Warp& w, Accumulators<M, 2 * PAIRS>& acc, const Element* channels, int64_t next,
                                 const PerLane<int[M][2]>& cells, const Element* units, int64_t chunk_stride,
                                 int64_t pair_stride) {
    w.lanes([&](int l) {
      ROLLED for (int k = 0; k < COUNT * kUnitChannels; ++k) {
        const Element* row = units + k / kUnitChannels * chunk_stride + k % kUnitChannels * kUnitChannels;
        UNROLL for (int m = 0; m < M; ++m) UNROLL for (int j = 0; j < 2; ++j) {
          const int64_t cell = cells[l][m][j];
          const float a = cell < 0 ? 0.0f : w.load<float>(channels + k / 8 * next + cell * kCellChannels + k % 8);
          UNROLL for (int n = 0; n < 2 * PAIRS; ++n) {
            const F2 b = w.load<F2>(row + n / 2 * pair_stride + n % 2 * 8 + fragment_channel(l));
            acc[m][n][l][2 * j] += a * b.x;
            acc[m][n][l][2 * j + 1] += a * b.y;
          }
        }
      }
    });
  }
};

}  // namespace ape::cuda
