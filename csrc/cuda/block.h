// What a thread block knows of what it works on: a patch (Carrier), or a window of an image (window.h).
#pragma once

#include "args.h"
#include "element.h"

namespace ape::cuda {

// A feature buffer, [groups][plane][8] elements; with WINDOW a part of one, whose rows begin `pitch` pixels apart.
template <class E, bool WINDOW = false>
struct Feature {
  typename E::Element* data;
  int channels, groups;  // channels of the network; groups of eight, padding included
  int height, width;
  int map_plane = 0, map_pitch = 0;  // with WINDOW; else known from height and width, so that no register keeps them

  FN int pixels() const { return height * width; }
  FN int plane() const { return WINDOW ? map_plane : pixels(); }  // pixels from a group to the next
  FN int pitch() const { return WINDOW ? map_pitch : width; }     // and from a row to the next
  FN typename E::Element* cell(int group, int pixel) const {
    return data + (static_cast<int64_t>(group) * plane() + pixel) * kCellChannels;
  }
  FN typename E::Element* cell(int group, int y, int x) const { return cell(group, y * pitch() + x); }
};

// Shared memory of pooling and gates, floats [padded C], [padded C] and [hidden] one after the other. It lies where the
// convolutions' rings are, which are idle then.
constexpr uint32_t kPooled = 0;

FN int padded(int channels) { return (channels + kUnitChannels - 1) / kUnitChannels * kUnitChannels; }

// What carriers have in common; ARGS: of their launch.
template <class E, class ARGS>
struct CarrierBase {
  using Type = E;
  using Element = typename E::Element;
  Warp& w;
  const ARGS& args;

  FN const Instruction& row(int number) const { return args.rows[number]; }
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

template <class E>
struct Carrier : CarrierBase<E, WorkerArgs> {
  static constexpr int kRingUnits = E::kMostUnits5;  // of 16 output channels that Ring accumulates at once
  using Base = CarrierBase<E, WorkerArgs>;
  using Map = Feature<E>;
  using Element = typename E::Element;
  using Base::args;
  using Base::w;

  FN Carrier(Warp& w_, const WorkerArgs& args_) : Base{w_, args_} {}

  // Buffer `number`: its BUFFER row is the row of that number.
  FN Feature<E> feature(int number) const {
    const Instruction& spec = this->row(number);
    const int64_t pixels = static_cast<int64_t>(args.height) * args.width;
    Element* arena = static_cast<Element*>(args.scratch) + w.block * args.scratch_elements * pixels;
    return {arena + spec.weight * pixels, spec.in_channels, padded(spec.in_channels) / kCellChannels,
            args.height * spec.upscale, args.width * spec.upscale};
  }
  // Pixels of a feature buffer of that size.
  FN int plane(int height, int width) const { return height * width; }
  // The buffer that a row writes.
  FN Feature<E> target(int number) const { return feature(number); }
  // Whether a row's result at pixel (y, x) is stored.
  FN bool keeps(int, int) const { return true; }
  // Pixels at each side that a convolution leaves to Ring.
  FN int border(const Instruction& in) const { return in.mode ? 1 : 0; }
  // The first pixel of patch `number` in the pictures, of which a color has `pixels` pixels; down: as in Outlet.
  FN float* picture(int64_t number, int colors, int64_t pixels, int, int) const {
    return args.output + number * colors * pixels;
  }
  // What a RECONSTRUCT adds; down, s: as in Outlet.
  FN Feature<E> added(int number, int, int) const { return feature(number); }
  // Whether the warp takes number `turn` of what is dealt out.
  FN bool takes(int turn) const { return turn % kWarps == w.id; }
};

FN float scale_of(const Instruction& in) {
#ifdef __CUDACC__
  return __int_as_float(in.scale_bits);
#else
  return in.scale();
#endif
}

}  // namespace ape::cuda
