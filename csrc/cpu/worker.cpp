#include "worker.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace ape::cpu {
namespace {

// One patch-sized feature map: [height + 2 * border][width + 2 * border][channels padded to LANES].
// The border and the padding channels are zero and stay zero.
struct Buffer {
  float* origin;  // pixel (0, 0), inside the border
  int64_t row, pixel;
};

// What one worker owns: its buffers and a row of output phases. About 0.7 MB a 64-channel buffer of
// 48x48 pixels, whatever the image size.
class Workspace {
 public:
  Workspace(const Program& program, int height, int width) : height_(height), width_(width) {
    int64_t total = 0;
    std::vector<int64_t> starts;
    const int64_t row_pixels = width + 2 * program.border;
    for (int channels : program.channels) {
      starts.push_back(total);
      total += (height + 2 * program.border) * row_pixels * padded(channels);
    }
    const int64_t phases = padded(program.tail.back().out_channels);
    memory_ = static_cast<float*>(::operator new((total + width * phases) * sizeof(float), std::align_val_t(64)));
    std::fill_n(memory_, total, 0.0f);
    for (size_t i = 0; i < starts.size(); i++) {
      const int64_t pixel = padded(program.channels[i]);
      const int64_t row = row_pixels * pixel;
      buffers_.push_back({memory_ + starts[i] + program.border * (row + pixel), row, pixel});
    }
    phase_row_ = memory_ + total;
  }
  Workspace(Workspace&& other) noexcept { *this = std::move(other); }
  Workspace& operator=(Workspace&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(buffers_, other.buffers_);
    std::swap(phase_row_, other.phase_row_);
    height_ = other.height_;
    width_ = other.width_;
    return *this;
  }
  ~Workspace() { ::operator delete(memory_, std::align_val_t(64)); }

  // planes: [channels, height, width]
  void load(int buffer, const float* planes, int channels) {
    const Buffer& b = buffers_[buffer];
    for (int c = 0; c < channels; c++)
      for (int y = 0; y < height_; y++)
        for (int x = 0; x < width_; x++) b.origin[y * b.row + x * b.pixel + c] = *planes++;
  }

  void save(int buffer, float* planes, int channels) const {
    const Buffer& b = buffers_[buffer];
    for (int c = 0; c < channels; c++)
      for (int y = 0; y < height_; y++)
        for (int x = 0; x < width_; x++) *planes++ = b.origin[y * b.row + x * b.pixel + c];
  }

  void conv(const Kernels& kernels, const Instruction& in, const float* weights) {
    ConvArgs args = source(in, weights);
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
    args.relu = in.activation == RELU;
    args.scale = in.scale();
    for (int y = 0; y < height_; y++) kernels.conv_span(args, y, 0, width_);
  }

  // pixels: [out_channels / s^2, s * height, s * width]. A row of phases is computed in one, two or
  // three spans (border class of the column picks the kernel), then shuffled out.
  void reconstruct(const Kernels& kernels, const Instruction& in, const float* weights, float* pixels) {
    ConvArgs args = source(in, weights);
    args.dst = phase_row_;
    args.dst_pixel = padded(in.out_channels);
    args.scale = 1.0f;
    const int64_t kernel_size = args.groups * LANES * int64_t(in.kernel) * in.kernel * in.in_channels;
    const auto span = [&](int y, int row_class, int column_class, int begin, int end) {
      const int variant = row_class * BORDER_CLASSES + column_class;
      args.weight = weights + in.weight + variant * kernel_size;
      args.bias = weights + in.bias + variant * args.groups * LANES;
      kernels.conv_span(args, y, begin, end);
    };
    for (int y = 0; y < height_; y++) {
      const int row_class = border_class(y, height_);
      if (width_ == 1) {
        span(y, row_class, ONLY, 0, 1);
      } else {
        span(y, row_class, FIRST, 0, 1);
        span(y, row_class, INTERIOR, 1, width_ - 1);
        span(y, row_class, LAST, width_ - 1, width_);
      }
      shuffle(in, y, pixels);
    }
  }

  // tanh(weight . mean + bias); rows are summed in float, their sums in double.
  float predict(const Instruction& in, const float* weights) const {
    const Buffer& b = buffers_[in.src];
    std::vector<double> total(in.in_channels, 0.0);
    std::vector<float> row(in.in_channels);
    for (int y = 0; y < height_; y++) {
      std::fill(row.begin(), row.end(), 0.0f);
      for (int x = 0; x < width_; x++) {
        const float* pixel = b.origin + y * b.row + x * b.pixel;
        for (int c = 0; c < in.in_channels; c++) row[c] += pixel[c];
      }
      for (int c = 0; c < in.in_channels; c++) total[c] += row[c];
    }
    double score = weights[in.bias];
    const double pixels = double(height_) * width_;
    for (int c = 0; c < in.in_channels; c++) score += total[c] / pixels * weights[in.weight + c];
    return std::tanh(float(score));
  }

