#include "bands.h"

#include <algorithm>

namespace ape::cpu {
namespace {

// Of the cores that have AMX; half of it is for what passes through.
constexpr int64_t kL2Bytes = int64_t(2) << 20;

}  // namespace

int64_t count_banded(const Step* steps, int64_t count, const Program& program, const Maps& maps) {
  int64_t together = 0, weight_bytes = 0;
  for (; together < count; together++) {
    const Instruction &in = steps[together].in, &first = steps[0].in;
    if (in.opcode != kConv || in.layout() != kBf16) break;
    const FeatureMap& map = maps[in.dst];
    if (map.height != maps[first.dst].height) break;
    const int64_t map_bytes = slices(map.channels) * map.rounded_slice * int64_t(sizeof(bf16));
    if (2 * map_bytes <= kL2Bytes) break;
    weight_bytes += padded(in.out_channels) / kGroup * program.group_size(in, steps[together].sources, kBf16) * 4;
    if (weight_bytes > kL2Bytes / 2) break;
  }
  return std::max<int64_t>(together, 1);
}

}  // namespace ape::cpu
