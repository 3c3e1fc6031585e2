// bf16 convolution on AMX tiles.
//
// An A tile is a run of 16 pixels x one slice of 32 input channels. A B tile is this slice x 16 output channels. An
// accumulator is 16 pixels x 16 output channels in float32. An AMX block is RUNS (6) runs of pixels, so one B tile
// serves six products. Tile registers 0 to 5 are the accumulators, 6 is A, 7 is B. One iteration (a slice and a tap)
// has 7 tile loads of 8 cycles each (from L1) and 6 products of 16 cycles each.
//
// All taps of a slice follow each other. The 6 runs with their surroundings are 4 rows x 50 pixels x 64 bytes = 13 KB
// of L1, for any number of channels. If the pixels of all slices fit in L1, the weights are loaded by streaming loads:
// with plain loads the weights of a group (18 KB for 64 channels) would replace pixels that the next group reads again.
// If the pixels do not fit, streaming saves nothing, and a plain load is 4 % faster (256 channels).
//
// Accumulators cannot be read directly: they are stored and read back. Each is stored in the first iteration of the
// NEXT block, just before it is zeroed again. The epilogue of the finished block is spread over the products of that
// next block, so that loads, stores and vector arithmetic run beside the products. One pixel follows each product (64
// channels have 108 products for 96 pixels). A run of 16 pixels after every third iteration took 3 to 8 % longer. The
// epilogue begins kDelay iterations after the stores: a load of data that is still on its way to L1 (96 lines; the
// core's store buffer holds 112) would wait, and everything after it too.
#include <immintrin.h>

#include "avx512.h"
#include "kernel_set.h"

namespace ape::cpu {
namespace {

constexpr int kMostRuns = 6;
constexpr int kTile = 16;                  // pixels of a tile, and its output channels
constexpr int kTap = kSlice / 2 * kGroup;  // 32-bit words of weights in a tile
constexpr int64_t kL1Bytes = 48 << 10;
constexpr int kDelay = 2;  // iterations from storing a block's accumulators to the epilogue of its first pixel
using S = Simd<16>;
// Floats of scratch for a block's accumulators. The bf16 values that are held back follow them.
constexpr int kSums = kMostRuns * kTile * kGroup;
static_assert(kBf16Scratch == kSums + kSums / 2, "the accumulators of a block, and the same number of bf16");

inline int smaller(int a, int b) { return a < b ? a : b; }

// Configures all eight tile registers as 16 rows of 64 bytes.
class TileConfig {
 public:
  TileConfig() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int tile = 0; tile < 8; tile++) {
      config[16 + 2 * tile] = 64;  // bytes per row
      config[48 + tile] = 16;      // rows
    }
    // The memory operand and the clobber keep the compiler from dropping or moving the stores above.
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  ~TileConfig() { _tile_release(); }
};

// Up to 16 pixels in a line, and where the epilogue reads and writes the output channels of the first one.
struct Run {
  int y, x, count;
  const float* add;
  float* pixels;
  bf16* rounded;
};

// How the bf16 form of a result is written. Two groups of output channels share a cache line of it. The groups come one
// block apart, so writing them one by one would fetch the line from L2 twice. Therefore the 32 bytes of the even group
// are held back and written together with those of the odd group.
enum class Rounded { kNone, kAlone, kHeldBack, kJoined };

// What the epilogues of one group's runs share. The steps lead from one pixel of a run to the next.
struct Epilogue {
  const float *bias, *slope;
  double* sums;
  float scale;
  int64_t add_step, pixel_step, rounded_step;
};

// Which parts of the epilogue a convolution has. Each kind has a function of its own, so that everything that a pixel
// needs stays in registers.
template <bool SLOPE, bool ADD, bool PIXELS, Rounded ROUNDED, bool SUMS = false>
struct Kind {
  static constexpr bool slope = SLOPE, add = ADD, pixels = PIXELS, sums = SUMS;
  static constexpr Rounded rounded = ROUNDED;
};

// The next pixel of an epilogue. It belongs to run `number` of the block, which has `left` pixels left.
struct Pixel {
  const float* sums;
  bf16* held;
  const float* add;
  float* pixels;
  bf16* rounded;
  int left, number;
  S::Vector total;  // sum of the run's pixels so far
};

Rounded kind_of(const ConvArgs& a, int group) {
  if (a.dst.rounded == nullptr) return Rounded::kNone;
  if (group % 2) return Rounded::kJoined;
  return group + 1 < a.groups ? Rounded::kHeldBack : Rounded::kAlone;
}

// A block, and after its products a block whose epilogue waits. Its accumulators are in the tile registers first and
// then in the scratch.
template <int RUNS>
struct Block {
  Run runs[RUNS];
  int group;
  bool exists = false;
};

template <int RUNS>
class Lines {
 public:
  Lines(const ConvArgs& args, const Area& area, float* scratch)
      : a_(args), area_(area), scratch_(scratch), down_(area.width == 1) {
    line_ = down_ ? area.height : area.width;
    per_line_ = (line_ + kTile - 1) / kTile;
    total_ = per_line_ * (down_ ? 1 : area.height);
    const FeatureMap& map = args.sources[0];
    stride_ = int(down_ ? map.rounded_row : kSlice) * int(sizeof(bf16));
    epilogue_.scale = args.scale;
    epilogue_.add_step = down_ ? args.add.row : args.add.pixel;
    epilogue_.pixel_step = down_ ? args.dst.row : args.dst.pixel;
    epilogue_.rounded_step = down_ ? args.dst.rounded_row : kSlice;
    const int64_t taps = int64_t(args.kernel) * args.kernel, slices = args.group_size / (taps * kTap);
    // of one slice: the pixels of a block as two lines of 48, and what lies around them
    const int64_t bytes = int64_t(args.kernel + 1) * (3 * kTile + args.kernel - 1) * kSlice * int64_t(sizeof(bf16));
    stream_ = slices * bytes <= kL1Bytes;
    const int64_t iterations = slices * taps - kDelay;  // those that have an epilogue beside them
    pace_ = iterations > 0 ? int((kTile + iterations - 1) / iterations) : kTile;
    choose(kind_of(args, 0));  // until a block waits, any kind will do: no pixels are finished before
  }

