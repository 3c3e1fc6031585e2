// The kernels that exist once per instruction set, and the feature maps that they read and write.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ape::cpu {

using bf16 = uint16_t;  // the upper half of a float

// A group is 16 channels that are computed together: a cache line of floats. The weights of output channels are stored
// in groups.
constexpr int kGroup = 16;

// A slice is 32 channels of a bf16 map that lie side by side: a cache line of bf16, and a row of an AMX tile.
constexpr int kSlice = 32;
inline int slices(int channels) { return (channels + kSlice - 1) / kSlice; }

// The most feature maps that a convolution can read: a dense block of RRDB has five.
constexpr int kMostSources = 5;

// A feature map, as floats, as bf16 (rounded from the floats; bf16 convolutions read it), or both. Pointers are to
// pixel (0, 0), and null where a form does not exist. Around the map, and in the channels that pad it, is zero, as far
// as the convolutions read. Of an image, a part alone is in memory (`Maps::place`): then pixel (0, 0) may lie outside
// of it.
struct FeatureMap {
  // [height][width][channels]. The channels are padded to a multiple of kGroup, except in pictures that no convolution
  // reads or writes.
  float* pixels;
  int64_t row, pixel;  // strides in floats
  bf16* rounded;       // [slices(channels)][height][width][kSlice]
  int64_t rounded_row, rounded_slice;
  int channels, height, width;
};

// The layout of a convolution's weights. It decides which kernel runs the convolution (docs/program.md).
enum Layout : int32_t {
  kDirect = 0,    // [groups][source][kernel * kernel][source's channels][kGroup]
  kWinograd = 1,  // [groups][36][in_channels][kGroup]
  kBf16 = 2,      // bf16: [groups][source][source's slices][kernel * kernel][kSlice / 2][kGroup][2]
};

// dst = scale * act(conv(sources) + bias) + add
struct ConvArgs {
  FeatureMap sources[kMostSources];  // their channels follow one another; none of them is dst
  int source_count;
  int in_channels;  // of all sources together
  FeatureMap dst;
  FeatureMap add;       // may be dst; if its pixels are null, nothing is added
  const float* weight;  // floats, or two bf16 in 32 bits, as the layout says
  const float* bias;    // [groups * kGroup]
  const float* slope;   // [groups * kGroup], multiplies negative values; null for no activation
  double* sums;         // [groups * kGroup], the values of dst are added to it; null for no sums. Only for the layout
                        // kBf16 with `add` and without `slope`
  int groups;           // of kGroup output channels
  int64_t group_size;   // 32-bit words from one group's weights to the next group's
  int kernel;
  float scale;
};

// A rectangle of pixels.
struct Area {
  int y, x, height, width;

  int bottom() const { return y + height; }
  int right() const { return x + width; }
  bool empty() const { return height <= 0 || width <= 0; }
};

inline Area whole(const FeatureMap& map) { return {0, 0, map.height, map.width}; }

// Rectangles that do not overlap, none of them empty. Those who call own them.
struct Areas {
  const Area* first;
  int count;

  Areas(const Area& one) : first(&one), count(1) {}
  Areas(const Area* some, size_t number) : first(some), count(int(number)) {}
  const Area* begin() const { return first; }
  const Area* end() const { return first + count; }
};

struct Kernels {
  // Convolves the pixels of `area`. The weights have the layout kDirect.
  void (*direct)(const ConvArgs& args, const Area& area);
  // Pixels of `areas`; kernel 3 or 5. Of the sources, pixels beyond an area and the kernel's reach count as zero for
  // it. scratch: `winograd_scratch(args.in_channels)` floats.
  void (*winograd)(const ConvArgs& args, const Areas& areas, float* scratch);
  // Pixels of `area`; weights laid out as kBf16. scratch: kBf16Scratch floats.
  void (*direct_bf16)(const ConvArgs& args, const Area& area, float* scratch);
  // Fills map.rounded from map.pixels.
  void (*round)(const FeatureMap& map);
  // sums[c] = sum over all pixels, [channels padded to kGroup]. It reads the floats if the map has them, else the bf16.
  void (*channel_sums)(const FeatureMap& map, double* sums);
  // dst = src * gate + add, as floats. gate: [channels padded to kGroup]. If the pixels of `add` are null, nothing is
  // added.
  void (*gate)(const FeatureMap& src, const float* gate, const FeatureMap& add, const FeatureMap& dst);
  // out = weights[0] * lines[0] + ... + weights[3] * lines[3], `count` floats each.
  void (*blend)(const float* const* lines, const float* weights, int64_t count, float* out);
};

extern const Kernels portable_kernels;
#ifdef __x86_64__
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512bf16_kernels;
extern const Kernels amx_kernels;
#endif

// The smallest number of tiles in a Winograd block. It is a multiple of the pixels of every instruction set's register
// tile.
constexpr int kBlockTiles = 12;
constexpr int kMostBlockTiles = 2 * kBlockTiles;

// The number of tiles in a Winograd block. The transformed input of a block is 36 * tiles * in_channels floats. It is
// read once per 32 output channels and should stay in L2. The weights are read once per block. If all weights fit in L2
// (590 KB for 64 channels), the smallest block is best (110 KB). 256 channels have 9.4 MB of weights, which come from
// L3; a block of 24 tiles (0.9 MB) halves how often they are read.
inline int winograd_tiles(int in_channels) { return in_channels <= 96 ? kBlockTiles : kMostBlockTiles; }

// Floats from one tile's transformed pixel to the next. There is room for whole vectors past the last channel.
inline int64_t winograd_stride(int in_channels) { return (in_channels + kGroup - 1) / kGroup * kGroup + kGroup; }

// Floats for the transformed input and for the products of 32 output channels.
inline int64_t winograd_scratch(int in_channels) {
  return 36 * winograd_tiles(in_channels) * (winograd_stride(in_channels) + 2 * kGroup);
}

constexpr int64_t kBf16Scratch = 6 * 16 * kGroup * 3 / 2;  // six AMX accumulators, and the same number of bf16

}  // namespace ape::cpu
