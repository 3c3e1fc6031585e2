#include "worker.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "workspace.h"

namespace ape::cpu {
namespace {

// One workspace per worker.
std::vector<Workspace> workspaces(const Program& program, const float* weights, int64_t count, int threads, int height,
                                  int width, bool handed) {
  const Kernels& chosen = kernels();
  std::vector<Workspace> all;
  for (int64_t i = 0; i < std::min<int64_t>(threads, count); i++)
    all.emplace_back(program, chosen, weights, height, width, handed);
  return all;
}

struct Decision {
  bool leaves;
  float capacity;  // NaN until a stage with an exit has run
};

// Runs stage `number`, whose features are in its source buffer.
Decision run_steps(const Program& program, int64_t number, Workspace& space, float boundary, const int64_t* exit_at,
                   float capacity) {
  const Stage& stage = program.stages[number];
  space.run(stage.steps.data(), int64_t(stage.steps.size()));
  bool leaves = false;
  if (stage.has_exit) {
    const float prediction = space.predict(stage);
    capacity = 1.0f - prediction;
    leaves = prediction >= boundary;
  }
  if (exit_at != nullptr) leaves = *exit_at <= number;
  return {leaves || number == int64_t(program.stages.size()) - 1, capacity};
}

constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();

}  // namespace

void run_patches(const Program& program, const RunArgs& args) {
  const int64_t pixels = int64_t(args.height) * args.width;
  const int64_t patch_size = program.buffers[0].channels * pixels;
  const int64_t sr_size =
      int64_t(program.reconstruct().picture_channels()) * program.upscale() * program.upscale() * pixels;
  auto spaces = workspaces(program, args.weights, args.count, args.threads, args.height, args.width, false);
  parallel(args.threads, args.count, [&](int worker, int64_t patch) {
    Workspace& space = spaces[worker];
    const int64_t* exit_at = args.exit_at ? args.exit_at + patch : nullptr;
    space.maps().place(0, 0, args.height, args.width);
    space.load(0, {args.patches + patch * patch_size, pixels, args.width}, {0, 0, args.height, args.width});
    space.run(program.head.data(), int64_t(program.head.size()));
    Decision decision{false, kUnknown};
    int64_t stage = -1;
    while (!decision.leaves) decision = run_steps(program, ++stage, space, args.boundary, exit_at, decision.capacity);
    space.run(program.tail.data(), int64_t(program.tail.size()) - 1);
    const int upscale = program.upscale(), at = program.buffers[program.reconstruct().src].resolution;
    space.reconstruct(program.tail.back(), {0, 0, args.height * at, args.width * at},
                      {args.sr + patch * sr_size, pixels * upscale * upscale, int64_t(args.width) * upscale});
    args.exit_index[patch] = stage;
    args.capacity[patch] = decision.capacity;
  });
}

void run_stage(const Program& program, int number, const StageArgs& args) {
  program.stage(number);  // throws for a stage that does not exist
  const Stage& stage = program.stages[number];
  const BufferSpec& spec = program.buffers[stage.src];
  const int64_t size = int64_t(spec.channels) * args.height * args.width;
  auto spaces = workspaces(program, args.weights, args.count, args.threads, args.height / spec.resolution,
                           args.width / spec.resolution, true);
  parallel(args.threads, args.count, [&](int worker, int64_t i) {
    const int64_t row = args.active[i];
    Workspace& space = spaces[worker];
    space.maps().place(0, 0, args.height / spec.resolution, args.width / spec.resolution);
    space.load(stage.src, {args.features + row * size, int64_t(args.height) * args.width, args.width},
               {0, 0, args.height, args.width});
    const Decision decision =
        run_steps(program, number, space, args.boundary, args.exit_at ? args.exit_at + row : nullptr, kUnknown);
    space.maps().save(stage.dst, args.out + i * size);
    args.capacity[i] = decision.capacity;
    args.leaves[i] = decision.leaves;
  });
}

}  // namespace ape::cpu
