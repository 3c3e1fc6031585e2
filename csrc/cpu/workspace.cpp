#include "workspace.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

namespace ape::cpu {
namespace {

BorderClass border_class(int position, int size) {
  if (size == 1) return ONLY;
  return position == 0 ? FIRST : position == size - 1 ? LAST : INTERIOR;
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

Workspace::Workspace(const Program& program, const Kernels& kernels, const float* weights, int height, int width)
    : kernels_(kernels), weights_(weights) {
  int64_t total = 0, channels = 0;
  for (const BufferSpec& spec : program.buffers) {
    Buffer buffer{nullptr, 0, padded(spec.channels), spec.channels, height * spec.resolution, width * spec.resolution};
    buffer.row = (buffer.width + 2 * program.border) * buffer.pixel;
    buffers_.push_back(buffer);
    total += (buffer.height + 2 * program.border) * buffer.row;
    channels = std::max(channels, buffer.pixel);
  }
  const Instruction& last = program.reconstruct();
  const int64_t phases = buffers_[last.src].width * padded(last.out_channels);
  memory_ = static_cast<float*>(::operator new((total + phases) * sizeof(float), std::align_val_t(64)));
  std::fill_n(memory_, total, 0.0f);
  phase_row_ = memory_ + total;
  float* next = memory_;
  for (Buffer& buffer : buffers_) {
    buffer.origin = next + program.border * (buffer.row + buffer.pixel);
    next += (buffer.height + 2 * program.border) * buffer.row;
  }
  no_slope_.assign(channels, 0.0f);
}

Workspace::Workspace(Workspace&& other) noexcept
    : kernels_(other.kernels_),
      weights_(other.weights_),
      memory_(std::exchange(other.memory_, nullptr)),
      phase_row_(other.phase_row_),
      buffers_(std::move(other.buffers_)),
      no_slope_(std::move(other.no_slope_)) {}

Workspace::~Workspace() { ::operator delete(memory_, std::align_val_t(64)); }

void Workspace::load(int buffer, const float* planes) {
  const Buffer& b = buffers_[buffer];
  for (int c = 0; c < b.channels; c++)
    for (int y = 0; y < b.height; y++)
      for (int x = 0; x < b.width; x++) b.origin[y * b.row + x * b.pixel + c] = *planes++;
}

void Workspace::save(int buffer, float* planes) const {
  const Buffer& b = buffers_[buffer];
  for (int c = 0; c < b.channels; c++)
    for (int y = 0; y < b.height; y++)
      for (int x = 0; x < b.width; x++) *planes++ = b.origin[y * b.row + x * b.pixel + c];
}

void Workspace::run(const Step& step) {
  switch (step.in.opcode) {
    case CONV:
      return conv(step);
    case ATTENTION:
      return attention(step.in);
    default:
      return step.in.mode == NEAREST ? nearest(step.in) : bicubic(step.in);
  }
}

ConvArgs Workspace::conv_args(const Instruction& in, const std::vector<int32_t>& sources) const {
  ConvArgs args{};
  for (int32_t source : sources) {
    const Buffer& b = buffers_[source];
    args.sources[args.source_count++] = {b.origin, b.row, b.pixel, b.channels};
  }
  args.in_channels = in.in_channels;
  args.weight = weights_ + in.weight;
  args.bias = weights_ + in.bias;
  args.groups = int(padded(in.out_channels) / LANES);
  args.kernel = in.kernel;
  args.scale = 1.0f;
  return args;
}

void Workspace::conv(const Step& step) {
  const Instruction& in = step.in;
  ConvArgs args = conv_args(in, step.sources);
  const Buffer& dst = buffers_[in.dst];
  args.dst = dst.origin;
  args.dst_row = dst.row;
  args.dst_pixel = dst.pixel;
  if (in.add != NO_BUFFER) {
    const Buffer& add = buffers_[in.add];
    args.add = add.origin;
    args.add_row = add.row;
    args.add_pixel = add.pixel;
  }
  if (in.activation != NO_ACTIVATION) args.slope = in.activation == RELU ? no_slope_.data() : weights_ + in.slope;
  args.scale = in.scale();
  for (int y = 0; y < dst.height; y++) kernels_.conv_span(args, y, 0, dst.width);
}

void Workspace::attention(const Instruction& in) {
  const Buffer& src = buffers_[in.src];
  const std::vector<double> mean = channel_means(src);
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
  const Buffer& dst = buffers_[in.dst];
  const Buffer* add = in.add == NO_BUFFER ? nullptr : &buffers_[in.add];
  for (int y = 0; y < src.height; y++) {
    for (int x = 0; x < src.width; x++) {
      const float* from = src.origin + y * src.row + x * src.pixel;
      float* to = dst.origin + y * dst.row + x * dst.pixel;
      if (add == nullptr) {
        for (int64_t c = 0; c < src.pixel; c++) to[c] = from[c] * gate[c];
      } else {
        const float* plus = add->origin + y * add->row + x * add->pixel;
        for (int64_t c = 0; c < src.pixel; c++) to[c] = from[c] * gate[c] + plus[c];
      }
    }
  }
}

void Workspace::nearest(const Instruction& in) {
  const Buffer &src = buffers_[in.src], &dst = buffers_[in.dst];
  for (int y = 0; y < dst.height; y++)
    for (int x = 0; x < dst.width; x++)
      std::copy_n(src.origin + y / in.upscale * src.row + x / in.upscale * src.pixel, src.pixel,
                  dst.origin + y * dst.row + x * dst.pixel);
}

void Workspace::bicubic(const Instruction& in) {
  const Buffer &src = buffers_[in.src], &dst = buffers_[in.dst];
  const CubicTaps rows(src.height, in.upscale), columns(src.width, in.upscale);
  for (int y = 0; y < dst.height; y++) {
    for (int x = 0; x < dst.width; x++) {
      float* to = dst.origin + y * dst.row + x * dst.pixel;
      for (int c = 0; c < src.channels; c++) {
        float sum = 0.0f;
        for (int i = 0; i < 4; i++) {
          const float* line = src.origin + rows.index[y * 4 + i] * src.row + c;
          float across = 0.0f;
          for (int j = 0; j < 4; j++) across += columns.weight[x * 4 + j] * line[columns.index[x * 4 + j] * src.pixel];
          sum += rows.weight[y * 4 + i] * across;
        }
        to[c] = sum;
      }
    }
  }
}

// A row of phases is computed in one, two or three spans (the border classes of its columns pick the
// kernel; a reconstruction without classes is one span), then shuffled out.
void Workspace::reconstruct(const Instruction& in, float* pixels) {
  const Buffer& src = buffers_[in.src];
  ConvArgs args = conv_args(in, {in.src});
  args.dst = phase_row_;
  args.dst_pixel = padded(in.out_channels);
  const int64_t kernel_size = args.groups * LANES * int64_t(in.kernel) * in.kernel * in.in_channels;
  const auto span = [&](int y, int row_class, int column_class, int begin, int end) {
    const int variant = row_class * BORDER_CLASSES + column_class;
    args.weight = weights_ + in.weight + variant * kernel_size;
    args.bias = weights_ + in.bias + variant * args.groups * LANES;
    kernels_.conv_span(args, y, begin, end);
  };
  for (int y = 0; y < src.height; y++) {
    const BorderClass row_class = border_class(y, src.height);
    if (in.mode == 0) {
      span(y, INTERIOR, INTERIOR, 0, src.width);
    } else if (src.width == 1) {
      span(y, row_class, ONLY, 0, 1);
    } else {
      span(y, row_class, FIRST, 0, 1);
      span(y, row_class, INTERIOR, 1, src.width - 1);
      span(y, row_class, LAST, src.width - 1, src.width);
    }
    shuffle(in, y, pixels);
  }
}

// Phases of row y, [width][O * s * s], to the s picture rows they make.
void Workspace::shuffle(const Instruction& in, int y, float* pixels) const {
  const int s = in.upscale, height = buffers_[in.src].height, width = buffers_[in.src].width;
  const int64_t stride = padded(in.out_channels);
  const int64_t picture_row = int64_t(s) * width;
  for (int plane = 0; plane < in.out_channels / (s * s); plane++) {
    for (int dy = 0; dy < s; dy++) {
      float* const out = pixels + (plane * int64_t(s) * height + int64_t(s) * y + dy) * picture_row;
      const float* phase = phase_row_ + (plane * s + dy) * s;
      for (int x = 0; x < width; x++, phase += stride)
        for (int dx = 0; dx < s; dx++) out[x * s + dx] = phase[dx];
      if (in.add != NO_BUFFER) {
        const Buffer& add = buffers_[in.add];
        const float* from = add.origin + (int64_t(s) * y + dy) * add.row + plane;
        for (int64_t x = 0; x < picture_row; x++) out[x] += from[x * add.pixel];
      }
    }
  }
}

// Rows are summed in float, their sums in double.
std::vector<double> Workspace::channel_means(const Buffer& b) const {
  std::vector<double> total(b.channels, 0.0);
  std::vector<float> row(b.channels);
  for (int y = 0; y < b.height; y++) {
    std::fill(row.begin(), row.end(), 0.0f);
    for (int x = 0; x < b.width; x++) {
      const float* pixel = b.origin + y * b.row + x * b.pixel;
      for (int c = 0; c < b.channels; c++) row[c] += pixel[c];
    }
    for (int c = 0; c < b.channels; c++) total[c] += row[c];
  }
  for (double& value : total) value /= double(b.height) * b.width;
  return total;
}

float Workspace::predict(const Instruction& in) const {
  const std::vector<double> mean = channel_means(buffers_[in.src]);
  double score = weights_[in.bias];
  for (int c = 0; c < in.in_channels; c++) score += mean[c] * weights_[in.weight + c];
  return std::tanh(float(score));
}

}  // namespace ape::cpu