  static void conv(const ConvArgs& args, const Area& area, float* scratch) { Lines(args, area, scratch).blocks(); }

 private:
  void blocks() {
    for (int first = 0; first < total_; first += RUNS) {
      Block<RUNS> block;
      int64_t start[RUNS];
      for (int i = 0; i < RUNS; i++) {
        block.runs[i] = run(first + i);
        start[i] = block.runs[i].y * a_.sources[0].rounded_row + block.runs[i].x * kSlice;
      }
      for (block.group = 0; block.group < a_.groups; block.group++) {
        (this->*products_)(block, start);
        wait(block);
      }
    }
// Tile instructions take literal register numbers.
#define APE_STORE(i) \
  if constexpr (i < RUNS) _tile_stored(i, scratch_ + i * kTile * kGroup, 64);
    APE_STORE(0)
    APE_STORE(1)
    APE_STORE(2)
    APE_STORE(3)
    APE_STORE(4)
    APE_STORE(5)
    (this->*rest_)();
  }

  // Beyond the last run this is the last run again, without pixels that count.
  Run run(int number) const {
    const int within = number < total_ ? number : total_ - 1;
    const int line = within / per_line_, at = within % per_line_ * kTile;
    const int count = number < total_ ? (line_ - at < kTile ? line_ - at : kTile) : 0;
    return {area_.y + (down_ ? at : line), area_.x + (down_ ? 0 : at), count, nullptr, nullptr, nullptr};
  }

  void wait(const Block<RUNS>& block) {
    waiting_ = block;
    waiting_.exists = true;
    const int channel = block.group * kGroup;
    for (Run& run : waiting_.runs) {
      const S::Cursor cursor(a_, run.y, run.x, channel);
      run.add = cursor.add;
      run.pixels = cursor.pixels;
      run.rounded = cursor.rounded;
    }
    choose(kind_of(a_, block.group));
    epilogue_.bias = a_.bias + channel;
    epilogue_.slope = a_.slope ? a_.slope + channel : nullptr;
    epilogue_.sums = a_.sums ? a_.sums + channel : nullptr;
  }

