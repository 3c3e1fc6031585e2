#include "workspace.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

namespace ape::cpu {
namespace {

// Of the cores that have AMX; half of it is for what passes through.
constexpr int64_t L2_BYTES = int64_t(2) << 20;
constexpr int BAND_ROWS = 16;

// One border class along an axis and the pixels that have it.
struct Segment {
  BorderClass kind;
  int begin, size;
};

std::vector<Segment> segments(int size) {
  if (size == 1) return {{ONLY, 0, 1}};
  return {{FIRST, 0, 1}, {INTERIOR, 1, size - 2}, {LAST, size - 1, 1}};
}

// Pixels that pad an axis so that Winograd's tiles cover it.
int tiled(int size) { return (size + 3) / 4 * 4; }

// Of its bf16 form.
int64_t map_bytes(const FeatureMap& map) {
  return (map.channels + CHUNK - 1) / CHUNK * map.half_plane * int64_t(sizeof(bf16));
}

// Four taps of cubic interpolation (a = -0.75, as PyTorch has it) for the output pixels of an axis.
struct CubicTaps {
  std::vector<int> index;     // [size * factor][4], clamped
  std::vector<float> weight;  // [size * factor][4]

  CubicTaps(int size, int factor) : index(size * factor * 4), weight(size * factor * 4) {
    constexpr double a = -0.75;
    for (int i = 0; i < size * factor; i++) {
      const double centre = (i + 0.5) / factor - 0.5;
      const int first = int(std::floor(centre)) - 1;
      for (int t = 0; t < 4; t++) {
        const double d = std::abs(centre - (first + t));
        index[i * 4 + t] = std::clamp(first + t, 0, size - 1);
        weight[i * 4 + t] =
            float(d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : ((a * d - 5 * a) * d + 8 * a) * d - 4 * a);
      }
    }
  }
};

}  // namespace

Workspace::Workspace(const Program& program, const Kernels& kernels, const float* weights, int height, int width,
                     bool handed)
    : program_(&program), kernels_(&kernels), weights_(weights) {
  const int border = program.border;
  int64_t float_count = 0, half_count = 0, widest = 0, longest_row = 0;
  std::vector<int64_t> float_start, half_start;  // of the buffers' origins
  for (const BufferSpec& spec : program.buffers) {
    FeatureMap map{};
    map.channels = spec.channels;
    map.height = height * spec.resolution;
    map.width = width * spec.resolution;
    const int64_t rows = tiled(map.height) + 2 * border, columns = tiled(map.width) + 2 * border;
    map.pixel = spec.grouped ? padded(spec.channels) : spec.channels;
    map.row = columns * map.pixel;
    map.half_row = columns * CHUNK;
    map.half_plane = rows * map.half_row;
    float_start.push_back(float_count + border * (map.row + map.pixel));
    half_start.push_back(half_count + border * (map.half_row + CHUNK));
    if (spec.floats || (handed && spec.handed))
      float_count += padded(rows * map.row);  // the next one begins a cache line
    if (spec.half) half_count += (spec.channels + CHUNK - 1) / CHUNK * map.half_plane;
    widest = std::max(widest, map.pixel);
    longest_row = std::max(longest_row, map.half_row);
    buffers_.push_back(map);
  }
  const Instruction& last = program.reconstruct();
  phases_ = buffers_[last.src];
  phases_.channels = last.out_channels;
  phases_.pixel = padded(last.out_channels);
  phases_.row = phases_.width * phases_.pixel;
  const int64_t phase_count = phases_.height * phases_.row;
  const int64_t scratch_count = std::max(winograd_scratch(program.widest), PAIRS_SCRATCH);
  floats_ = allocate<float>(float_count + phase_count + scratch_count);
  // 16 pixels to the right or downward may be read from any pixel of a map on
  const int64_t overrun = 15 * longest_row;
  halves_ = allocate<bf16>(half_count + overrun);
  float_count_ = float_count;
  half_count_ = half_count + overrun;
  for (size_t i = 0; i < buffers_.size(); i++) {
    const BufferSpec& spec = program.buffers[i];
    if (spec.floats || (handed && spec.handed)) buffers_[i].pixels = floats_.get() + float_start[i];
    if (spec.half) buffers_[i].half = halves_.get() + half_start[i];
  }
  phases_.pixels = floats_.get() + float_count;
  phases_.half = nullptr;
  scratch_ = phases_.pixels + phase_count;
  no_slope_.assign(widest, 0.0f);
}

void Workspace::load(int buffer, const float* planes) {
  if (!cleared_) {
    std::fill_n(floats_.get(), float_count_, 0.0f);
    std::fill_n(halves_.get(), half_count_, bf16(0));
    cleared_ = true;
  }
  const FeatureMap& b = buffers_[buffer];
  const int64_t plane = int64_t(b.height) * b.width;
  for (int y = 0; y < b.height; y++, planes += b.width)
    for (int group = 0; group < b.channels; group += LANES)  // a cache line of a pixel is filled at once
      for (int x = 0; x < b.width; x++)
        for (int c = group; c < std::min(group + LANES, b.channels); c++)
          b.pixels[y * b.row + x * b.pixel + c] = planes[c * plane + x];
  round(buffer);
}

void Workspace::save(int buffer, float* planes) const {
  const FeatureMap& b = buffers_[buffer];
  for (int c = 0; c < b.channels; c++)
    for (int y = 0; y < b.height; y++)
      for (int x = 0; x < b.width; x++) *planes++ = b.pixels[y * b.row + x * b.pixel + c];
}

void Workspace::run(const Step* steps, int64_t count) {
  for (int64_t i = 0; i < count;) {
    const int64_t together = bands(steps + i, count - i);
    if (together > 1)
      run_bands(steps + i, together);
    else
      run(steps[i]);
    i += together;
  }
}

// How many of the steps, from the first on, are to run in bands: bf16 convolutions of one resolution whose maps do not
// fit L2, but whose weights do. 1: the first runs on its own.
int64_t Workspace::bands(const Step* steps, int64_t count) const {
  int64_t together = 0, weight_bytes = 0;
  for (; together < count; together++) {
    const Instruction &in = steps[together].in, &first = steps[0].in;
    if (in.opcode != CONV || layout(in) != PAIRS) break;
    const FeatureMap& map = buffers_[in.dst];
    if (map.height != buffers_[first.dst].height) break;
    if (2 * map_bytes(map) <= L2_BYTES) break;
    weight_bytes += padded(in.out_channels) / LANES * group_size(steps[together], PAIRS, program_->buffers) * 4;
    if (weight_bytes > L2_BYTES / 2) break;
  }
  return std::max<int64_t>(together, 1);
}

// BAND_ROWS rows through all steps, then the next. Each step is as many rows behind the one before as the wider of
// their kernels reaches: it finds all rows it reads, and what it overwrites no earlier step will read again. Two maps
// of 64 channels, 96x96 pixels, are 2.5 MB: whole, they pass through L3 at every step; 20 rows of both are 0.5 MB.
void Workspace::run_bands(const Step* steps, int64_t count) {
  std::vector<int> behind(count, 0);
  for (int64_t i = 1; i < count; i++)
    behind[i] = behind[i - 1] + std::max(steps[i - 1].in.kernel, steps[i].in.kernel) / 2;
  const int height = buffers_[steps[0].in.dst].height;
  for (int row = 0; row < height + behind.back(); row += BAND_ROWS) {
    for (int64_t i = 0; i < count; i++) {
      const int first = std::max(row - behind[i], 0), end = std::min(row + BAND_ROWS - behind[i], height);
      if (first < end) conv(steps[i], first, end - first);
    }
  }
}

void Workspace::run(const Step& step) {
  switch (step.in.opcode) {
    case CONV:
      return conv(step, 0, buffers_[step.in.dst].height);
    case ATTENTION:
      attention(step.in);
      break;
    default:
      step.in.mode == NEAREST ? nearest(step.in) : bicubic(step.in);
  }
  round(step.in.dst);
}

// Brings the bf16 form of a buffer, if it has one, up to what was written as floats.
void Workspace::round(int buffer) const {
  if (buffers_[buffer].half != nullptr) kernels_->round(buffers_[buffer]);
}

ConvArgs Workspace::conv_args(const Step& step, Layout layout) const {
  const Instruction& in = step.in;
  ConvArgs args{};
  for (int32_t source : step.sources) args.sources[args.source_count++] = buffers_[source];
  args.in_channels = in.in_channels;
  args.weight = weights_ + in.weight;
  args.bias = weights_ + in.bias;
  args.groups = int(padded(in.out_channels) / LANES);
  args.group_size = group_size(step, layout, program_->buffers);
  args.kernel = in.kernel;
  args.scale = 1.0f;
  return args;
}

void Workspace::run_conv(const ConvArgs& args, Layout layout, const Area& area) {
  if (layout == WINOGRAD)
    kernels_->winograd(args, scratch_);
  else if (layout == PAIRS)
    kernels_->pairs(args, area, scratch_);
  else
    kernels_->direct(args, area);
}

void Workspace::conv(const Step& step, int first_row, int row_count) {
  const Instruction& in = step.in;
  ConvArgs args = conv_args(step, layout(in));
  args.dst = buffers_[in.dst];
  if (in.add != NO_BUFFER) args.add = buffers_[in.add];
  if (in.activation != NO_ACTIVATION) args.slope = in.activation == RELU ? no_slope_.data() : weights_ + in.slope;
  args.scale = in.scale();
  if (step.summed) {
    if (first_row == 0) sums_.assign(args.dst.pixel, 0.0);
    args.sums = sums_.data();
  }
  run_conv(args, layout(in), {first_row, 0, row_count, args.dst.width});
}

void Workspace::attention(const Instruction& in) {
  const FeatureMap& src = buffers_[in.src];
  const std::vector<double> mean = means(channel_sums(src), src);
  const float* squeeze = weights_ + in.weight;  // [hidden][channels]
  const float* expand = squeeze + int64_t(in.hidden) * in.in_channels;
  const float* bias = weights_ + in.bias;  // [hidden], then [channels]
  std::vector<double> squeezed(in.hidden);
  for (int h = 0; h < in.hidden; h++) {
    double sum = bias[h];
    for (int c = 0; c < in.in_channels; c++) sum += squeeze[h * in.in_channels + c] * mean[c];
    squeezed[h] = std::max(sum, 0.0);
  }
  std::vector<float> gate(src.pixel, 0.0f);  // padding channels stay zero
  for (int c = 0; c < in.in_channels; c++) {
    double sum = bias[in.hidden + c];
    for (int h = 0; h < in.hidden; h++) sum += expand[c * in.hidden + h] * squeezed[h];
    gate[c] = float(in.scale() / (1.0 + std::exp(-sum)));
  }
  kernels_->gate(src, gate.data(), in.add == NO_BUFFER ? FeatureMap{} : buffers_[in.add], buffers_[in.dst]);
}

// Across, then the line as often as there are rows alike.
void Workspace::nearest(const Instruction& in) {
  const FeatureMap &src = buffers_[in.src], &dst = buffers_[in.dst];
  for (int y = 0; y < src.height; y++) {
    float* const line = dst.pixels + int64_t(y) * in.upscale * dst.row;
    float* to = line;
    for (int x = 0; x < src.width; x++)
      for (int i = 0; i < in.upscale; i++, to += dst.pixel)
        std::copy_n(src.pixels + y * src.row + x * src.pixel, src.channels, to);
    for (int i = 1; i < in.upscale; i++) std::copy_n(line, dst.width * dst.pixel, line + i * dst.row);
  }
}

// Down first, a line of source pixels at a time, then across.
void Workspace::bicubic(const Instruction& in) {
  const FeatureMap &src = buffers_[in.src], &dst = buffers_[in.dst];
  const CubicTaps rows(src.height, in.upscale), columns(src.width, in.upscale);
  const int channels = src.channels;
  std::vector<float> line(int64_t(src.width) * channels);
  for (int y = 0; y < dst.height; y++) {
    std::fill(line.begin(), line.end(), 0.0f);
    for (int i = 0; i < 4; i++) {
      const float weight = rows.weight[y * 4 + i];
      const float* from = src.pixels + rows.index[y * 4 + i] * src.row;
      for (int x = 0; x < src.width; x++)
        for (int c = 0; c < channels; c++) line[x * channels + c] += weight * from[x * src.pixel + c];
    }
    for (int x = 0; x < dst.width; x++) {
      float* to = dst.pixels + y * dst.row + x * dst.pixel;
      for (int c = 0; c < channels; c++) {
        float sum = 0.0f;
        for (int j = 0; j < 4; j++) sum += columns.weight[x * 4 + j] * line[columns.index[x * 4 + j] * channels + c];
        to[c] = sum;
      }
    }
  }
}

// The phases of all pixels, then their shuffle. With border classes the outermost ring has kernels of its own: a line
// of pixels each edge, a pixel each corner, written over what the interior's kernel left there.
void Workspace::reconstruct(const Step& step, float* pixels) {
  const Instruction& in = step.in;
  const Layout interior = layout(in), edges = interior == WINOGRAD ? DIRECT : interior;
  ConvArgs args = conv_args(step, interior);
  args.dst = phases_;
  run_conv(args, interior, {0, 0, phases_.height, phases_.width});
  if (has_border_classes(in)) {
    const float *weight = args.weight, *bias = args.bias;
    if (interior == WINOGRAD) weight += args.groups * args.group_size;  // the classes' kernels follow
    args.group_size = group_size(step, edges, program_->buffers);
    for (const Segment& rows : segments(phases_.height)) {
      for (const Segment& columns : segments(phases_.width)) {
        if (rows.kind == INTERIOR && columns.kind == INTERIOR) continue;
        const int variant = rows.kind * BORDER_CLASSES + columns.kind;
        args.weight = weight + variant * args.groups * args.group_size;
        args.bias = bias + variant * args.groups * LANES;
        run_conv(args, edges, {rows.begin, columns.begin, rows.size, columns.size});
      }
    }
  }
  switch (in.upscale) {
    case 2:
      return shuffle<2>(in, pixels);
    case 3:
      return shuffle<3>(in, pixels);
    case 4:
      return shuffle<4>(in, pixels);
    default:
      return shuffle<0>(in, pixels);
  }
}

// Phases, [height][width][O * s * s], to the picture [O][s * height][s * width]. S: s where it is known in
// advance, else 0.
template <int S>
void Workspace::shuffle(const Instruction& in, float* pixels) const {
  const int s = S ? S : in.upscale;
  const int64_t picture_row = int64_t(s) * phases_.width, rows = int64_t(s) * phases_.height;
  for (int plane = 0; plane < in.out_channels / (s * s); plane++) {
    for (int64_t row = 0; row < rows; row++) {
      float* const out = pixels + (plane * rows + row) * picture_row;
      const float* phase = phases_.pixels + row / s * phases_.row + (plane * s + row % s) * s;
      for (int x = 0; x < phases_.width; x++, phase += phases_.pixel)
        for (int dx = 0; dx < s; dx++) out[x * s + dx] = phase[dx];
      if (in.add != NO_BUFFER) {
        const FeatureMap& add = buffers_[in.add];
        const float* from = add.pixels + row * add.row + plane;
        for (int64_t x = 0; x < picture_row; x++) out[x] += from[x * add.pixel];
      }
    }
  }
}

std::vector<double> Workspace::channel_sums(const FeatureMap& map) const {
  std::vector<double> sums(map.pixel);
  kernels_->channel_sums(map, sums.data());
  return sums;
}

std::vector<double> Workspace::means(std::vector<double> sums, const FeatureMap& map) {
  for (double& value : sums) value /= double(map.height) * map.width;
  return sums;
}

float Workspace::predict(const Stage& stage) const {
  const Instruction& in = stage.exit;
  const FeatureMap& map = buffers_[in.src];
  const bool summed = !stage.steps.empty() && stage.steps.back().summed;
  const std::vector<double> mean = means(summed ? sums_ : channel_sums(map), map);
  double score = weights_[in.bias];
  for (int c = 0; c < in.in_channels; c++) score += mean[c] * weights_[in.weight + c];
  return std::tanh(float(score));
}

}  // namespace ape::cpu
