// bf16 convolution on AMX tiles.
//
// An A tile is 16 pixels in a line x one slice of 32 input channels, a B tile that slice x 16 output channels, an
// accumulator 16 pixels x 16 output channels in fp32. A block is RUNS (6) such lines of pixels, so that one B tile
// serves six products. Registers: accumulators 0 to 5, A in 6, B in 7. A step (slice, tap) is 7 tile loads (8 cycles
// each, L1) against 6 products (16 cycles each). All taps of a slice follow each other: 6 lines with their surroundings
// are 4 rows x 50 pixels x 64 bytes, 13 KB of L1, however many channels there are. While all slices' pixels fit L1, the
// weights stream past them: a plain load would make the weights of a group (64 channels: 18 KB) push pixels out that
// the next group reads again. Where they do not fit, nothing is saved, and a plain load is 4 % faster (256 channels).
//
// Accumulators cannot be read: they are stored and read back. Each is stored in the first step of the NEXT block,
// just before it is zeroed again, and the finished block's epilogue is spread over that block's products, so
// that loads, stores and vector arithmetic run beside them: a pixel after each (64 channels: 108 products, 96 pixels; a
// line of 16 pixels after every third step took 3 to 8 % longer). It begins kDelay steps later: a load of what is still
// on its way to L1 (96 lines; the core's store buffer holds 112) waits, and all that follows with it.
#include <immintrin.h>

#include "avx512.h"
#include "kernel_set.h"

namespace ape::cpu {
namespace {

constexpr int kMostRuns = 6;
constexpr int kTile = 16;                  // pixels, and output channels
constexpr int kTap = kSlice / 2 * kGroup;  // words of weights in a tile
constexpr int64_t kL1Bytes = 48 << 10;
constexpr int kDelay = 2;  // steps from storing a block's accumulators to the epilogue of its first pixel
using S = Simd<16>;
constexpr int kSums =
    kMostRuns * kTile * kGroup;  // floats of scratch for a block's accumulators; held back bf16 follow
static_assert(kBf16Scratch == kSums + kSums / 2, "the accumulators of a block, and as many bf16");

inline int smaller(int a, int b) { return a < b ? a : b; }

// All eight tiles 16 rows of 64 bytes.
class TileConfig {
 public:
  TileConfig() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int tile = 0; tile < 8; tile++) {
      config[16 + 2 * tile] = 64;  // bytes per row
      config[48 + tile] = 16;      // rows
    }
    // the memory operand and the clobber keep the compiler from dropping or moving the stores above
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  ~TileConfig() { _tile_release(); }
};

// Up to 16 pixels in a line, and where the epilogue takes and puts the first one's output channels.
struct Run {
  int y, x, count;
  const float* add;
  float* pixels;
  bf16* rounded;
};

// What becomes of a result's bf16 form. Two groups of output channels share a cache line of it. Written one by one, the
// line would be fetched from L2 twice, as they come a block apart. So the even group's 32 bytes are held back and go
// with the odd one's.
enum class Rounded { kNone, kAlone, kHeldBack, kJoined };

// What the epilogues of one group's runs share. Steps: from one pixel of a run to the next.
struct Ending {
  const float *bias, *slope;
  double* sums;
  float scale;
  int64_t add_step, pixel_step, rounded_step;
};

// Which parts of the epilogue a convolution has: a function for each kind, so that what a pixel needs stays in
// registers.
template <bool SLOPE, bool ADD, bool PIXELS, Rounded ROUNDED, bool SUMS = false>
struct Kind {
  static constexpr bool slope = SLOPE, add = ADD, pixels = PIXELS, sums = SUMS;
  static constexpr Rounded rounded = ROUNDED;
};

// The next pixel of an epilogue, in run `number` of the block, of which `left` pixels are left.
struct Pixel {
  const float* sums;
  bf16* held;
  const float* add;
  float* pixels;
  bf16* rounded;
  int left, number;
  S::Vector total;  // of the run's pixels so far
};

Rounded kind_of(const ConvArgs& a, int group) {
  if (a.dst.rounded == nullptr) return Rounded::kNone;
  if (group % 2) return Rounded::kJoined;
  return group + 1 < a.groups ? Rounded::kHeldBack : Rounded::kAlone;
}

// A block whose accumulators wait: in their tiles, then in the scratch.
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
    ending_.scale = args.scale;
    ending_.add_step = down_ ? args.add.row : args.add.pixel;
    ending_.pixel_step = down_ ? args.dst.row : args.dst.pixel;
    ending_.rounded_step = down_ ? args.dst.rounded_row : kSlice;
    const int64_t taps = int64_t(args.kernel) * args.kernel, slices = args.group_size / (taps * kTap);
    // of a slice, a block's pixels as two lines of 48 and what lies around them
    const int64_t bytes = int64_t(args.kernel + 1) * (3 * kTile + args.kernel - 1) * kSlice * int64_t(sizeof(bf16));
    stream_ = slices * bytes <= kL1Bytes;
    const int64_t steps = slices * taps - kDelay;  // that have an epilogue beside them
    pace_ = steps > 0 ? int((kTile + steps - 1) / steps) : kTile;
    choose(kind_of(args, 0));  // until a block waits: any will do, none of its pixels exist
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
// tile instructions take literal register numbers
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

