// The module ape_kernels._C, which only exports functions. Pointers are passed as integers. Python owns all memory and
// has checked shapes, types and devices. Calls run without the interpreter lock. Arguments are passed by keyword only,
// because nothing would notice two addresses that are swapped.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/image.h"
#include "cpu/isa.h"
#include "cpu/patches.h"
#include "cpu/predict.h"
#include "cpu/statistics.h"
#include "cpu/worker.h"
#ifdef APE_WITH_CUDA
#include "cuda/launch.h"
#include "cuda/patches.h"
#include "cuda/request.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Exports f(SplitArgs, extra...). Its arguments are the members of SplitArgs, then the extra ones, named by `names`.
template <class... Extra, class F, class... Names>
void def_split(py::module_& m, const char* name, F f, Names... names) {
  const auto call = [f](uintptr_t image, uintptr_t patches, uintptr_t row_start, uintptr_t column_start, int64_t batch,
                        int64_t channels, int64_t height, int64_t width, int64_t patch_rows, int64_t patch_columns,
                        int64_t patch_height, int64_t patch_width, Extra... extra) {
    f(ape::SplitArgs{pointer<const void>(image), pointer<void>(patches), pointer<const int32_t>(row_start),
                     pointer<const int32_t>(column_start), batch, channels, height, width, patch_rows, patch_columns,
                     patch_height, patch_width},
      extra...);
  };
  m.def(name, call, py::kw_only(), "image"_a, "patches"_a, "row_start"_a, "column_start"_a, "batch"_a, "channels"_a,
        "height"_a, "width"_a, "patch_rows"_a, "patch_columns"_a, "patch_height"_a, "patch_width"_a, names...,
        Unlocked());
}

// The same for f(MergeArgs, extra...).
template <class... Extra, class F, class... Names>
void def_merge(py::module_& m, const char* name, F f, Names... names) {
  const auto call = [f](uintptr_t patches, uintptr_t image, uintptr_t row_index, uintptr_t row_weight,
                        uintptr_t column_index, uintptr_t column_weight, int64_t batch, int64_t channels,
                        int64_t height, int64_t width, int64_t patch_rows, int64_t patch_columns, int64_t patch_height,
                        int64_t patch_width, int64_t rows_covering, int64_t columns_covering, Extra... extra) {
    f(ape::MergeArgs{pointer<const void>(patches), pointer<void>(image), pointer<const int32_t>(row_index),
                     pointer<const float>(row_weight), pointer<const int32_t>(column_index),
                     pointer<const float>(column_weight), batch, channels, height, width, patch_rows, patch_columns,
                     patch_height, patch_width, rows_covering, columns_covering},
      extra...);
  };
  m.def(name, call, py::kw_only(), "patches"_a, "image"_a, "row_index"_a, "row_weight"_a, "column_index"_a,
        "column_weight"_a, "batch"_a, "channels"_a, "height"_a, "width"_a, "patch_rows"_a, "patch_columns"_a,
        "patch_height"_a, "patch_width"_a, "rows_covering"_a, "columns_covering"_a, names..., Unlocked());
}

// cpu/worker.h has the shapes of the pointers. Throws std::invalid_argument (ValueError) for a malformed table.
void cpu_run_patches(uintptr_t table, int64_t table_rows, uintptr_t weights, int64_t weight_count, uintptr_t patches,
                     uintptr_t exit_at, uintptr_t sr, uintptr_t exit_index, uintptr_t capacity, int64_t count,
                     int height, int width, float boundary, int threads) {
  const ape::cpu::Program program(pointer<const int32_t>(table), table_rows, weight_count);
  ape::cpu::run_patches(program, {pointer<const float>(weights), pointer<const float>(patches),
                                  pointer<const int64_t>(exit_at), pointer<float>(sr), pointer<int64_t>(exit_index),
                                  pointer<float>(capacity), count, height, width, boundary, threads});
}