  // Computes the products of `block` and, beside them, the epilogue of the block that waits. Taps that are outside the
  // map for the whole area would multiply zeros and are left out: at a corner a 5x5 kernel has 9 taps instead of 25.
  template <class K>
  void products(const Block<RUNS>& block, const int64_t (&start)[RUNS]) {
    const int radius = a_.kernel / 2;
    const int top = -smaller(radius, area_.y + area_.height - 1);
    const int left = -smaller(radius, area_.x + area_.width - 1);
    const int bottom = smaller(radius, a_.sources[0].height - 1 - area_.y);
    const int right = smaller(radius, a_.sources[0].width - 1 - area_.x);
    const float* weights = a_.weight + block.group * a_.group_size;
    int iterations = 0;
    Pixel pixel = begin(0);
    for (int s = 0; s < a_.source_count; s++) {
      const FeatureMap& map = a_.sources[s];
      for (int c = 0; c < map.channels; c += kSlice, weights += a_.kernel * a_.kernel * kTap) {
        const bf16* plane = map.rounded + c / kSlice * map.rounded_slice;
        for (int ky = top; ky <= bottom; ky++) {
          const float* weight = weights + ((ky + radius) * a_.kernel + left + radius) * kTap;
          for (int kx = left; kx <= right; kx++, weight += kTap) {
            const bf16* src = plane + ky * map.rounded_row + kx * kSlice;
            if (stream_)
              _tile_stream_loadd(7, weight, 64);
            else
              _tile_loadd(7, weight, 64);
            if (iterations == 0)
              iterate<true, K>(src, start, pixel, 0);
            else
              iterate<false, K>(src, start, pixel, iterations < kDelay ? 0 : pace_);
            iterations++;
          }
        }
      }
    }
    finish<K>(pixel, RUNS * kTile);  // a block with few iterations leaves some pixels
  }

  template <bool FIRST, class K>
  APE_INLINE void iterate(const bf16* src, const int64_t (&start)[RUNS], Pixel& pixel, int pace) {
#define APE_RUN(i)                                \
  if constexpr (i < RUNS) {                       \
    if constexpr (FIRST) {                        \
      if (waiting_.exists) APE_STORE(i)           \
      _tile_zero(i);                              \
    }                                             \
    _tile_loadd(6, src + start[i], stride_);      \
    _tile_dpbf16ps(i, 6, 7);                      \
    if constexpr (!FIRST) finish<K>(pixel, pace); \
  }
    APE_RUN(0)
    APE_RUN(1)
    APE_RUN(2)
    APE_RUN(3)
    APE_RUN(4)
    APE_RUN(5)
#undef APE_RUN
#undef APE_STORE
  }

  // The first pixel of run `number` of the block that waits, or of the next run that has pixels. If there is none, its
  // `left` is 0.
  __attribute__((noinline)) Pixel begin(int number) const {
    if (!waiting_.exists) number = RUNS;
    while (number < RUNS && waiting_.runs[number].count == 0) number++;
    if (number == RUNS) return Pixel();
    const Run& run = waiting_.runs[number];
    const int64_t at = number * kTile * kGroup;
    return {scratch_ + at, reinterpret_cast<bf16*>(scratch_ + kSums) + at,
            run.add,       run.pixels,
            run.rounded,   run.count,
            number,        S::Vector{}};
  }

