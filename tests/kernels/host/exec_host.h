// The host's half of exec.h, for tests: every warp of every block is a fiber, and one seeded scheduler picks who runs.
// A fiber gives way at barriers and, by chance, at any access to memory.
//
// Checked on the way: shared memory and each block's own scratch for races (who read and wrote a piece of it since the
// last barrier), every global access against the arrays that were passed. Asynchronous copies poison what they write at
// issue and copy only at that warp's wait, so that a missing wait shows. A barrier or a wait can be left out by its
// place in the source, so that tests prove each is needed. ldmatrix and mma follow the PTX manual's fragment layouts.
#pragma once

#include <ucontext.h>

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define FN inline
#define UNROLL
#define UNROLL_4
#define ROLLED

namespace ape::cuda {

template <class T>
struct PerLane {
  T value[kLanes];
  T& operator[](int l) { return value[l]; }
  const T& operator[](int l) const { return value[l]; }
};

inline uint32_t pack_halves(float a, float b) {
  const _Float16 h[2] = {static_cast<_Float16>(a), static_cast<_Float16>(b)};
  uint32_t bits;
  std::memcpy(&bits, h, 4);
  return bits;
}
inline uint32_t pack_rectified(float a, float b) { return pack_halves(a < 0.0f ? 0.0f : a, b < 0.0f ? 0.0f : b); }
inline F2 unpack_halves(uint32_t bits) {
  _Float16 h[2];
  std::memcpy(h, &bits, 4);
  return {static_cast<float>(h[0]), static_cast<float>(h[1])};
}
inline float half_to_float(uint16_t bits) { return unpack_halves(bits).x; }

// A piece of checked memory: 16 bytes of shared, 4 bytes of global.
struct Cell {
  int written = -1, read = -1;  // the last epochs in which it was
  int reader = -1;              // warp that read in that epoch, -2: several
  int arriving = 0;             // copies under way into it
  int leaving = 0;              // copies under way out of it
  int keeper = -1;              // the warp that keeps numbers of its own there
};

// An array in global memory that the kernel was given.
struct Region {
  const char* name;
  const char* begin;
  size_t bytes;
  int owner = -1;             // the one block that may touch it, -1: all
  std::vector<Cell> cells{};  // of an owned region: races are checked
  // Whether blocks share it: then one may not read, nor write, what another writes. The block that wrote, and that
  // read, each 4 bytes; -1: none, -2: several.
  bool between = false;
  std::vector<int> writers{}, readers{};
};

struct Block {
  std::vector<char> shared;
  std::vector<Cell> cells;
  int epoch = 0, arrived = 0, live = 0;
};

struct Grid;

struct Warp {
  enum State { kReady, kAtBarrier, kDone };
  struct Copy {
    uint32_t to;
    const void* from;
    bool inside;
    Cell* source;  // the first of four; null: not checked
  };
  Grid* grid;
  Block* home;
  int id, block;
  State state = kReady;
  ucontext_t context{};
  std::unique_ptr<char[]> stack{};
  std::deque<std::vector<Copy>> groups{};
  std::vector<Copy> open{};

  void forget() {}
  static void forget(int&) {}
  template <class F>
  void lanes(F&& f) {
    for (int l = 0; l < kLanes; ++l) f(l);
  }
  void converge() {}
  inline void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE());

  template <class T>
  T lds(uint32_t at) {
    give_way();
    T value{};
    if (shared_reads(at, sizeof(T))) std::memcpy(&value, home->shared.data() + at, sizeof(T));
    return value;
  }
  template <class T>
  void sts(uint32_t at, T value) {
    give_way();
    if (shared_writes(at, sizeof(T))) std::memcpy(home->shared.data() + at, &value, sizeof(T));
  }
  void keep(uint32_t at, int number) {
    if (keeps(at)) std::memcpy(home->shared.data() + at, &number, sizeof number);
  }
  int kept(uint32_t at) {
    int number = 0;
    if (keeps(at)) std::memcpy(&number, home->shared.data() + at, sizeof number);
    return number;
  }
  template <class T>
  T load(const void* from) {
    give_way();
    T value{};
    bool known;
    Cell* cell = find(from, sizeof(T), known);
    if (known) std::memcpy(&value, from, sizeof(T));
    for (size_t i = 0; cell && i < (sizeof(T) + 3) / 4; ++i) reads(cell[i], "global");
    return value;
  }
  template <class T>
  void store(void* to, T value) {
    give_way();
    bool known;
    Cell* cell = find(to, sizeof(T), known, true);
    if (known) std::memcpy(to, &value, sizeof(T));
    for (size_t i = 0; cell && i < (sizeof(T) + 3) / 4; ++i) writes(cell[i], "global");
  }
  int atomic_add(int* counter, int value) {
    give_way();
    return std::exchange(*counter, *counter + value);
  }

