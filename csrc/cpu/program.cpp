#include "program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ape::cpu {

int64_t group_size(const Step& step, Layout layout, const std::vector<BufferSpec>& buffers) {
  const Instruction& in = step.in;
  const int64_t taps = int64_t(in.kernel) * in.kernel;
  if (layout == DIRECT) return taps * in.in_channels * LANES;
  if (layout == WINOGRAD) return int64_t(36) * in.in_channels * LANES;
  int64_t chunks = 0;
  for (int32_t source : step.sources) chunks += (buffers[source].channels + CHUNK - 1) / CHUNK;
  return taps * chunks * CHUNK / 2 * LANES;
}

namespace {

// Checks one row against the buffers and the weights.
struct Checker {
  const Program& program;
  int64_t weight_count;
  int64_t row;

  void require(bool condition, const char* what) const {
    if (!condition) throw std::invalid_argument("table: row " + std::to_string(row) + ": " + what);
  }

  const BufferSpec& buffer(int32_t number) const {
    require(number >= 0 && number < int64_t(program.buffers.size()), "no such buffer");
    return program.buffers[number];
  }

  // Buffer `number` has `channels` and stands at `resolution`.
  void fits(int32_t number, int64_t channels, int resolution) const {
    require(buffer(number).channels == channels, "channels differ from the buffer's");
    require(buffer(number).resolution == resolution, "resolutions differ");
  }

  void weights(const Instruction& in, int64_t weight, int64_t bias) const {
    require(in.weight >= 0 && in.weight + weight <= weight_count, "weights outside the weight buffer");
    require(in.bias >= 0 && in.bias + bias <= weight_count, "bias outside the weight buffer");
  }

  // What CONV and RECONSTRUCT have in common.
  void kernel(const Instruction& in) const {
    require(in.kernel == 1 || in.kernel == 3 || in.kernel == 5, "kernel: expected 1, 3 or 5");
    require(layout(in) >= DIRECT && layout(in) <= PAIRS, "unknown layout of the weights");
    require(layout(in) != WINOGRAD || in.kernel != 1, "kernel: Winograd has 3 and 5");
  }

  void conv(const Step& step) const {
    const Instruction& in = step.in;
    kernel(in);
    require(!has_border_classes(in), "a convolution has no border classes");
    require(in.activation >= NO_ACTIVATION && in.activation <= PRELU, "unknown activation");
    require(step.sources.size() <= MAX_SOURCES, "more sources than a convolution reads");
    const int resolution = buffer(in.dst).resolution;
    int64_t channels = 0;
    for (int32_t source : step.sources) {
      require(source != in.dst, "a convolution cannot write the buffer it reads");
      channels += buffer(source).channels;
      fits(source, buffer(source).channels, resolution);
    }
    require(channels == in.in_channels, "channels differ from the buffer's");
    fits(in.dst, in.out_channels, resolution);
    if (in.add != NO_BUFFER) fits(in.add, in.out_channels, resolution);
    const int64_t out = padded(in.out_channels);
    weights(in, out / LANES * group_size(step, layout(in), program.buffers), out);
    if (in.activation == PRELU)
      require(in.slope >= 0 && in.slope + out <= weight_count, "slopes outside the weight buffer");
  }

  void attention(const Instruction& in) const {
    const int resolution = buffer(in.src).resolution;
    fits(in.src, in.in_channels, resolution);
    fits(in.dst, in.in_channels, resolution);
    if (in.add != NO_BUFFER) fits(in.add, in.in_channels, resolution);
    require(in.hidden >= 1, "hidden: expected at least 1");
    weights(in, 2 * int64_t(in.hidden) * in.in_channels, int64_t(in.hidden) + in.in_channels);
  }

  void upsample(const Instruction& in) const {
    require(in.mode == NEAREST || in.mode == BICUBIC, "unknown interpolation");
    require(in.upscale >= 1, "upscale: expected at least 1");
    fits(in.dst, buffer(in.src).channels, buffer(in.src).resolution * in.upscale);
  }

  void exit(const Instruction& in) const {
    require(!program.stages.empty() && !program.stages.back().has_exit, "an exit ends a stage");
    fits(in.src, in.in_channels, buffer(in.src).resolution);
    weights(in, in.in_channels, 1);
  }

  void reconstruct(const Step& step) const {
    const Instruction& in = step.in;
    kernel(in);
    require(in.upscale >= 1 && in.out_channels % (in.upscale * in.upscale) == 0, "channels do not shuffle");
    const int resolution = buffer(in.src).resolution;
    fits(in.src, in.in_channels, resolution);
    if (in.add != NO_BUFFER) fits(in.add, in.out_channels / (in.upscale * in.upscale), resolution * in.upscale);
    const int64_t phases = padded(in.out_channels), groups = phases / LANES;
    const int64_t variants = has_border_classes(in) ? BORDER_CLASSES * BORDER_CLASSES : 1;
    const Layout edges = layout(in) == WINOGRAD ? DIRECT : layout(in);
    int64_t weight_words = groups * variants * group_size(step, edges, program.buffers);
    if (layout(in) == WINOGRAD)
      weight_words = groups * group_size(step, WINOGRAD, program.buffers) + (has_border_classes(in) ? weight_words : 0);
    weights(in, weight_words, variants * phases);
  }
};

}  // namespace