  // The epilogue of the next `count` pixels of the block that waits.
  template <class K>
  APE_INLINE void finish(Pixel& pixel, int count) const {
    if (pixel.left == 0) return;
    const S::Vector bias = S::load(epilogue_.bias), slope = K::slope ? S::load(epilogue_.slope) : S::Vector{};
    const float scale = epilogue_.scale;
    for (; count > 0 && pixel.left > 0; count--) {
      S::Vector v = S::load(pixel.sums) + bias;
      if constexpr (K::slope) v = v < 0 ? v * slope : v;
      v = v * scale;
      if constexpr (K::add) v += S::load(pixel.add), pixel.add += epilogue_.add_step;
      if constexpr (K::sums) pixel.total += v;
      if constexpr (K::pixels) S::store(pixel.pixels, v), pixel.pixels += epilogue_.pixel_step;
      if constexpr (K::rounded == Rounded::kHeldBack) {
        S::store_bf16(pixel.held, v);
      } else if constexpr (K::rounded != Rounded::kNone) {
        if constexpr (K::rounded == Rounded::kJoined) S::copy_bf16(pixel.rounded - kGroup, pixel.held);
        S::store_bf16(pixel.rounded, v);
        pixel.rounded += epilogue_.rounded_step;
      }
      pixel.sums += kGroup;
      pixel.held += kGroup;
      if (--pixel.left == 0) {
        if constexpr (K::sums) count_in(pixel.total);
        pixel = begin(pixel.number + 1);
      }
    }
  }

  __attribute__((noinline)) void count_in(S::Vector total) const {
    for (int i = 0; i < kGroup; i++) epilogue_.sums[i] += total[i];
  }

  template <class K>
  void rest() {
    Pixel pixel = begin(0);
    finish<K>(pixel, RUNS * kTile);
  }

  template <bool SLOPE, bool ADD, bool PIXELS, bool SUMS = false>
  void choose(Rounded rounded) {
    switch (rounded) {
      case Rounded::kNone:
        return set<Kind<SLOPE, ADD, PIXELS, Rounded::kNone, SUMS>>();
      case Rounded::kAlone:
        return set<Kind<SLOPE, ADD, PIXELS, Rounded::kAlone, SUMS>>();
      case Rounded::kHeldBack:
        return set<Kind<SLOPE, ADD, PIXELS, Rounded::kHeldBack, SUMS>>();
      default:
        return set<Kind<SLOPE, ADD, PIXELS, Rounded::kJoined, SUMS>>();
    }
  }
  template <bool SLOPE, bool ADD>
  void choose(Rounded rounded) {
    return a_.dst.pixels ? choose<SLOPE, ADD, true>(rounded) : choose<SLOPE, ADD, false>(rounded);
  }
  template <bool SLOPE>
  void choose(Rounded rounded) {
    return a_.add.pixels ? choose<SLOPE, true>(rounded) : choose<SLOPE, false>(rounded);
  }
  void choose(Rounded rounded) {
    if (a_.sums) return choose<false, true, true, true>(rounded);
    return a_.slope ? choose<true>(rounded) : choose<false>(rounded);
  }
  template <class K>
  void set() {
    products_ = &Lines::products<K>;
    rest_ = &Lines::rest<K>;
  }

  const ConvArgs& a_;
  const Area area_;
  float* const scratch_;
  const bool down_;
  int line_, per_line_, total_, stride_;
  bool stream_;  // whether weights are loaded by streaming loads, which leave the pixels in L1
  int pace_;     // pixels of the epilogue per product
  Block<RUNS> waiting_;
  Epilogue epilogue_{};
  void (Lines::*products_)(const Block<RUNS>&, const int64_t (&)[RUNS]);
  void (Lines::*rest_)();
};

void direct_bf16(const ConvArgs& args, const Area& area, float* scratch) {
  if (area.height == 0 || area.width == 0) return;
  const TileConfig config;
  const int pixels = area.height * area.width;
  if (pixels <= kTile)
    Lines<1>::conv(args, area, scratch);
  else if (pixels <= 3 * kTile)
    Lines<3>::conv(args, area, scratch);
  else
    Lines<kMostRuns>::conv(args, area, scratch);
}

constexpr Kernels amx_set() {
  Kernels set = kernel_set<Avx512>();
  set.direct_bf16 = direct_bf16;
  return set;
}

}  // namespace

const Kernels amx_kernels = amx_set();

}  // namespace ape::cpu
