// All kernels of one instruction set that come from the shared templates.
#pragma once

#include "pointwise.h"
#include "winograd.h"

namespace ape::cpu {
namespace {

template <class Traits>
void direct_bf16(const ConvArgs& args, const Area& area, float*) {
  Conv<Traits, Bf16Words>::area(args, area);
  if (args.sums == nullptr) return;
  for (int y = area.y; y < area.y + area.height; y++)
    for (int x = area.x; x < area.x + area.width; x++)
      for (int c = 0; c < args.groups * kGroup; c++) args.sums[c] += floats_at(args.dst, y, x, 0)[c];
}

template <class Traits>
constexpr Kernels kernel_set() {
  return {Conv<Traits, Floats>::area,      Winograd<Traits>::conv,  direct_bf16<Traits>,     Pointwise<Traits>::round,
          Pointwise<Traits>::channel_sums, Pointwise<Traits>::gate, Pointwise<Traits>::blend};
}

}  // namespace
}  // namespace ape::cpu
