// The kernels that exist once for each instruction set.
#pragma once

#include <cstdint>

namespace ape::cpu {

// Output channels are packed and computed in groups of a cache line of floats.
constexpr int LANES = 16;

// Feature maps a convolution can read at once: a dense block of RRDB has five.
constexpr int MAX_SOURCES = 5;

// A convolution over patch buffers. Buffers are [rows][pixels][channels] with channels padded to a
// multiple of LANES and a zero border at least kernel / 2 wide; pointers are to the pixel (0, 0)
// inside the border, strides count floats.
struct ConvArgs {
  struct Source {
    const float* pixels;  // [.., .., channels], zero border
    int64_t row, pixel;
    int channels;
  };
  Source sources[MAX_SOURCES];  // their channels one after another; none is dst
  int source_count;
  int in_channels;      // of all sources
  float* dst;           // [.., .., groups * LANES]
  const float* add;     // like dst, or null
  const float* weight;  // [groups][kernel * kernel][in_channels][LANES]
  const float* bias;    // [groups * LANES]
  const float* slope;   // [groups * LANES], what negative values are multiplied with; null: nothing
  int64_t dst_row, dst_pixel;
  int64_t add_row, add_pixel;
  int groups;  // of LANES output channels
  int kernel;
  float scale;
};

struct Kernels {
  // Pixels [begin, end) of row y:  dst = scale * act(conv(src) + bias) + add
  void (*conv_span)(const ConvArgs& args, int y, int begin, int end);
};

extern const Kernels portable_kernels;
#ifdef __x86_64__
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace ape::cpu