 private:
  static int border_class(int position, int size) {
    if (size == 1) return ONLY;
    return position == 0 ? FIRST : position == size - 1 ? LAST : INTERIOR;
  }

  ConvArgs source(const Instruction& in, const float* weights) const {
    const Buffer& src = buffers_[in.src];
    ConvArgs args{};
    args.src = src.origin;
    args.src_row = src.row;
    args.src_pixel = src.pixel;
    args.weight = weights + in.weight;
    args.bias = weights + in.bias;
    args.in_channels = in.in_channels;
    args.groups = int(padded(in.out_channels) / LANES);
    args.kernel = in.kernel;
    return args;
  }

  // Phases of row y, [width][O * s * s], to the s picture rows they make.
  void shuffle(const Instruction& in, int y, float* pixels) const {
    const int s = in.upscale;
    const int64_t stride = padded(in.out_channels);
    const int64_t picture_row = int64_t(s) * width_;
    for (int plane = 0; plane < in.out_channels / (s * s); plane++)
      for (int dy = 0; dy < s; dy++) {
        float* out = pixels + (plane * int64_t(s) * height_ + int64_t(s) * y + dy) * picture_row;
        const float* phase = phase_row_ + (plane * s + dy) * s;
        for (int x = 0; x < width_; x++, phase += stride)
          for (int dx = 0; dx < s; dx++) *out++ = phase[dx];
      }
  }

  float* memory_ = nullptr;
  std::vector<Buffer> buffers_;
  float* phase_row_ = nullptr;
  int height_ = 0, width_ = 0;
};

std::vector<Workspace> workspaces(const Program& program, int64_t count, int threads, int height, int width) {
  std::vector<Workspace> all;
  for (int64_t i = 0; i < std::min<int64_t>(threads, count); i++) all.emplace_back(program, height, width);
  return all;
}

struct Decision {
  bool leaves;
  float capacity;
};

// Run a stage whose features stand in its source buffer. `capacity`: what is known so far.
Decision run_steps(const Stage& stage, bool last, Workspace& space, const Kernels& kernels, const float* weights,
                   float boundary, int64_t number, const int64_t* exit_at, float capacity) {
  for (const Instruction& in : stage.steps) space.conv(kernels, in, weights);
  bool leaves = false;
  if (stage.has_exit) {
    const float prediction = space.predict(stage.exit, weights);
    capacity = 1.0f - prediction;
    leaves = prediction >= boundary;
  }
  if (exit_at != nullptr) leaves = *exit_at <= number;
  return {leaves || last, capacity};
}

}  // namespace

void run_patches(const Program& program, const RunArgs& args) {
  const Kernels& kernel_set = kernels();
  const Instruction& last = program.tail.back();
  const int64_t patch_size = int64_t(program.channels[0]) * args.height * args.width;
  const int64_t sr_size = int64_t(last.out_channels) * args.height * args.width;
  const int64_t stage_count = int64_t(program.stages.size());
  std::vector<Workspace> spaces = workspaces(program, args.count, args.threads, args.height, args.width);
  parallel(args.threads, args.count, [&](int worker, int64_t patch) {
    Workspace& space = spaces[worker];
    space.load(0, args.patches + patch * patch_size, program.channels[0]);
    for (const Instruction& in : program.head) space.conv(kernel_set, in, args.weights);
    Decision decision{false, std::numeric_limits<float>::quiet_NaN()};
    int64_t stage = 0;
    for (;; stage++) {
      decision = run_steps(program.stages[stage], stage == stage_count - 1, space, kernel_set, args.weights,
                           args.boundary, stage, args.exit_at ? args.exit_at + patch : nullptr, decision.capacity);
      if (decision.leaves) break;
    }
    for (const Instruction& in : program.tail)
      if (in.opcode == CONV) space.conv(kernel_set, in, args.weights);
    space.reconstruct(kernel_set, last, args.weights, args.sr + patch * sr_size);
    args.exit_index[patch] = stage;
    args.capacity[patch] = decision.capacity;
  });
}

void run_stage(const Program& program, int number, const StageArgs& args) {
  const Kernels& kernel_set = kernels();
  const Stage& stage = program.stages[number];
  const bool last = number == int(program.stages.size()) - 1;
  const int channels = program.channels[stage.src];
  const int64_t size = int64_t(channels) * args.height * args.width;
  std::vector<Workspace> spaces = workspaces(program, args.count, args.threads, args.height, args.width);
  parallel(args.threads, args.count, [&](int worker, int64_t i) {
    const int64_t row = args.active[i];
    Workspace& space = spaces[worker];
    space.load(stage.src, args.features + row * size, channels);
    const Decision decision =
        run_steps(stage, last, space, kernel_set, args.weights, args.boundary, number,
                  args.exit_at ? args.exit_at + row : nullptr, std::numeric_limits<float>::quiet_NaN());
    space.save(stage.dst, args.out + i * size, channels);
    args.capacity[i] = decision.capacity;
    args.leaves[i] = decision.leaves;
  });
}

}  // namespace ape::cpu
