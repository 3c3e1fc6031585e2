"""The workers' queue (csrc/cpu/parallel.h) and whole programs run by several workers, under ThreadSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from support import assert_pictures_close, spread_network, test_patches

from ape_kernels import APEForward

QUEUE = r"""
#include "cpu/parallel.h"
#include <cstdio>

// Every task once, each by a numbered worker whose scratch is its own; results are read when all is done.
int main() {
  for (int threads : {1, 2, 4, 7}) {
    for (int tasks : {0, 1, 3, 1000}) {
      std::vector<int> done(tasks, 0), scratch(threads, 0);
      ape::parallel(threads, tasks, [&](int worker, int64_t task) {
        scratch[worker]++;
        done[task]++;
      });
      int total = 0;
      for (int count : scratch) total += count;
      for (int count : done)
        if (count != 1) return std::printf("a task was done %d times\n", count), 1;
      if (total != tasks) return std::printf("%d of %d tasks\n", total, tasks), 1;
    }
    try {
      ape::parallel(threads, 1000, [](int, int64_t task) {
        if (task % 100 == 7) throw task;
      });
      return std::printf("an exception was lost\n"), 1;
    } catch (int64_t task) {
    }
  }
}
"""


WORKERS = r"""
#include "cpu/isa.h"
#include "cpu/worker.h"
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

// The race is among workers, whichever kernels they call: those of one instruction set are enough to compile.
const ape::cpu::Kernels& ape::cpu::kernels() { return portable_kernels; }

template <class T>
std::vector<T> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

constexpr int64_t COUNT = 9, SIDE = 8, SR = 3 * 4 * SIDE * SIDE, FEATURES = 16 * SIDE * SIDE;

// Whole patches and a stage, by any number of workers: the same, bit by bit, as by one.
int main(int, char** argv) {
  const std::string folder = argv[1];
  const auto table = read<int32_t>(folder + "/table");
  const auto weights = read<float>(folder + "/weights"), patches = read<float>(folder + "/patches");
  const ape::cpu::Program program(table.data(), table.size() / 16, weights.size());
  std::vector<int64_t> active(COUNT);
  std::vector<float> features(COUNT * FEATURES);
  for (int64_t i = 0; i < COUNT; i++) active[i] = COUNT - 1 - i;
  for (size_t i = 0; i < features.size(); i++) features[i] = 0.01f * float(i % 97);
  std::vector<float> first;
  for (int threads : {1, 2, 3, 16}) {
    std::vector<float> sr(COUNT * SR), capacity(COUNT), out(COUNT * FEATURES), stage_capacity(COUNT);
    std::vector<int64_t> exit_index(COUNT);
    bool leaves[COUNT];
    ape::cpu::run_patches(program, {weights.data(), patches.data(), nullptr, sr.data(), exit_index.data(),
                                    capacity.data(), COUNT, SIDE, SIDE, 0.5f, threads});
    ape::cpu::run_stage(program, 1, {weights.data(), features.data(), active.data(), nullptr, out.data(),
                                     stage_capacity.data(), leaves, COUNT, SIDE, SIDE, 0.5f, threads});
    std::vector<float> all;
    for (const auto* part : {&sr, &capacity, &out, &stage_capacity}) all.insert(all.end(), part->begin(), part->end());
    all.insert(all.end(), exit_index.begin(), exit_index.end());
    all.insert(all.end(), leaves, leaves + COUNT);
    if (threads == 1) {
      first = all;
      std::ofstream(folder + "/exit_index", std::ios::binary).write((char*)exit_index.data(), 8 * COUNT);
      std::ofstream(folder + "/sr", std::ios::binary).write((char*)sr.data(), 4 * sr.size());
    }
    if (std::memcmp(all.data(), first.data(), 4 * all.size()) != 0)
      return std::printf("%d workers compute something else than one\n", threads), 1;
  }
}
"""


def run_under_tsan(folder: Path, source: str, *core_sources: str) -> None:
    """Build `source` with these of csrc/cpu for ThreadSanitizer and run it; it finds `folder` as its argument."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    csrc, program = Path(__file__).parents[2] / "csrc", folder / "program"
    (folder / "main.cpp").write_text(source)
    sources = [folder / "main.cpp", *(csrc / "cpu" / name for name in core_sources)]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{csrc}"]
    built = subprocess.run([*compiler.split(), *flags, *sources, "-o", program], capture_output=True, text=True)
    if built.returncode and "tsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer runtime")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program, folder], capture_output=True, text=True)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("ThreadSanitizer does not run under this kernel's address layout")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_no_races_and_every_task_once(tmp_path):
    run_under_tsan(tmp_path, QUEUE)


def test_no_races_between_workers(tmp_path):
    model = spread_network(2, 3, 16, 1)
    patches, packed = test_patches(9, 8, 8), APEForward(model, backend="cpu", dtype=torch.float32).packed
    for name, tensor in {"table": packed.table, "weights": packed.weights, "patches": patches}.items():
        (tmp_path / name).write_bytes(tensor.numpy().tobytes())
    worker = [f"{name}.cpp" for name in ("worker", "workspace", "program", "maps", "upsample")]
    run_under_tsan(tmp_path, WORKERS, *worker, "kernels_portable.cpp")
    sr, exit_index, _ = APEForward(model, 0.5, backend="torch").forward_patches(patches)
    assert len(set(exit_index.tolist())) > 1
    assert np.fromfile(tmp_path / "exit_index", np.int64).tolist() == exit_index.tolist()
    assert_pictures_close(torch.from_numpy(np.fromfile(tmp_path / "sr", np.float32)).view_as(sr), sr)
