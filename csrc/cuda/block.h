// What a thread block knows of the patch it carries.
#pragma once

#include "args.h"
#include "element.h"

namespace ape::cuda {

// A feature buffer: [groups][height * width][8] elements.
template <class E>
struct Feature {
  typename E::Element* data;
  int channels, groups;  // channels of the network; groups of eight, padding included
  int height, width;

  FN int pixels() const { return height * width; }
  FN typename E::Element* cell(int group, int pixel) const {
    return data + (static_cast<int64_t>(group) * pixels() + pixel) * kCellChannels;
  }
};

// Shared memory of pooling and gates, floats [padded C], [padded C] and [hidden] one after the other. It lies where the
// convolutions' rings are, which are idle then.
constexpr uint32_t kPooled = 0;

FN int padded(int channels) { return (channels + kUnitChannels - 1) / kUnitChannels * kUnitChannels; }

template <class E>
struct Carrier {
  using Element = typename E::Element;
  Warp& w;
  const WorkerArgs& args;

  FN const Instruction& row(int number) const { return args.rows[number]; }

  // Buffer `number`: its BUFFER row is the row of that number.
  FN Feature<E> feature(int number) const {
    const Instruction& spec = row(number);
    const int64_t pixels = static_cast<int64_t>(args.height) * args.width;
    Element* arena = static_cast<Element*>(args.scratch) + w.block * args.scratch_elements * pixels;
    return {arena + spec.weight * pixels, spec.in_channels, padded(spec.in_channels) / kCellChannels,
            args.height * spec.upscale, args.width * spec.upscale};
  }
  FN const Element* weights(int offset) const { return static_cast<const Element*>(args.weights) + offset; }
  // Biases, slopes, and all that is no matrix product's operand: float32 whatever E is.
  FN const float* vector(int offset) const { return reinterpret_cast<const float*>(weights(offset)); }

  // f(i) for all i in [0, count), spread over the block's threads.
  template <class F>
  FN void each(int count, F f) const {
    w.lanes([&](int l) { ROLLED for (int i = w.id * kLanes + l; i < count; i += kThreads) f(i); });
  }
  // f() by one of the block's threads, always the same.
  template <class F>
  FN void once(F f) const {
    w.lanes([&](int l) {
      if (w.id == 0 && l == 0) f();
    });
  }
};

FN float scale_of(const Instruction& in) {
#ifdef __CUDACC__
  return __int_as_float(in.scale_bits);
#else
  return in.scale();
#endif
}

}  // namespace ape::cuda
