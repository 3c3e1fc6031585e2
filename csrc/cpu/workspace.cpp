#include "workspace.h"

#include <algorithm>

#include "bands.h"
#include "pooled.h"
#include "upsample.h"

namespace ape::cpu {
namespace {

// A border class of an axis, and the pixels that have it.
struct Segment {
  BorderClass kind;
  int begin, end;
};

// The border classes of the pixels `begin` to `end` of an axis of `size` pixels.
std::vector<Segment> segments(int size, int begin, int end) {
  if (size == 1) return {{kOnly, 0, 1}};
  std::vector<Segment> some;
  for (const Segment& all : {Segment{kFirst, 0, 1}, Segment{kInterior, 1, size - 1}, Segment{kLast, size - 1, size}}) {
    const Segment part{all.kind, std::max(all.begin, begin), std::min(all.end, end)};
    if (part.begin < part.end) some.push_back(part);
  }
  return some;
}

// The map whose pixel (0, 0) is the first of `area`, and which ends with it.
FeatureMap cropped(FeatureMap map, const Area& area) {
  if (map.pixels != nullptr) map.pixels += area.y * map.row + area.x * map.pixel;
  if (map.rounded != nullptr) map.rounded += area.y * map.rounded_row + area.x * kSlice;
  map.height = area.height;
  map.width = area.width;
  return map;
}

std::vector<double> means(std::vector<double> sums, const FeatureMap& map) {
  for (double& value : sums) value /= double(map.height) * map.width;
  return sums;
}

}  // namespace

void Workspace::load(int buffer, const Planes<const float>& planes, const Area& area) {
  maps_.load(buffer, planes, area);
  round(buffer, area);
}

void Workspace::run(const Step* steps, int64_t count) {
  for (int64_t i = 0; i < count;) {
    const int64_t together = count_banded(steps + i, count - i, *program_, maps_);
    if (together > 1)
      run_bands(steps + i, together, maps_[steps[i].in.dst].height,
                [&](const Step& step, int row, int rows) { conv(step, Area{row, 0, rows, maps_[step.in.dst].width}); });
    else
      run(steps[i], whole(maps_[steps[i].in.dst]));
    i += together;
  }
}

void Workspace::run(const Step& step, const Areas& areas) {
  const Instruction& in = step.in;
  const FeatureMap &src = maps_[in.src], &dst = maps_[in.dst];
  if (in.opcode == kConv) return conv(step, areas);
  if (in.opcode == kAttention) {  // of patches alone: it averages over the whole map
    kernels_->gate(src, gates(in, weights_, means(channel_sums(src), src)).data(), added(in), dst);
    return round(in.dst, whole(dst));
  }
  for (const Area& area : areas) {
    (in.interpolation() == kNearest ? nearest : bicubic)(src, in.upscale, dst, area);
    round(in.dst, area);
  }
}

// Brings the bf16 form of a buffer, if it has one, up to what was written as floats.
void Workspace::round(int buffer, const Area& area) const {
  if (maps_[buffer].rounded != nullptr) kernels_->round(cropped(maps_[buffer], area));
}

ConvArgs Workspace::conv_args(const Step& step) const {
  const Instruction& in = step.in;
  ConvArgs args{};
  for (int32_t source : step.sources) args.sources[args.source_count++] = maps_[source];
  args.in_channels = in.in_channels;
  args.weight = weights_ + in.weight;
  args.bias = weights_ + in.bias;
  args.groups = int(padded(in.out_channels) / kGroup);
  args.group_size = program_->group_size(in, step.sources, in.layout());
  args.kernel = in.kernel;
  args.scale = 1.0f;
  return args;
}

void Workspace::run_conv(const ConvArgs& args, int32_t layout, const Areas& areas) {
  if (layout == kWinograd) return kernels_->winograd(args, areas, maps_.scratch());
  for (const Area& area : areas) {
    if (layout == kBf16)
      kernels_->direct_bf16(args, area, maps_.scratch());
    else
      kernels_->direct(args, area);
  }
}

void Workspace::conv(const Step& step, const Areas& areas) {
  const Instruction& in = step.in;
  ConvArgs args = conv_args(step);
  args.dst = maps_[in.dst];
  args.add = added(in);
  if (in.activation != kNone) args.slope = in.activation == kRelu ? maps_.zeros() : weights_ + in.slope;
  args.scale = in.scale();
  if (step.summed) {
    if (areas.first->y == 0) sums_.assign(args.dst.pixel, 0.0);
    args.sums = sums_.data();
  }
  run_conv(args, in.layout(), areas);
}

// The phases of all pixels, then their shuffle.
void Workspace::reconstruct(const Step& step, const Area& area, const Planes<float>& picture) {
  const Instruction& in = step.in;
  const FeatureMap phases = maps_.phases(area);
  ConvArgs args = conv_args(step);
  args.dst = phases;
  run_conv(args, in.layout(), area);
  if (in.has_border_classes()) run_border_classes(step, args, area);
  shuffle(phases, in.upscale, added(in), area, picture);
}

// The outermost pixels of the map have kernels of their own: a line of pixels per edge, a pixel per corner. They are
// written over what the interior's kernel left there.
void Workspace::run_border_classes(const Step& step, ConvArgs args, const Area& area) {
  const Instruction& in = step.in;
  const FeatureMap& src = maps_[in.src];
  const float *weight = args.weight, *bias = args.bias;
  if (in.layout() == kWinograd) weight += args.groups * args.group_size;  // the classes' kernels follow
  args.group_size = program_->group_size(in, step.sources, edge_layout(in));
  for (const Segment& rows : segments(src.height, area.y, area.bottom())) {
    for (const Segment& columns : segments(src.width, area.x, area.right())) {
      if (rows.kind == kInterior && columns.kind == kInterior) continue;
      const int variant = rows.kind * kBorderClasses + columns.kind;
      args.weight = weight + variant * args.groups * args.group_size;
      args.bias = bias + variant * args.groups * kGroup;
      run_conv(args, edge_layout(in),
               Area{rows.begin, columns.begin, rows.end - rows.begin, columns.end - columns.begin});
    }
  }
}

std::vector<double> Workspace::channel_sums(const FeatureMap& map) const {
  std::vector<double> sums(map.pixel);
  kernels_->channel_sums(map, sums.data());
  return sums;
}

float Workspace::predict(const Stage& stage) const {
  const FeatureMap& map = maps_[stage.exit.src];
  const bool summed = !stage.steps.empty() && stage.steps.back().summed;
  return cpu::predict(stage.exit, weights_, means(summed ? sums_ : channel_sums(map), map));
}

}  // namespace ape::cpu