void cpu_run_stage(uintptr_t table, int64_t table_rows, uintptr_t weights, int64_t weight_count, int stage,
                   uintptr_t features, uintptr_t active, uintptr_t exit_at, uintptr_t out, uintptr_t capacity,
                   uintptr_t leaves, int64_t count, int height, int width, float boundary, int threads) {
  const ape::cpu::Program program(pointer<const int32_t>(table), table_rows, weight_count);
  ape::cpu::run_stage(program, stage,
                      {pointer<const float>(weights), pointer<const float>(features), pointer<const int64_t>(active),
                       pointer<const int64_t>(exit_at), pointer<float>(out), pointer<float>(capacity),
                       pointer<bool>(leaves), count, height, width, boundary, threads});
}

void cpu_run_image(uintptr_t table, int64_t table_rows, uintptr_t weights, int64_t weight_count, uintptr_t sharing,
                   uintptr_t folded, uintptr_t exit_at, uintptr_t sr, int64_t count, int height, int width, int cell,
                   int ring, uintptr_t colours, int colour_channels, int scale, const ape::cpu::Levels& levels,
                   uintptr_t watch, ape::cpu::Kept* kept, int threads) {
  const ape::cpu::Program program(pointer<const int32_t>(table), table_rows, weight_count);
  ape::cpu::run_image(
      program, {pointer<const float>(weights), pointer<const int32_t>(sharing), pointer<const float>(folded),
                pointer<const int64_t>(exit_at), pointer<float>(sr), count, height, width, cell, ring,
                pointer<const float>(colours), colour_channels, scale, levels, pointer<int64_t>(watch), threads, kept});
}

int64_t cpu_kept_bytes(uintptr_t table, int64_t table_rows, uintptr_t, int64_t weight_count, uintptr_t sharing,
                       int height, int width) {
  ape::cpu::ImageArgs args{};
  args.sharing = pointer<const int32_t>(sharing);
  args.count = args.cell = args.scale = args.threads = 1;
  args.height = height;
  args.width = width;
  return ape::cpu::kept_bytes({pointer<const int32_t>(table), table_rows, weight_count}, args);
}

int cpu_image_tile(uintptr_t table, int64_t table_rows, uintptr_t, int64_t weight_count) {
  return ape::cpu::image_tile({pointer<const int32_t>(table), table_rows, weight_count});
}

// Shapes of the pointers: cpu/statistics.h.
void cpu_statistics(uintptr_t image, uintptr_t out, int64_t batch, int64_t channels, int64_t height, int64_t width,
                    int64_t cell, float value_range, int threads) {
  ape::cpu::statistics(
      {pointer<const float>(image), pointer<float>(out), batch, channels, height, width, cell, value_range, threads});
}

// Shapes of the pointers: cpu/predict.h.
void cpu_predict(uintptr_t statistics, uintptr_t mean, uintptr_t deviation, uintptr_t low, uintptr_t high,
                 uintptr_t precision, uintptr_t leverage, uintptr_t quadratic, uintptr_t kinds, uintptr_t needed,
                 uintptr_t fidelity, uintptr_t level, int64_t batch, int64_t rows, int64_t columns, int candidates,
                 int kind_count, int levels, int parts, float first, float step, float unlike, int threads) {
  ape::cpu::predict({pointer<const float>(statistics),
                     pointer<const float>(mean),
                     pointer<const float>(deviation),
                     pointer<const float>(low),
                     pointer<const float>(high),
                     pointer<const float>(precision),
                     pointer<const float>(leverage),
                     pointer<const float>(quadratic),
                     pointer<const float>(kinds),
                     pointer<const float>(needed),
                     pointer<float>(fidelity),
                     pointer<float>(level),
                     batch,
                     rows,
                     columns,
                     candidates,
                     kind_count,
                     levels,
                     parts,
                     first,
                     step,
                     unlike,
                     threads});
}

// cpu/levels.h has the shapes of the pointers.
ape::cpu::Levels cpu_levels(uintptr_t image, int64_t width, int64_t channels, float to_value, uintptr_t picture,
                            int64_t row, int64_t pixel, int rows, int columns, int shown, float to_level, int bytes) {
  return {pointer<const void>(image),
          width,
          channels,
          to_value,
          pointer<void>(picture),
          row,
          pixel,
          rows,
          columns,
          shown,
          to_level,
          bytes};
}

