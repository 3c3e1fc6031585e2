"""The workers' queue (csrc/cpu/parallel.h) under ThreadSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
  }
}
"""


def test_no_races_and_every_task_once(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = tmp_path / "queue.cpp", tmp_path / "queue"
    source.write_text(QUEUE)
    include = Path(__file__).parents[2] / "csrc"
    command = [*compiler.split(), "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{include}"]
    built = subprocess.run([*command, str(source), "-o", str(program)], capture_output=True, text=True)
    if built.returncode and "tsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer runtime")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("ThreadSanitizer does not run under this kernel's address layout")
    assert ran.returncode == 0, ran.stdout + ran.stderr
