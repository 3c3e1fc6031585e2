#include "program.h"

#include <algorithm>

namespace ape::cpu {

int64_t Program::group_size(const Instruction& in, const Sources& sources, int32_t layout) const {
  const int64_t taps = int64_t(in.kernel) * in.kernel;
  if (layout == kDirect) return taps * in.in_channels * kGroup;
  if (layout == kWinograd) return int64_t(36) * in.in_channels * kGroup;
  int64_t count = 0;
  for (int32_t source : sources) count += slices(buffers[source].channels);
  return taps * count * kSlice / 2 * kGroup;
}

int64_t Program::kernel_elements(const Instruction& in, const Sources& sources) const {
  require(in.layout() >= kDirect && in.layout() <= kBf16, "unknown layout of the weights");
  require(in.layout() != kWinograd || in.kernel != 1, "kernel: Winograd has 3 and 5");
  require(sources.size() <= kMostSources, "more sources than a convolution reads");
  const int64_t groups = padded(in.out_channels) / kGroup;
  const int64_t edges = variants(in) * groups * group_size(in, sources, edge_layout(in));
  if (in.layout() != kWinograd) return edges;
  return groups * group_size(in, sources, kWinograd) + (in.has_border_classes() ? edges : 0);
}

void Program::add(const Instruction& in, Sources sources) {
  margin = std::max(margin, in.kernel / 2);
  switch (in.opcode) {
    case kBuffer:
      buffers.push_back({in.in_channels, in.resolution()});
      break;
    case kStage:
      stages.push_back({in.src, in.dst, {}});
      break;
    case kTail:
      break;
    case kExit:
      stages.back().has_exit = true;
      stages.back().exit = in;
      break;
    default:
      (tail_row >= 0 ? tail : stages.empty() ? head : stages.back().steps).push_back({in, std::move(sources), at()});
  }
}

Program::Program(const int32_t* table, int64_t row_count, int64_t weight_count)
    : Table(table, row_count, weight_count, 1) {
  check();
  buffers[0].floats = buffers[0].grouped = true;  // `load` fills it with floats
  for (const Step& step : head) note_reads(step);
  for (const Stage& stage : stages) {
    for (int32_t number : {stage.src, stage.dst})  // run_stage loads the one and saves the other
      buffers[number].handed = buffers[number].grouped = true;
    for (const Step& step : stage.steps) note_reads(step);
    if (stage.has_exit) buffers[stage.exit.src].grouped = true;
  }
  for (const Step& step : tail) note_reads(step);
  for (const Stage& stage : stages)  // an exit reads the bf16 form if convolutions read it, else floats
    if (stage.has_exit && !buffers[stage.exit.src].rounded) buffers[stage.exit.src].floats = true;
  for (Stage& stage : stages) {
    if (!stage.has_exit || stage.steps.empty()) continue;
    Step& last = stage.steps.back();
    last.summed = last.in.opcode == kConv && last.in.layout() == kBf16 && last.in.dst == stage.exit.src &&
                  buffers[stage.exit.src].floats && last.in.add != kNoBuffer && last.in.activation == kNone;
  }
}

// Notes which form of its buffers a step reads. Steps that are not convolutions also write floats. A picture that is
// only upsampled and added to the result is not grouped, because its three channels would become sixteen.
void Program::note_reads(const Step& step) {
  const Instruction& in = step.in;
  if (in.opcode != kUpsample) {
    for (int32_t source : step.sources) buffers[source].grouped = true;
    if (in.opcode != kReconstruct) {
      buffers[in.src].grouped = buffers[in.dst].grouped = true;
      if (in.add != kNoBuffer) buffers[in.add].grouped = true;
    }
    if (in.add != kNoBuffer) buffers[in.add].floats = true;
  }
  if (in.opcode == kConv || in.opcode == kReconstruct) {
    for (int32_t source : step.sources)
      (in.layout() == kBf16 ? buffers[source].rounded : buffers[source].floats) = true;
    if (in.layout() == kWinograd) widest = std::max(widest, in.in_channels);
  } else {
    buffers[in.src].floats = buffers[in.dst].floats = true;
  }
}

}  // namespace ape::cpu
