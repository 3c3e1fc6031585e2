// bf16 convolution on AMX tiles.
//
// An A tile is 16 pixels in a line x one chunk of 32 input channels, a B tile that chunk x 16 output channels, an
// accumulator 16 pixels x 16 output channels in fp32. A block is RUNS (6) such lines of pixels, so that one B tile
// serves six products. Registers: accumulators 0 to 5, A in 6, B in 7. A step (chunk, tap) is 7 tile loads (8 cycles
// each, L1) against 6 products (16 cycles each). All taps of a chunk follow each other: 6 lines with their surroundings
// are 4 rows x 50 pixels x 64 bytes, 13 KB of L1, however many channels there are.
//
// Accumulators cannot be read: they are stored and read back. Each is stored in the first step of the NEXT block,
// just before it is zeroed again, and the finished block's epilogue is spread over that block's steps, so
// that loads, stores and vector arithmetic run beside the products.
#include <immintrin.h>

#include <cstring>

#include "avx512.h"
#include "kernel_set.h"

namespace ape::cpu {
namespace {

constexpr int MAX_RUNS = 6;
constexpr int TILE = 16;  // pixels, and output channels
static_assert(PAIRS_SCRATCH == MAX_RUNS * TILE * LANES, "the accumulators of a block");

// All eight tiles 16 rows of 64 bytes.
class TileConfig {
 public:
  TileConfig() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int tile = 0; tile < 8; tile++) {
      config[16 + 2 * tile] = 64;  // bytes a row
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
  bf16* half;
};

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
    per_line_ = (line_ + TILE - 1) / TILE;
    total_ = per_line_ * (down_ ? 1 : area.height);
    const FeatureMap& map = args.sources[0];
    stride_ = int(down_ ? map.half_row : CHUNK) * int(sizeof(bf16));
    add_step_ = down_ ? args.add.row : args.add.pixel;
    pixel_step_ = down_ ? args.dst.row : args.dst.pixel;
    half_step_ = down_ ? args.dst.half_row : CHUNK;
    int64_t steps = args.group_size / (CHUNK / 2 * LANES);
    slice_ = int((RUNS * TILE + steps - 2) / (steps > 1 ? steps - 1 : 1));
  }

  static void conv(const ConvArgs& args, const Area& area, float* scratch) { Lines(args, area, scratch).blocks(); }

 private:
  void blocks() {
    for (int first = 0; first < total_; first += RUNS) {
      Block<RUNS> block;
      int64_t start[RUNS];
      for (int i = 0; i < RUNS; i++) {
        block.runs[i] = run(first + i);
        start[i] = block.runs[i].y * a_.sources[0].half_row + block.runs[i].x * CHUNK;
      }
      for (block.group = 0; block.group < a_.groups; block.group++) {
        products(block, start);
        wait(block);
      }
    }
// tile instructions take literal register numbers
#define APE_STORE(i) \
  if constexpr (i < RUNS) _tile_stored(i, scratch_ + i * TILE * LANES, 64);
    APE_STORE(0)
    APE_STORE(1)
    APE_STORE(2)
    APE_STORE(3)
    APE_STORE(4)
    APE_STORE(5)
    next_ = 0;
    finish(RUNS * TILE);
  }

  // Beyond the last run: the last again, of which no pixel counts.
  Run run(int number) const {
    const int within = number < total_ ? number : total_ - 1;
    const int line = within / per_line_, at = within % per_line_ * TILE;
    const int count = number < total_ ? (line_ - at < TILE ? line_ - at : TILE) : 0;
    return {area_.y + (down_ ? at : line), area_.x + (down_ ? 0 : at), count, nullptr, nullptr, nullptr};
  }

  void wait(const Block<RUNS>& block) {
    waiting_ = block;
    waiting_.exists = true;
    const int channel = block.group * LANES;
    const FeatureMap &dst = a_.dst, &add = a_.add;
    for (Run& run : waiting_.runs) {
      if (add.pixels) run.add = add.pixels + run.y * add.row + run.x * add.pixel + channel;
      if (dst.pixels) run.pixels = dst.pixels + run.y * dst.row + run.x * dst.pixel + channel;
      if (dst.half)
        run.half = dst.half + channel / CHUNK * dst.half_plane + run.y * dst.half_row + run.x * CHUNK + channel % CHUNK;
    }
    bias_ = S::load(a_.bias + channel);
    if (a_.slope) slope_ = S::load(a_.slope + channel);
  }

