// A row of the instruction table (docs/program.md). Its home is ape_kernels/table.py: tests/kernels/test_table.py holds
// the names and numbers below to what stands there.
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
  kModule = 9,  // runs in PyTorch only
};

enum Activation : int32_t { kNone = 0, kRelu = 1, kPrelu = 2 };

enum Interpolation : int32_t { kNearest = 0, kBicubic = 1 };

// Border classes of a pixel along one axis; they pick the kernel of a RECONSTRUCT (ape_kernels/collapse.py).
enum BorderClass : int32_t { kInterior = 0, kFirst = 1, kLast = 2, kOnly = 3 };
constexpr int32_t kBorderClasses = 4;

// Types of the elements that kernels read and write.
enum ElementType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
constexpr int bytes_of(int element) { return element == kFloat32 ? 4 : 2; }

constexpr int32_t kNoBuffer = -1;
constexpr int32_t kWeightAlignment = 16;  // of the offsets into the weight buffer, elements

// One row of the table: its columns, and names for what some of them hold in the rows of one opcode.
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
  int32_t weight;  // offsets into the weight buffer, elements
  int32_t bias;
  int32_t upscale;
  int32_t slope;
  int32_t hidden;
  int32_t mode;
  int32_t fused;  // CONV: its result is read by the CONV that follows and by nothing else

  // BUFFER: the factor from the patch's height and width to the buffer's.
  APE_HD int32_t resolution() const { return upscale; }
  // BUFFER, cuda: where the buffer begins in an arena, elements per low-resolution pixel.
  APE_HD int32_t arena_offset() const { return weight; }
  // UPSAMPLE.
  APE_HD int32_t interpolation() const { return mode; }
  // RECONSTRUCT: whether it has a kernel for each pair of border classes.
  APE_HD bool has_border_classes() const { return mode & 1; }
  // CONV and RECONSTRUCT: the layout of the weights, which is the backend's own.
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