void export_cpu(py::module_& m) {
  py::class_<ape::cpu::Levels>(m, "CpuLevels")
      .def(py::init(&cpu_levels), py::kw_only(), "image"_a, "width"_a, "channels"_a, "to_value"_a, "picture"_a, "row"_a,
           "pixel"_a, "rows"_a, "columns"_a, "shown"_a, "to_level"_a, "bytes"_a);
  py::class_<ape::cpu::Kept>(m, "CpuKept", "What an image leaves for the next: cpu/kept.h.")
      .def(py::init<>())
      .def_property_readonly("renewed", &ape::cpu::Kept::renewed);
  def_split<int>(m, "cpu_split", ape::cpu_split, "threads"_a);
  def_merge<int>(m, "cpu_merge", ape::cpu_merge, "threads"_a);
  m.def("cpu_isas", &ape::cpu::isas, "Instruction sets this build and this CPU can run, best first.");
  m.def("cpu_isa", &ape::cpu::isa, "The instruction set in use (APE_CPU_ISA, else the best).");
  m.def("cpu_run_patches", &cpu_run_patches, py::kw_only(), "table"_a, "table_rows"_a, "weights"_a, "weight_count"_a,
        "patches"_a, "exit_at"_a, "sr"_a, "exit_index"_a, "capacity"_a, "count"_a, "height"_a, "width"_a, "boundary"_a,
        "threads"_a, Unlocked());
  m.def("cpu_run_stage", &cpu_run_stage, py::kw_only(), "table"_a, "table_rows"_a, "weights"_a, "weight_count"_a,
        "stage"_a, "features"_a, "active"_a, "exit_at"_a, "out"_a, "capacity"_a, "leaves"_a, "count"_a, "height"_a,
        "width"_a, "boundary"_a, "threads"_a, Unlocked());
  m.def("cpu_run_image", &cpu_run_image, py::kw_only(), "table"_a, "table_rows"_a, "weights"_a, "weight_count"_a,
        "sharing"_a, "folded"_a, "exit_at"_a, "sr"_a, "count"_a, "height"_a, "width"_a, "cell"_a, "ring"_a, "colours"_a,
        "colour_channels"_a, "scale"_a, "levels"_a = ape::cpu::Levels{}, "watch"_a = 0, "kept"_a = py::none(),
        "threads"_a, Unlocked());
  m.def("cpu_kept_bytes", &cpu_kept_bytes, py::kw_only(), "table"_a, "table_rows"_a, "weights"_a, "weight_count"_a,
        "sharing"_a, "height"_a, "width"_a);
  m.def("cpu_image_tile", &cpu_image_tile, py::kw_only(), "table"_a, "table_rows"_a, "weights"_a, "weight_count"_a);
  m.def("cpu_statistics", &cpu_statistics, py::kw_only(), "image"_a, "out"_a, "batch"_a, "channels"_a, "height"_a,
        "width"_a, "cell"_a, "value_range"_a, "threads"_a, Unlocked());
  m.def("cpu_predict", &cpu_predict, py::kw_only(), "statistics"_a, "mean"_a, "deviation"_a, "low"_a, "high"_a,
        "precision"_a, "leverage"_a, "quadratic"_a, "kinds"_a, "needed"_a, "fidelity"_a, "level"_a, "batch"_a, "rows"_a,
        "columns"_a, "candidates"_a, "kind_count"_a, "levels"_a, "parts"_a, "first"_a, "step"_a, "unlike"_a,
        "threads"_a, Unlocked());
}

#ifdef APE_WITH_CUDA
void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Returns the arena's elements per low-resolution pixel, the resolution of the input's buffer, and the number of thread
// blocks that run at once.
py::tuple cuda_plan(uintptr_t table, int64_t table_rows, int64_t weight_count, int element, int stage) {
  const ape::cuda::Plan plan = ape::cuda::plan_of(table, table_rows, weight_count, element);
  int blocks = 0;
  check(ape::cuda::worker_blocks(element, &blocks));
  return py::make_tuple(plan.scratch_elements, plan.input_buffer(stage).resolution(), blocks);
}

