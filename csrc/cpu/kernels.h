// The kernels that exist once for each instruction set, and the feature maps they read and write.
#pragma once

#include <cstdint>

namespace ape::cpu {

using bf16 = uint16_t;  // the upper half of a float

// Channels that are computed together: a cache line of floats. Weights of output channels come in such groups.
constexpr int LANES = 16;

// Channels of a bf16 map that lie side by side: a cache line, one row of an AMX tile.
constexpr int CHUNK = 32;

// Feature maps a convolution can read at once: a dense block of RRDB has five.
constexpr int MAX_SOURCES = 5;

// A feature map of one patch, as floats, as bf16 (rounded from the floats, what bf16 convolutions read), or both.
// Pointers are to pixel (0, 0) and null for what nothing reads. Around the map, and in the channels that pad it, is
// zero: a border as wide as the convolutions read, right and below of it up to 3 pixels more, so that the 4x4 tiles of
// Winograd cover the map.
struct FeatureMap {
  float* pixels;       // [height][width][channels, padded to LANES but for pictures that no convolution touches]
  int64_t row, pixel;  // strides in floats
  bf16* half;          // [channels / CHUNK, rounded up][height][width][CHUNK]
  int64_t half_row, half_plane;
  int channels, height, width;
};

// How the weights of a convolution are laid out, and so which kernel runs it (docs/program.md).
enum Layout : int32_t {
  DIRECT = 0,    // [groups][source][kernel * kernel][source's channels][LANES]
  WINOGRAD = 1,  // [groups][36][in_channels][LANES]
  PAIRS = 2,     // bf16: [groups][source][source's chunks][kernel * kernel][CHUNK / 2][LANES][2]
};

// dst = scale * act(conv(sources) + bias) + add
struct ConvArgs {
  FeatureMap sources[MAX_SOURCES];  // their channels one after another; none is dst
  int source_count;
  int in_channels;  // of all sources
  FeatureMap dst;
  FeatureMap add;       // may be dst; pixels null: nothing is added
  const float* weight;  // floats, or pairs of bf16 in 32 bits, as the layout says
  const float* bias;    // [groups * LANES]
  const float* slope;   // [groups * LANES], what negative values are multiplied with; null: nothing
  double* sums;         // PAIRS with `add`, without `slope`: [groups * LANES], the area's dst is added; null: not
  int groups;           // of LANES output channels
  int64_t group_size;   // 32-bit words from one group's weights to the next's
  int kernel;
  float scale;
};

// A rectangle of pixels.
struct Area {
  int y, x, height, width;
};

struct Kernels {
  // Pixels of `area`; weights laid out DIRECT.
  void (*direct)(const ConvArgs& args, const Area& area);
  // The whole map; kernel 3 or 5. scratch: `winograd_scratch(args.in_channels)` floats.
  void (*winograd)(const ConvArgs& args, float* scratch);
  // Pixels of `area`; PAIRS. scratch: PAIRS_SCRATCH floats.
  void (*pairs)(const ConvArgs& args, const Area& area, float* scratch);
  // map.half from map.pixels.
  void (*round)(const FeatureMap& map);
  // sums[c] over all pixels, [channels padded to LANES]; of the floats where there are any.
  void (*channel_sums)(const FeatureMap& map, double* sums);
  // dst = src * gate + add, floats. gate: [channels padded to LANES]. add: pixels null for nothing.
  void (*gate)(const FeatureMap& src, const float* gate, const FeatureMap& add, const FeatureMap& dst);
};

extern const Kernels portable_kernels;
#ifdef __x86_64__
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512bf16_kernels;
extern const Kernels amx_kernels;
#endif

// A Winograd block: this many tiles at least, a multiple of every instruction set's tiles in registers.
constexpr int BLOCK_TILES = 12;

// Tiles transformed at once. A block's transformed input, 36 * tiles * in_channels floats, is read once for every 32
// output channels and shall stay in L2 beside what is read once a block, the weights. While all weights fit L2 (64
// channels: 590 KB) the smallest block is best (110 KB); 256 channels have 9.4 MB of weights, which come from L3: 24
// tiles (0.9 MB) halve that.
inline int winograd_tiles(int in_channels) { return in_channels <= 96 ? BLOCK_TILES : 2 * BLOCK_TILES; }

// Floats from one tile's transformed pixel to the next: whole vectors may be written past the last channel.
inline int64_t winograd_stride(int in_channels) { return (in_channels + LANES - 1) / LANES * LANES + LANES; }

// Transformed input, and the products of 32 output channels.
inline int64_t winograd_scratch(int in_channels) {
  return 36 * winograd_tiles(in_channels) * (winograd_stride(in_channels) + 2 * LANES);
}

constexpr int64_t PAIRS_SCRATCH = 6 * 16 * LANES * 3 / 2;  // six AMX accumulators, and as many bf16

}  // namespace ape::cpu
