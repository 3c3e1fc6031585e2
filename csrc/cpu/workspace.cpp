#include "workspace.h"

#include "bands.h"
#include "pooled.h"
#include "upsample.h"

namespace ape::cpu {
namespace {

// A border class of an axis, and the pixels that have it.
struct Segment {
  BorderClass kind;
  int begin, size;
};

std::vector<Segment> segments(int size) {
  if (size == 1) return {{kOnly, 0, 1}};
  return {{kFirst, 0, 1}, {kInterior, 1, size - 2}, {kLast, size - 1, 1}};
}

std::vector<double> means(std::vector<double> sums, const FeatureMap& map) {
  for (double& value : sums) value /= double(map.height) * map.width;
  return sums;
}

}  // namespace

void Workspace::load(int buffer, const float* planes) {
  maps_.load(buffer, planes);
  round(buffer);
}

void Workspace::run(const Step* steps, int64_t count) {
  for (int64_t i = 0; i < count;) {
    const int64_t together = count_banded(steps + i, count - i, *program_, maps_);
    if (together > 1)
      run_bands(steps + i, together, maps_[steps[i].in.dst].height,
                [&](const Step& step, int first_row, int row_count) { conv(step, first_row, row_count); });
    else
      run(steps[i]);
    i += together;
  }
}

void Workspace::run(const Step& step) {
  const Instruction& in = step.in;
  const FeatureMap &src = maps_[in.src], &dst = maps_[in.dst];
  if (in.opcode == kConv) return conv(step, 0, dst.height);
  if (in.opcode == kAttention)
    kernels_->gate(src, gates(in, weights_, means(channel_sums(src), src)).data(), added(in), dst);
  else
    (in.interpolation() == kNearest ? nearest : bicubic)(src, in.upscale, dst);
  round(in.dst);
}

// Writes the bf16 form of a buffer, if it has one, from its floats.
void Workspace::round(int buffer) const {
  if (maps_[buffer].rounded != nullptr) kernels_->round(maps_[buffer]);
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

void Workspace::run_conv(const ConvArgs& args, int32_t layout, const Area& area) {
  if (layout == kWinograd)
    kernels_->winograd(args, maps_.scratch());
  else if (layout == kBf16)
    kernels_->direct_bf16(args, area, maps_.scratch());
  else
    kernels_->direct(args, area);
}

void Workspace::conv(const Step& step, int first_row, int row_count) {
  const Instruction& in = step.in;
  ConvArgs args = conv_args(step);
  args.dst = maps_[in.dst];
  args.add = added(in);
  if (in.activation != kNone) args.slope = in.activation == kRelu ? maps_.zeros() : weights_ + in.slope;
  args.scale = in.scale();
  if (step.summed) {
    if (first_row == 0) sums_.assign(args.dst.pixel, 0.0);
    args.sums = sums_.data();
  }
  run_conv(args, in.layout(), {first_row, 0, row_count, args.dst.width});
}

// Computes the phases of all pixels with the interior's kernel, and then shuffles them. With border classes, kernels of
// their own compute the border pixels again: one line of pixels per edge and one pixel per corner.
void Workspace::reconstruct(const Step& step, float* picture) {
  const Instruction& in = step.in;
  const FeatureMap& phases = maps_.phases();
  ConvArgs args = conv_args(step);
  args.dst = phases;
  run_conv(args, in.layout(), {0, 0, phases.height, phases.width});
  if (in.has_border_classes()) {
    const float *weight = args.weight, *bias = args.bias;
    if (in.layout() == kWinograd) weight += args.groups * args.group_size;  // the kernels of all classes follow
    args.group_size = program_->group_size(in, step.sources, edge_layout(in));
    for (const Segment& rows : segments(phases.height)) {
      for (const Segment& columns : segments(phases.width)) {
        if (rows.kind == kInterior && columns.kind == kInterior) continue;
        const int variant = rows.kind * kBorderClasses + columns.kind;
        args.weight = weight + variant * args.groups * args.group_size;
        args.bias = bias + variant * args.groups * kGroup;
        run_conv(args, edge_layout(in), {rows.begin, columns.begin, rows.size, columns.size});
      }
    }
  }
  shuffle(phases, in.upscale, added(in), picture);
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