  // Starts the block and carries on with the epilogue of the one that waits.
  void products(const Block<RUNS>& block, const int64_t (&start)[RUNS]) {
    const int radius = a_.kernel / 2;
    const float* weight = a_.weight + block.group * a_.group_size;
    bool first = true;
    next_ = 0;
    for (int s = 0; s < a_.source_count; s++) {
      const FeatureMap& map = a_.sources[s];
      for (int c = 0; c < map.channels; c += CHUNK) {
        const bf16* plane = map.half + c / CHUNK * map.half_plane;
        for (int ky = -radius; ky <= radius; ky++) {
          for (int kx = -radius; kx <= radius; kx++, weight += CHUNK / 2 * LANES) {
            const bf16* src = plane + ky * map.half_row + kx * CHUNK;
            _tile_loadd(7, weight, 64);
            if (first) {
              step<true>(src, start);
              first = false;
            } else {
              step<false>(src, start);
              finish(slice_);
            }
          }
        }
      }
    }
    finish(RUNS * TILE);  // what is left where a block has few steps
  }

  template <bool FIRST>
  APE_INLINE void step(const bf16* src, const int64_t (&start)[RUNS]) {
#define APE_RUN(i)                           \
  if constexpr (i < RUNS) {                  \
    if constexpr (FIRST) {                   \
      if (waiting_.exists) APE_STORE(i)      \
      _tile_zero(i);                         \
    }                                        \
    _tile_loadd(6, src + start[i], stride_); \
    _tile_dpbf16ps(i, 6, 7);                 \
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

  // The next `count` pixels of the block that waits.
  APE_INLINE void finish(int count) {
    if (!waiting_.exists) return;
    for (const int end = next_ + count < RUNS * TILE ? next_ + count : RUNS * TILE; next_ < end;) {
      const Run& run = waiting_.runs[next_ / TILE];
      const int from = next_ % TILE, left = TILE - from < end - next_ ? TILE - from : end - next_;
      const int to = from + left < run.count ? from + left : run.count;
      const float* sums = scratch_ + next_ / TILE * TILE * LANES;
      for (int i = from; i < to; i++) {
        const S::Vector sum = S::load(sums + i * LANES) + bias_;
        S::Vector v = (sum < 0 ? sum * slope_ : sum) * a_.scale;
        if (run.add) v += S::load(run.add + i * add_step_);
        if (run.pixels) S::store(run.pixels + i * pixel_step_, v);
        if (run.half) S::store_half(run.half + i * half_step_, v);
      }
      next_ += left;
    }
  }

  using S = Simd<16>;

  const ConvArgs& a_;
  const Area area_;
  float* const scratch_;
  const bool down_;
  int line_, per_line_, total_, stride_, slice_;
  int next_ = 0;  // pixel of `waiting_` that its epilogue has come to
  Block<RUNS> waiting_;
  S::Vector bias_, slope_ = S::Vector{} + 1.0f;  // of the block that waits; no activation is a slope of 1
  int64_t add_step_, pixel_step_, half_step_;    // from one pixel of a run to the next
};

void pairs(const ConvArgs& args, const Area& area, float* scratch) {
  if (area.height == 0 || area.width == 0) return;
  const TileConfig config;
  const int pixels = area.height * area.width;
  if (pixels <= TILE)
    Lines<1>::conv(args, area, scratch);
  else if (pixels <= 3 * TILE)
    Lines<3>::conv(args, area, scratch);
  else
    Lines<MAX_RUNS>::conv(args, area, scratch);
}

constexpr Kernels amx_set() {
  Kernels set = kernel_set<Avx512>();
  set.pairs = pairs;
  return set;
}

}  // namespace

const Kernels amx_kernels = amx_set();

}  // namespace ape::cpu