Program::Program(const int32_t* table, int64_t rows, int64_t weight_count) {
  bool in_tail = false;
  std::vector<int32_t> sources;  // of the convolution that follows
  Checker check{*this, weight_count, 0};
  for (int64_t row = 0; row < rows; row++) {
    check.row = row;
    Instruction in;
    std::memcpy(&in, table + row * (sizeof in / sizeof(int32_t)), sizeof in);
    std::vector<Step>& section = in_tail ? tail : stages.empty() ? head : stages.back().steps;
    switch (in.opcode) {
      case BUFFER:
        check.require(in.src == int32_t(buffers.size()), "buffers come first, in order");
        check.require(in.in_channels >= 1 && in.upscale >= 1, "a buffer has channels and a resolution");
        buffers.push_back({in.in_channels, in.upscale});
        break;
      case STAGE:
        check.require(!in_tail, "a stage after the tail");
        check.fits(in.dst, check.buffer(in.src).channels, check.buffer(in.src).resolution);
        stages.push_back({in.src, in.dst, {}});
        break;
      case TAIL:
        check.require(!stages.empty() && !in_tail, "the tail follows the stages");
        in_tail = true;
        break;
      case SOURCE:
        check.buffer(in.src);
        sources.push_back(in.src);
        break;
      case CONV:
        sources.push_back(in.src);
        section.push_back({in, std::move(sources)});
        sources.clear();
        check.conv(section.back());
        break;
      case ATTENTION:
        check.attention(in);
        section.push_back({in, {}});
        break;
      case UPSAMPLE:
        check.upsample(in);
        section.push_back({in, {}});
        break;
      case EXIT:
        check.exit(in);
        stages.back().has_exit = true;
        stages.back().exit = in;
        break;
      case RECONSTRUCT:
        check.require(in_tail && row == rows - 1, "the reconstruction ends the tail");
        section.push_back({in, {in.src}});
        check.reconstruct(section.back());
        break;
      default:
        check.require(false, "unknown opcode");
    }
    border = std::max(border, in.kernel / 2);
  }
  check.require(!tail.empty() && reconstruct().opcode == RECONSTRUCT, "the reconstruction ends the tail");
  buffers[0].floats = buffers[0].grouped = true;  // filled with floats
  for (const Step& step : head) note_reads(step);
  for (const Stage& stage : stages) {
    for (int32_t number : {stage.src, stage.dst})  // what run_stage takes and gives
      buffers[number].handed = buffers[number].grouped = true;
    for (const Step& step : stage.steps) note_reads(step);
    if (stage.has_exit) buffers[stage.exit.src].grouped = true;
  }
  for (const Step& step : tail) note_reads(step);
  for (const Stage& stage : stages)  // an exit reads floats, but makes do with what convolutions read
    if (stage.has_exit && !buffers[stage.exit.src].half) buffers[stage.exit.src].floats = true;
  for (Stage& stage : stages) {
    if (!stage.has_exit || stage.steps.empty()) continue;
    Step& last = stage.steps.back();
    last.summed = last.in.opcode == CONV && layout(last.in) == PAIRS && last.in.dst == stage.exit.src &&
                  buffers[stage.exit.src].floats && last.in.add != NO_BUFFER && last.in.activation == NO_ACTIVATION;
  }
}

// Which form of its buffers a step reads; steps that are no convolutions also write floats. Pictures that are only
// upsampled and added to the result are not grouped: their three channels would be sixteen.
void Program::note_reads(const Step& step) {
  const Instruction& in = step.in;
  if (in.opcode != UPSAMPLE) {
    for (int32_t source : step.sources) buffers[source].grouped = true;
    if (in.opcode != RECONSTRUCT) {
      buffers[in.src].grouped = buffers[in.dst].grouped = true;
      if (in.add != NO_BUFFER) buffers[in.add].grouped = true;
    }
  }
  if (in.opcode != UPSAMPLE && in.add != NO_BUFFER) buffers[in.add].floats = true;
  if (in.opcode == CONV || in.opcode == RECONSTRUCT) {
    for (int32_t source : step.sources) (layout(in) == PAIRS ? buffers[source].half : buffers[source].floats) = true;
    if (layout(in) == WINOGRAD) widest = std::max(widest, in.in_channels);
  } else {
    buffers[in.src].floats = buffers[in.dst].floats = true;
  }
}

}  // namespace ape::cpu