  void copy(uint32_t to, const void* from, bool inside) {
    if (!shared_writes(to, 16)) return;
    bool known = true;
    Cell* source = inside ? find(from, 16, known) : nullptr;
    if (!known) return;
    for (int i = 0; source && i < 4; ++i) {
      reads(source[i], "global");
      source[i].leaving++;
    }
    std::memset(home->shared.data() + to, 0xff, 16);
    home->cells[to / 16].arriving++;
    open.push_back({to, from, inside, source});
  }
  void commit() {
    groups.push_back(std::move(open));
    open.clear();
  }
  template <int N>
  void wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    give_way();
    if (!left_out("wait", file, line)) complete(N);
  }

  void ldmatrix(PerLane<U4>& a, const PerLane<uint32_t>& row, uint32_t at) {
    give_way();
    for (int m = 0; m < 4; ++m)
      for (int i = 0; i < 8; ++i) {
        const uint32_t begin = row[8 * m + i] + at;
        if (!shared_reads(begin, 16)) continue;
        for (int q = 0; q < 4; ++q) std::memcpy(&a[4 * i + q].r[m], home->shared.data() + begin + 4 * q, 4);
      }
  }
  void mma(PerLane<float[4]>& c, const PerLane<U4>& a, const PerLane<U4>& b, int half) {
    float left[16][16], right[16][8], sums[16][8];
    for (int l = 0; l < kLanes; ++l) {
      const int row = l / 4, pair = l % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        const F2 value = unpack_halves(a[l].r[i]);
        left[row + 8 * (i & 1)][pair + 8 * (i >> 1)] = value.x;
        left[row + 8 * (i & 1)][pair + 8 * (i >> 1) + 1] = value.y;
        sums[row + 8 * (i >> 1)][pair + (i & 1)] = c[l][i];
      }
      for (int i = 0; i < 2; ++i) {
        const F2 value = unpack_halves(b[l].r[2 * half + i]);
        right[pair + 8 * i][row] = value.x;
        right[pair + 8 * i + 1][row] = value.y;
      }
    }
    for (int m = 0; m < 16; ++m)
      for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 8; ++n) sums[m][n] += left[m][k] * right[k][n];
    for (int l = 0; l < kLanes; ++l)
      for (int i = 0; i < 4; ++i) c[l][i] = sums[l / 4 + 8 * (i >> 1)][l % 4 * 2 + (i & 1)];
  }
  float sum(const PerLane<float>& x) {
    float values[kLanes];
    std::memcpy(values, x.value, sizeof values);
    for (int d = kLanes / 2; d; d >>= 1)
      for (int l = 0; l < d; ++l) values[l] += values[l + d];
    return values[0];
  }
  void sum_rows(PerLane<float>& x) {
    for (int q = 0; q < 4; ++q) {
      float total = 0.0f;
      for (int l = q; l < kLanes; l += 4) total += x[l];
      for (int l = q; l < kLanes; l += 4) x[l] = total;
    }
  }

  inline void give_way();
  inline void fail(const std::string& what);
  inline bool left_out(const char* kind, const char* file, int line);
  inline Cell* find(const void* address, size_t bytes, bool& known, bool writes = false);
  inline void visit(Region& region, size_t begin, size_t end, bool writes);
  inline void complete(size_t left);

 private:
  void reads(Cell& cell, const char* where) {
    if (cell.arriving) fail(std::string(where) + ": read of a copy under way");
    if (cell.written == home->epoch) fail(std::string(where) + ": read of what no barrier has published");
    if (cell.read != home->epoch) {
      cell.read = home->epoch;
      cell.reader = id;
    } else if (cell.reader != id) {
      cell.reader = -2;
    }
  }
  void writes(Cell& cell, const char* where) {
    if (cell.arriving) fail(std::string(where) + ": write over a copy under way");
    if (cell.leaving) fail(std::string(where) + ": write over the source of a copy under way");
    if (cell.read == home->epoch && cell.reader != id)
      fail(std::string(where) + ": write over what another warp may be reading");
    cell.written = home->epoch;
  }
  bool shared_at(uint32_t at, uint32_t bytes) {
    if (at + bytes <= home->shared.size() && at % bytes == 0) return true;
    fail("shared: access outside or not aligned, offset " + std::to_string(at));
    return false;
  }
  // Whether nothing but `keep` of this warp uses what it would on a GPU: a word for each lane.
  bool keeps(uint32_t at) {
    for (uint32_t cell_at = at; cell_at < at + kLanes * sizeof(int); cell_at += 16) {
      if (!shared_at(cell_at, 16)) return false;
      Cell& cell = home->cells[cell_at / 16];
      if (cell.keeper < 0) cell.keeper = id;
      if (cell.keeper != id || cell.written >= 0 || cell.read >= 0) fail("shared: kept where something else is");
    }
    return true;
  }
  bool shared_reads(uint32_t at, uint32_t bytes) {
    if (!shared_at(at, bytes)) return false;
    if (home->cells[at / 16].keeper >= 0) fail("shared: something else is kept here");
    reads(home->cells[at / 16], "shared");
    return true;
  }
  bool shared_writes(uint32_t at, uint32_t bytes) {
    if (!shared_at(at, bytes)) return false;
    if (home->cells[at / 16].keeper >= 0) fail("shared: something else is kept here");
    writes(home->cells[at / 16], "shared");
    return true;
  }
};

}  // namespace ape::cuda

#include "grid_host.h"
