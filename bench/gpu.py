"""Everything that needs a GPU, in one command and nine minutes: build, tests, sanitizers, profile, timings.

    python3 bench/gpu.py OUT                       all steps, in the order below
    python3 bench/gpu.py OUT --only cuda-time      only the named steps
    python3 bench/gpu.py OUT --seconds 240         the first steps, as many as this time allows
    python3 bench/gpu.py OUT --dry-run             the same on the CPU with small networks, to test the script itself
    python3 bench/gpu.py OUT --table               only print the table of the results in OUT

Each step is a process with a time limit of its own. A crash, a hang or an illegal access ends this step only. Each row
is appended to OUT/results.jsonl as soon as it is measured, so an interruption loses only the current row. OUT then
holds results.jsonl, log.txt (all output), table.txt, and from the profiler ncu.ncu-rep and ncu.csv.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from gpu_records import Records, table

ROOT = Path(__file__).parents[1]
SECONDS = 530.0  # for all steps
GRACE = 5.0  # seconds between asking a step to end and killing it
TAIL = 12  # lines of a step's output that its record keeps


@dataclass(frozen=True)
class Step:
    """A command. limit: seconds that it may take. tool: a program that must be installed for it, or None."""

    name: str
    limit: float
    command: list[str]
    tool: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


def pytest_command(*arguments: str, processes: int) -> list[str]:
    """pytest without plugins that a bare machine may lack. It runs in several processes if pytest-xdist is there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *arguments]
    return [*command, "-n", str(processes)] if importlib.util.find_spec("xdist") else command


def steps(out: Path, dry: bool) -> list[Step]:
    """All steps, the most important ones first."""
    me = [sys.executable, str(ROOT / "bench" / "gpu_steps.py")]
    measure = lambda name: [*me, name, str(out), *(["--dry-run"] if dry else [])]  # noqa: E731
    kernels = "tests/kernels/"
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    cuda_tests = [f"{kernels}test_cuda.py", f"{kernels}test_gpu.py", "-k", "not triton"]
    triton_tests = [f"{kernels}test_{name}.py" for name in ("triton", "triton_images", "images", "gpu")]
    triton_tests += ["-k", "not cuda"]
    oracle_tests = [f"{kernels}test_backends.py"]
    if dry:
        build = [sys.executable, "-c", "import ape_kernels._C"]
        cuda_tests = triton_tests = oracle_tests = [f"{kernels}test_policy.py"]
    sanitized = pytest_command(f"{kernels}test_gpu.py", "-k", "sanitizer and cuda", processes=0)
    sanitizer = ["compute-sanitizer", "--kernel-name", "kns=worker_kernel", "--error-exitcode", "1"]
    few = {"OMP_NUM_THREADS": "2"}  # threads per process, as several run at once
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    profile = ["ncu", "--clock-control", "none", "-k", "regex:worker_kernel", "-s", "1", "-c", "1"]
    profile += ["--set", "full", "-f", "-o", str(out / "ncu")]
    report = f"ncu --import {shlex.quote(str(out / 'ncu.ncu-rep'))}"
    source = f"{report} --page details && {report} --page source --csv >{shlex.quote(str(out / 'ncu.csv'))}"
    return [
        Step("environment", 30, measure("environment")),
        Step("build", 120, build, environment=dict(APE_BUILD_CUDA="1", APE_CUDA_ARCH=_architecture(dry))),
        Step("cuda-check", 100, pytest_command(*cuda_tests, processes=0 if dry else 6), environment=few),
        Step("cuda-time", 70, measure("cuda-time")),
        Step("torch-time", 70, measure("torch-time")),
        Step("memcheck", 60, [*sanitizer, "--tool", "memcheck", *sanitized], "compute-sanitizer", uncached),
        Step("racecheck", 60, [*sanitizer, "--tool", "racecheck", *sanitized], "compute-sanitizer"),
        Step("ncu", 60, [*profile, *measure("profile")], "ncu"),
        Step("ncu-source", 30, ["sh", "-c", source], "ncu"),
        Step("triton-check", 160, pytest_command(*triton_tests, processes=0 if dry else 8), environment=few),
        Step("triton-time", 100, measure("triton-time")),
        Step("image-time", 140, measure("image-time")),
        Step("oracle-check", 60, pytest_command(*oracle_tests, processes=0 if dry else 4), environment=few),
        Step("verify", 150, [sys.executable, "-m", "ape_kernels", *([] if dry else ["verify", "--dtype", "float16"])]),
        Step("compile-time", 160, measure("compile-time")),
    ]


def _architecture(dry: bool) -> str:
    """The compute capability, such as "90". The driver is asked, so that this process does not use CUDA itself."""
    if dry:
        return ""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"gpu.py: no NVIDIA GPU: {error}; --dry-run tries the script without one")
    return answer.split()[0].replace(".", "")


class Runner:
    """Runs steps one after another and records how each ended."""

    def __init__(self, out: Path, dry: bool, seconds: float) -> None:
        self.out, self.dry = out, dry
        self.records = Records(out)
        self.ends = time.monotonic() + seconds
        self.child: subprocess.Popen[str] | None = None

    def run(self, step: Step) -> None:
        """Run one step to its end or to its time limit."""
        limit = min(step.limit, self.ends - time.monotonic())
        if limit <= GRACE:
            self.records.step(step.name, "skipped: the time for all steps is up")
            return
        if step.tool and not shutil.which(step.tool):
            self.records.step(step.name, f"skipped: {step.tool} is not installed")
            return
        folders = [str(ROOT / folder) for folder in ("", "python", "tests")]
        python_path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1", **step.environment}
        environment["APE_TEST_DEVICE"] = "cpu" if self.dry else "cuda"
        begin = time.monotonic()
        with open(self.out / "log.txt", "a") as log:
            print(f"\n=== {step.name}: {' '.join(step.command)}", file=log, flush=True)
            written = log.tell()
            self.child = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )
            try:
                status = self.child.wait(limit)
                ended = "ok" if status == 0 else f"failed: exit status {status}"
            except subprocess.TimeoutExpired:
                ended = f"failed: still running after {limit:.0f} s"
            finally:
                self.stop()
        with open(self.out / "log.txt", errors="replace") as log:
            log.seek(written)
            tail = log.read().splitlines()[-TAIL:]
        self.records.step(step.name, ended, seconds=round(time.monotonic() - begin, 1), tail=tail)
        print(f"{step.name:<14} {time.monotonic() - begin:6.1f} s  {ended}", flush=True)

    def stop(self) -> None:
        """End the step and everything that it started."""
        if self.child is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.child.pid, number)
                self.child.wait(GRACE)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.child = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for results; new results are added to those in it")
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together, default %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="run small networks on the CPU, to test the script")
    parser.add_argument("--table", action="store_true", help="only print the table of the results that are there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in options.only.split(",") if name]
    if not options.table:
        chosen = steps(options.out, options.dry_run)
        if unknown := set(wanted) - {step.name for step in chosen}:
            parser.error(f"--only: expected some of {', '.join(step.name for step in chosen)}, got {sorted(unknown)}")
        runner = Runner(options.out, options.dry_run, options.seconds)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            for step in chosen:
                if not wanted or step.name in wanted:
                    runner.run(step)
        except KeyboardInterrupt:
            return 130
        finally:
            text = table(options.out)
            (options.out / "table.txt").write_text(text)
            print(text)
        return int(runner.records.failed)
    print(table(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
