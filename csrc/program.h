// A row of the instruction table (docs/program.md). ape_kernels/table.py has the same names and numbers;
// tests/kernels/test_table.py compares them.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define APE_HD __host__ __device__
#else
#define APE_HD
#endif

namespace ape {

enum Opcode : int32_t {
  kBuffer = 0,
  kStage = 1,
  kTail = 2,
  kConv = 3,
  kExit = 4,
  kReconstruct = 5,
  kSource = 6,
  kUpsample = 7,
  kAttention = 8,
  kModule = 9,  // only PyTorch runs it
};

enum Activation : int32_t { kNone = 0, kRelu = 1, kPrelu = 2 };

enum Interpolation : int32_t { kNearest = 0, kBicubic = 1 };

// Border class of a pixel along one axis. The classes of both axes pick the kernel of a RECONSTRUCT
// (ape_kernels/collapse.py).
enum BorderClass : int32_t { kInterior = 0, kFirst = 1, kLast = 2, kOnly = 3 };
constexpr int32_t kBorderClasses = 4;

// Types of the elements that kernels read and write.
enum ElementType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
constexpr int bytes_of(int element) { return element == kFloat32 ? 4 : 2; }

constexpr int32_t kNoBuffer = -1;
constexpr int32_t kWeightAlignment = 16;  // of the offsets into the weight buffer, in elements

// One row of the table. The functions are other names for columns, in the rows of one opcode.
struct Instruction {
  int32_t opcode;
  int32_t src;
  int32_t dst;
  int32_t add;
  int32_t in_channels;
  int32_t out_channels;
  int32_t kernel;
  int32_t activation;
  int32_t scale_bits;
  int32_t weight;  // weight, bias and slope are offsets into the weight buffer, in elements
  int32_t bias;
  int32_t upscale;
  int32_t slope;
  int32_t hidden;
  int32_t mode;
  int32_t fused;  // CONV: nothing but the next CONV reads the result

  // BUFFER: height and width of the buffer, divided by those of the patch.
  APE_HD int32_t resolution() const { return upscale; }
  // BUFFER, cuda: where the buffer begins in an arena, in elements per low-resolution pixel.
  APE_HD int32_t arena_offset() const { return weight; }
  // UPSAMPLE: the kind of interpolation.
  APE_HD int32_t interpolation() const { return mode; }
  // RECONSTRUCT: whether it has one kernel per pair of border classes.
  APE_HD bool has_border_classes() const { return mode & 1; }
  // CONV and RECONSTRUCT: the layout of the weights. Each backend has layouts of its own.
  APE_HD int32_t layout() const { return mode >> 1; }
  // RECONSTRUCT: channels of the picture.
  APE_HD int32_t picture_channels() const { return out_channels / (upscale * upscale); }

  float scale() const {
    float value;
    std::memcpy(&value, &scale_bits, sizeof value);
    return value;
  }
};
static_assert(sizeof(Instruction) == 16 * sizeof(int32_t), "a row has sixteen columns");

}  // namespace ape