  // Beyond the last run: the last again, of which no pixel counts.
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
    ending_.bias = a_.bias + channel;
    ending_.slope = a_.slope ? a_.slope + channel : nullptr;
    ending_.sums = a_.sums ? a_.sums + channel : nullptr;
  }

  // Starts the block and carries on with the epilogue of the one that waits. Taps that are outside the map for the
  // whole area multiply zeros and are left out: a corner of a 5x5 kernel has 9 taps, not 25, and so much less to load.
  template <class K>
  void products(const Block<RUNS>& block, const int64_t (&start)[RUNS]) {
    const int radius = a_.kernel / 2;
    const int top = -smaller(radius, area_.y + area_.height - 1);
    const int left = -smaller(radius, area_.x + area_.width - 1);
    const int bottom = smaller(radius, a_.sources[0].height - 1 - area_.y);
    const int right = smaller(radius, a_.sources[0].width - 1 - area_.x);
    const float* weights = a_.weight + block.group * a_.group_size;
    int steps = 0;
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
            if (steps == 0)
              step<true, K>(src, start, pixel, 0);
            else
              step<false, K>(src, start, pixel, steps < kDelay ? 0 : pace_);
            steps++;
          }
        }
      }
    }
    finish<K>(pixel, RUNS * kTile);  // what is left where a block has few steps
  }

  template <bool FIRST, class K>
  APE_INLINE void step(const bf16* src, const int64_t (&start)[RUNS], Pixel& pixel, int pace) {
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

  // Run `number` of the block that waits, or the next that has pixels; none left: `left` is 0.
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

  // The next `count` pixels of the block that waits.
  template <class K>
  APE_INLINE void finish(Pixel& pixel, int count) const {
    if (pixel.left == 0) return;
    const S::Vector bias = S::load(ending_.bias), slope = K::slope ? S::load(ending_.slope) : S::Vector{};
    const float scale = ending_.scale;
    for (; count > 0 && pixel.left > 0; count--) {
      S::Vector v = S::load(pixel.sums) + bias;
      if constexpr (K::slope) v = v < 0 ? v * slope : v;
      v = v * scale;
      if constexpr (K::add) v += S::load(pixel.add), pixel.add += ending_.add_step;
      if constexpr (K::sums) pixel.total += v;
      if constexpr (K::pixels) S::store(pixel.pixels, v), pixel.pixels += ending_.pixel_step;
      if constexpr (K::rounded == Rounded::kHeldBack) {
        S::store_bf16(pixel.held, v);
      } else if constexpr (K::rounded != Rounded::kNone) {
        if constexpr (K::rounded == Rounded::kJoined) S::copy_bf16(pixel.rounded - kGroup, pixel.held);
        S::store_bf16(pixel.rounded, v);
        pixel.rounded += ending_.rounded_step;
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
    for (int i = 0; i < kGroup; i++) ending_.sums[i] += total[i];
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
  bool stream_;  // the weights, past the pixels in L1
  int pace_;     // pixels of the epilogue after a product
  Block<RUNS> waiting_;
  Ending ending_{};
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
