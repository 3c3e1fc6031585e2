// The launches of a call for whole images: the host's part, the same for a GPU and for tests.
#pragma once

#include <functional>
#include <map>

#include "request.h"

namespace ape::cuda {

// A call as Python makes it.
struct ImageRequest {
  uintptr_t table;  // this and the next four: see Request
  int64_t table_rows;
  uintptr_t weights;
  int64_t weight_count;
  int64_t element;
  uintptr_t sharing;  // int32 [table_rows][2] on the host: reach and carry of each row (ape_kernels/sharing.py)
  uintptr_t maps;     // this and the pointers below: see ImageArgs
  uintptr_t exit_at;
  uintptr_t output;
  int64_t images, height, width;  // the program's input
  int64_t cell, cell_rows, cell_columns, ring;
};

// A launch: thread blocks, and what they are told.
struct ImageLaunch {
  int64_t blocks;
  ImageArgs args;
};

// Which maps, by their places, hold the same outside what ran in some stage: what has been carried once need not be
// again. What runs in a stage ran in those before it.
class Agreement {
 public:
  // The stage; kNever for maps that agree nowhere.
  int32_t stage(int32_t one, int32_t other) const {
    const auto found = stages_.find(std::minmax(one, other));
    return found == stages_.end() ? kNever : found->second;
  }
  // `target` has been written anywhere.
  void forget(int32_t target) {
    for (auto at = stages_.begin(); at != stages_.end();)
      at = at->first.first == target || at->first.second == target ? stages_.erase(at) : std::next(at);
  }
  // `target` has been written where `stage` runs, and holds what `carry` does elsewhere.
  void note(int32_t target, int32_t carry, int32_t stage) {
    forget(target);
    stages_[std::minmax(target, carry)] = stage;
  }