// cuda/args.h has the shapes of the pointers. Throws std::invalid_argument (ValueError) for a malformed table.
void cuda_run_worker(uintptr_t table, int64_t table_rows, int64_t weight_count, int element, int stage,
                     uintptr_t weights, uintptr_t input, int64_t input_rows, uintptr_t active, uintptr_t exit_at,
                     uintptr_t output, uintptr_t exit_index, uintptr_t capacity, uintptr_t leaves, uintptr_t scratch,
                     uintptr_t queue, int blocks, int64_t count, int height, int width, float boundary,
                     uintptr_t stream) {
  const ape::cuda::Request request{table,      table_rows, weights, weight_count, element,    stage,    input,
                                   input_rows, active,     exit_at, output,       exit_index, capacity, leaves,
                                   scratch,    queue,      blocks,  count,        height,     width,    boundary};
  const ape::cuda::Plan plan = ape::cuda::plan_of(table, table_rows, weight_count, element);
  check(ape::cuda::launch_worker(ape::cuda::args_of(request, plan), element, blocks, pointer<CUstream_st>(stream)));
}

// cuda/image.h has the shapes of the pointers. Throws std::invalid_argument (ValueError) for a malformed table.
void cuda_run_image(uintptr_t table, int64_t table_rows, uintptr_t weights, int64_t weight_count, int element,
                    uintptr_t sharing, uintptr_t maps, uintptr_t exit_at, uintptr_t output, int64_t images, int height,
                    int width, int cell, int cell_rows, int cell_columns, int ring, uintptr_t stream) {
  check(ape::cuda::launch_images({table, table_rows, weights, weight_count, element, sharing, maps, exit_at, output,
                                  images, height, width, cell, cell_rows, cell_columns, ring},
                                 pointer<CUstream_st>(stream)));
}

void export_cuda(py::module_& m) {
  m.def("cuda_plan", &cuda_plan, py::kw_only(), "table"_a, "table_rows"_a, "weight_count"_a, "element"_a, "stage"_a);
  m.def("cuda_run_worker", &cuda_run_worker, py::kw_only(), "table"_a, "table_rows"_a, "weight_count"_a, "element"_a,
        "stage"_a, "weights"_a, "input"_a, "input_rows"_a, "active"_a, "exit_at"_a, "output"_a, "exit_index"_a,
        "capacity"_a, "leaves"_a, "scratch"_a, "queue"_a, "blocks"_a, "count"_a, "height"_a, "width"_a, "boundary"_a,
        "stream"_a, Unlocked());
  m.def("cuda_run_image", &cuda_run_image, py::kw_only(), "table"_a, "table_rows"_a, "weights"_a, "weight_count"_a,
        "element"_a, "sharing"_a, "maps"_a, "exit_at"_a, "output"_a, "images"_a, "height"_a, "width"_a, "cell"_a,
        "cell_rows"_a, "cell_columns"_a, "ring"_a, "stream"_a, Unlocked());
  def_split<int, uintptr_t>(
      m, "cuda_split",
      [](const ape::SplitArgs& args, int dtype, uintptr_t stream) {
        check(ape::launch_split(args, dtype, pointer<CUstream_st>(stream)));
      },
      "dtype"_a, "stream"_a);
  def_merge<int, uintptr_t>(
      m, "cuda_merge",
      [](const ape::MergeArgs& args, int dtype, uintptr_t stream) {
        check(ape::launch_merge(args, dtype, pointer<CUstream_st>(stream)));
      },
      "dtype"_a, "stream"_a);
}
#endif

py::dict build_info() {
  py::dict info;
#ifdef __clang__
  info["compiler"] = __VERSION__;  // contains the name of clang
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
#ifdef APE_WITH_CUDA
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = APE_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
#ifdef APE_DEBUG
  info["debug"] = true;
#else
  info["debug"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info, "What this module was built with: compiler, cuda, cuda_architectures, debug.");
  export_cpu(m);
#ifdef APE_WITH_CUDA
  export_cuda(m);
#endif
}
