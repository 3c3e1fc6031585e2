// The kernels run on the host, for tests: a shared library of C functions, compiled by the tests themselves.
#include <cstdio>

#include "image.h"
#include "window.h"

namespace ape::cuda {
namespace {

// Every array the kernel is given, in its full size; its own arena for each block.
std::vector<Region> regions(const Request& request, const Plan& plan, const WorkerArgs& args) {
  std::vector<Region> all;
  const auto add = [&](const char* name, const void* begin, int64_t bytes, int owner = -1) {
    if (begin) all.push_back({name, static_cast<const char*>(begin), static_cast<size_t>(bytes), owner});
  };
  const auto feature_bytes = [&](const Instruction& buffer) {
    return int64_t(buffer.in_channels) * buffer.resolution() * buffer.resolution() * args.height * args.width * 4;
  };
  const int64_t size = bytes_of(request.element);
  const int64_t arena = args.scratch_elements * args.height * args.width * size;
  for (int i = 0; i < request.blocks; ++i) add("scratch", static_cast<const char*>(args.scratch) + i * arena, arena, i);
  add("weights", args.weights, request.weight_count * size);
  add("input", args.input, args.input_rows * feature_bytes(plan.input_buffer(args.stage)));
  add("active", args.active, args.count * 8);
  add("exit_at", args.exit_at, args.input_rows * 8);
  if (args.stage == kWhole) {
    Instruction picture = plan.reconstruct();
    picture.in_channels = picture.picture_channels();
    picture.upscale *= plan.rows[picture.src].resolution();
    add("output", args.output, args.count * feature_bytes(picture));
  } else {
    add("output", args.output, args.count * feature_bytes(plan.rows[plan.rows[args.first_row].dst]));
  }
  add("exit_index", args.exit_index, args.count * 8);
  add("capacity", args.capacity, args.count * 4);
  add("leaves", args.leaves, args.count);
  return all;
}

template <class E, class Shapes>
void execute(const Request& request, const Plan& plan, Run& run) {
  const WorkerArgs args = args_of(request, plan);
  Grid grid(run, regions(request, plan, args), int(request.blocks), Worker<E, Shapes>::kSharedBytes, [&](Warp& w) {
    Worker<E, Shapes> worker(w, args);
    worker.run();
  });
  grid.execute();
}

std::vector<Region> regions(const ImageRequest& request, const ImageArgs& args) {
  const Plan plan = plan_of(request.table, request.table_rows, request.weight_count, int(request.element));
  std::vector<Region> all;
  const auto add = [&](const char* name, const void* begin, int64_t bytes) {
    if (begin) all.push_back({name, static_cast<const char*>(begin), static_cast<size_t>(bytes)});
    all.back().between = begin == args.maps || begin == args.output;
  };
  const int64_t pixels = request.images * request.height * request.width, size = bytes_of(request.element);
  const Instruction& last = plan.reconstruct();
  const int64_t factor = int64_t(last.upscale) * plan.rows[last.src].resolution();
  add("maps", args.maps, args.map_elements * pixels * size);
  add("weights", args.weights, request.weight_count * size);
  add("exit_at", args.exit_at, request.images * args.cell_rows * args.cell_columns * 8);
  add("output", args.output, pixels * last.picture_channels() * factor * factor * 4);
  return all;
}

template <class E, class Shapes>
void execute(const ImageRequest& request, const ImageLaunch& launch, Run& run) {
  Grid grid(run, regions(request, launch.args), int(launch.blocks), ImageWorker<E, Shapes>::kSharedBytes, [&](Warp& w) {
    ImageWorker<E, Shapes> worker(w, launch.args);
    if constexpr (std::is_same_v<E, Half>)
      if (launch.args.fused) return worker.run_pair();
    worker.run();
  });
  grid.execute();
}

#ifdef APE_LARGEST_SHAPES_ALONE
constexpr bool kLargestShapesAlone = true;  // a third of the compiler's work
#else
constexpr bool kLargestShapesAlone = false;
#endif

template <class R, class What>
void execute_on(int shared_kb, const R& request, const What& what, Run& run) {
  if (request.element != ape::kFloat16) return execute<Float, Shapes99>(request, what, run);
  if (shared_kb == 227) return execute<Half, Shapes227>(request, what, run);
  if constexpr (!kLargestShapesAlone) {
    if (shared_kb == 163) return execute<Half, Shapes163>(request, what, run);
    if (shared_kb == 99) return execute<Half, Shapes99>(request, what, run);
  }
  throw std::invalid_argument("shared_kb: not built for " + std::to_string(shared_kb));
}

void put(char* to, int64_t size, const std::string& text) { std::snprintf(to, size, "%s", text.c_str()); }

int told(const Run& run, char* sites, char* message, int64_t size) {
  std::string all;
  for (const std::string& site : run.sites) all += site + "\n";
  put(sites, size, all);
  put(message, size, run.first);
  return run.errors;
}

}  // namespace
}  // namespace ape::cuda

using namespace ape::cuda;

// result: scratch elements per pixel, resolution of the input's buffer. Returns 1 with a message for a malformed table.
extern "C" int ape_host_plan(uintptr_t table, int64_t table_rows, int64_t weight_count, int64_t element, int64_t stage,
                             int64_t result[2], char* message, int64_t size) {
  try {
    const Plan plan = plan_of(table, table_rows, weight_count, element);
    result[0] = plan.scratch_elements;
    result[1] = plan.input_buffer(int(stage)).resolution();
    return 0;
  } catch (const std::invalid_argument& error) {
    put(message, size, error.what());
    return 1;
  }
}

// As `shared_bytes_of` and `image_shared_bytes_of`.
extern "C" int64_t ape_host_shared_bytes(int half, int arch) { return shared_bytes_of(half, arch); }
extern "C" int64_t ape_host_image_shared_bytes(int half, int arch) { return image_shared_bytes_of(half, arch); }

// shared_kb: as on a device with so much shared memory a block: 227, 163 or 99. seed, chance, fault: see Run. Returns
// the number of errors the checks found, the first in `message`, or -1 with a message for a request that is refused;
// `sites` gets the barriers and waits that were reached, a line each.
extern "C" int ape_host_run(const Request* request, int shared_kb, unsigned seed, int chance, const char* fault,
                            char* sites, char* message, int64_t size) {
  const Plan plan = plan_of(request->table, request->table_rows, request->weight_count, request->element);
  Run run{seed, chance, fault, 0, {}, {}};
  try {
    check(*request, plan);
    execute_on(shared_kb, *request, plan, run);
  } catch (const std::invalid_argument& error) {
    put(message, size, error.what());
    return -1;
  }
  return told(run, sites, message, size);
}

// The same for whole images, with as many errors as all launches have.
extern "C" int ape_host_run_image(const ImageRequest* request, int64_t blocks, int shared_kb, unsigned seed, int chance,
                                  const char* fault, char* sites, char* message, int64_t size) {
  Run run{seed, chance, fault, 0, {}, {}};
  try {
    const ImageDevice device{[&](int channels) { return image_fuses(channels, shared_kb); }, blocks};
    for (const ImageLaunch& launch : image_launches(*request, device)) execute_on(shared_kb, *request, launch, run);
  } catch (const std::invalid_argument& error) {
    put(message, size, error.what());
    return -1;
  }
  return told(run, sites, message, size);
}