 private:
  std::map<std::pair<int32_t, int32_t>, int32_t> stages_;
};

// What the launches depend on of the device: whether pairs of so many channels, padded, run in one pass, and how many
// thread blocks run at once. Results do not depend on the latter.
struct ImageDevice {
  std::function<bool(int)> fuses;
  int64_t blocks;
};

// How many rows of a map a window stores. Blocks run in rounds, of which each takes as long as a window: convolutions
// compute eight rows a step, a pair needs one row more; what a window begins with is taken as half a step.
inline int window_rows(const ImageArgs& args, int64_t images, const ImageDevice& device) {
  int best = 0;
  int64_t least = 0;
  for (int rows = kWindow - 2 * args.margin; rows >= 8; --rows) {
    const int64_t windows =
        images * (int64_t(args.across) * ((args.map_height + rows - 1) / rows) + args.border_blocks);
    const int64_t steps = (rows + 2 * args.margin + args.fused + 7) / 8;
    const int64_t cost = (windows + device.blocks - 1) / device.blocks * (2 * steps + 1);
    if (best == 0 || cost < least) {
      best = rows;
      least = cost;
    }
  }
  return best;
}

// Throws std::invalid_argument for a malformed table, and for rows that do not run on windows.
inline std::vector<ImageLaunch> image_launches(const ImageRequest& request, const ImageDevice& device) {
  const Plan plan = plan_of(request.table, request.table_rows, request.weight_count, int(request.element));
  Request sizes{};
  sizes.stage = kWhole;
  sizes.weights = request.weights;
  sizes.scratch = request.maps;
  sizes.height = request.height;
  sizes.width = request.width;
  sizes.count = request.images;
  check(sizes, plan);
  if (plan.buffer_count > kMostBuffers)
    throw std::invalid_argument("table: expected at most " + std::to_string(kMostBuffers) + " buffers, got " +
                                std::to_string(plan.buffer_count));
  const auto* shares = reinterpret_cast<const int32_t*>(request.sharing);
  const auto reach = [&](int row) { return shares[2 * row]; };
  const int64_t rows_at = request.weight_count - table_elements(request.table_rows, int(request.element));

  ImageArgs args{};
  args.rows = reinterpret_cast<const Instruction*>(request.weights + rows_at * bytes_of(int(request.element)));
  args.weights = reinterpret_cast<const void*>(request.weights);
  args.maps = reinterpret_cast<void*>(request.maps);
  args.output = reinterpret_cast<float*>(request.output);
  args.map_elements = plan.scratch_elements;
  args.height = int32_t(request.height);
  args.width = int32_t(request.width);
  args.cell = int32_t(request.cell);
  args.cell_rows = int32_t(request.cell_rows);
  args.cell_columns = int32_t(request.cell_columns);
  for (int i = 0; i < plan.buffer_count; ++i) args.place[i] = plan.rows[i].arena_offset();

  std::vector<ImageLaunch> launches;
  Agreement agreement;
  int stage = -1, sources = 0;
  for (int row = plan.buffer_count; row < int(plan.rows.size()); ++row) {
    const Instruction& in = plan.rows[row];
    if (in.opcode == kStage) ++stage;
    if (in.opcode == kSource) ++sources;
    if (in.opcode == kAttention)
      throw std::invalid_argument("table: row " + std::to_string(row) + ": does not run on windows of an image");
    if (in.opcode != kConv && in.opcode != kReconstruct && in.opcode != kUpsample) continue;
    const bool in_stage = stage >= 0 && row < plan.tail_row, picture = in.opcode == kReconstruct;
    args.exit_at = stage < 0 ? nullptr : reinterpret_cast<const int64_t*>(request.exit_at);
    // the hidden features of a pair are computed wherever the second row reads them, or are what the first one carries
    args.fused = in.opcode == kConv && in.fused && request.element == kFloat16 &&
                 device.fuses(int(ape::padded(in.out_channels))) && (!args.exit_at || reach(row) > reach(row + 1));
    args.first = row - sources;
    args.last = row + args.fused;
    args.margin = args.fused ? 2 : in.opcode == kUpsample ? 0 : in.kernel / 2;
    args.resolution = plan.rows[picture ? in.src : in.dst].resolution();
    args.map_height = args.height * args.resolution;
    args.map_width = args.width * args.resolution;
    args.side_x = kWindow - 2 * args.margin;
    args.across = (args.map_width + args.side_x - 1) / args.side_x;
    // each of their warps has one or two parts (of x4): loads that wait for each other, so more would outlast a window
    args.border_blocks = picture && in.mode ? 1 + (args.map_height + args.map_width) / 128 : 0;
    args.side_y = window_rows(args, request.images, device);
    args.down = (args.map_height + args.side_y - 1) / args.side_y;
    args.stage = in_stage ? stage : 0;
    args.radius = reach(args.last);
    args.ring = in_stage && stage == 0 ? int32_t(request.ring) : 0;
    args.target = args.carry = kKeep;
    args.carry_stage = kNever;
    const int32_t dst = plan.rows[args.last].dst;
    const bool moves = args.fused && dst == in.src;
    if (!picture) {
      args.target = args.place[moves ? in.dst : dst];
      const int32_t carry = shares[2 * args.last + 1];
      const bool carries = in_stage && args.exit_at;
      const int32_t stands = !carries ? args.target : carry == kNoBuffer ? kZeros : args.place[carry];
      args.carry = stands == args.target ? kKeep : stands;
      if (args.carry >= 0) args.carry_stage = agreement.stage(args.carry, args.target);
      if (args.carry >= 0 && args.carry_stage == stage) args.carry = kKeep;  // the same pixels
      args.carry_ring = args.carry_stage == 0 ? int32_t(request.ring) : 0;
      if (!carries || args.radius > 0 || stands == kZeros)
        agreement.forget(args.target);
      else if (stands != args.target)
        agreement.note(args.target, stands, stage);
    }
    const int64_t blocks = int64_t(args.across) * args.down + args.border_blocks;
    if (blocks * request.images > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument("images: too many windows, " + std::to_string(blocks * request.images));
    launches.push_back({blocks * request.images, args});
    if (moves) std::swap(args.place[in.dst], args.place[dst]);
    row += args.fused;
    sources = 0;
  }
  return launches;
}

}  // namespace ape::cuda
