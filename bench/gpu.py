"""Everything that needs a GPU, in one command and nine minutes: build, tests, sanitizers, profile, timings.

    python3 bench/gpu.py OUT                       all steps, in the order below
    python3 bench/gpu.py OUT --only cuda-time      only the named steps
    python3 bench/gpu.py OUT --seconds 240         the first steps, as many as this time allows
    python3 bench/gpu.py OUT --dry-run             the same on the CPU with small networks, to test the script itself
    python3 bench/gpu.py OUT --table               only print the table of the results in OUT

Each step is a process with a time limit of its own. A crash, a hang or an illegal access ends this step only. Each row
is appended to OUT/results.jsonl as soon as it is measured, so an interruption loses only the current row. OUT then
holds results.jsonl, log.txt (all output), table.txt, and for each of two kernels the profiler's report and a table.
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
import tempfile
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


def steps(out: Path, dry: bool, verdicts: Path) -> list[Step]:
    """All steps, the most important ones first. verdicts: an empty folder for those that `backend="auto"` keeps."""
    me = [sys.executable, str(ROOT / "bench" / "gpu_steps.py")]
    measure = lambda name: [*me, name, str(out), *(["--dry-run"] if dry else [])]  # noqa: E731
    kernels = "tests/kernels/"
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    cuda_tests = [f"{kernels}test_{name}.py" for name in ("cuda", "gpu", "cuda_images", "defaults")]
    cuda_tests += ["-k", "not triton"]
    triton_tests = [f"{kernels}test_{name}.py" for name in ("triton", "triton_images", "images", "gpu")]
    triton_tests += ["-k", "not cuda"]
    oracle_tests = [f"{kernels}test_backends.py"]
    auto_tests = [f"{kernels}test_verify.py", "-k", "each_fault or end_to_end"]
    if dry:
        build = [sys.executable, "-c", "import ape_kernels._C"]
        cuda_tests = triton_tests = oracle_tests = auto_tests = [f"{kernels}test_policy.py"]
    few = {"OMP_NUM_THREADS": "2"}  # threads per process, as several run at once
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    kept = {"APE_CACHE": str(verdicts)}
    return [
        Step("environment", 30, measure("environment")),
        Step("build", 120, build, environment=dict(APE_BUILD_CUDA="1", APE_CUDA_ARCH=_architecture(dry))),
        Step("cuda-check", 120, pytest_command(*cuda_tests, processes=0 if dry else 6), environment=few),
        Step("cuda-time", 70, measure("cuda-time")),
        Step("torch-time", 70, measure("torch-time")),
        Step("cuda-images", 50, measure("cuda-images")),
        Step("torch-images", 60, measure("torch-images")),
        Step("memcheck", 60, sanitized("cuda", "memcheck"), "compute-sanitizer", uncached),
        Step("racecheck", 60, sanitized("cuda", "racecheck"), "compute-sanitizer"),
        Step("auto", 140, measure("auto"), environment=kept),
        Step("auto-again", 40, measure("auto"), environment=kept),
        *profiled(out, "worker_kernel", measure("profile"), launches_before=1),
        *profiled(out, "image_pair_kernel", measure("profile-image"), launches_before=20),
        Step("triton-check", 160, pytest_command(*triton_tests, processes=0 if dry else 8), environment=few),
        Step("triton-memcheck", 60, sanitized("triton", "memcheck"), "compute-sanitizer", uncached),
        Step("triton-time", 100, measure("triton-time")),
        Step("triton-images", 60, measure("triton-images")),
        Step("oracle-check", 60, pytest_command(*oracle_tests, processes=0 if dry else 4), environment=few),
        Step("auto-check", 90, pytest_command(*auto_tests, processes=0), environment=few),
        Step("compile-time", 160, measure("compile-time")),
    ]


def sanitized(backend: str, tool: str) -> list[str]:
    """A tool of compute-sanitizer over the tests made for it, which looks at this backend's kernels alone."""
    kernels = {"cuda": "kns=_ZN3ape", "triton": "regex=^[a-z_]+_kernel$"}[backend]  # in mangled names
    command = ["compute-sanitizer", "--tool", tool, "--kernel-name", kernels, "--error-exitcode", "1"]
    return [*command, *pytest_command("tests/kernels/test_gpu.py", "-k", f"sanitizer and {backend}", processes=0)]


def profiled(out: Path, kernel: str, command: list[str], launches_before: int) -> list[Step]:
    """One launch of a kernel in the profiler, and its report in two forms of text: the log's and OUT/KERNEL.csv."""
    report = out / f"{kernel}.ncu-rep"
    ncu = ["ncu", "--clock-control", "none", "-k", f"regex:{kernel}", "-s", str(launches_before), "-c", "1"]
    ncu += ["--set", "full", "-f", "-o", str(report.with_suffix(""))]
    show = f"ncu --import {shlex.quote(str(report))}"
    text = f"{show} --page details && {show} --page source --csv >{shlex.quote(str(report.with_suffix('.csv')))}"
    name = kernel.removesuffix("_kernel").replace("_", "-")
    return [
        Step(f"ncu-{name}", 60, [*ncu, *command], "ncu"),
        Step(f"ncu-{name}-text", 30, ["sh", "-c", text], "ncu"),
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
        verdicts = tempfile.TemporaryDirectory(prefix="ape-gpu-")
        chosen = steps(options.out, options.dry_run, Path(verdicts.name))
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
            verdicts.cleanup()
            text = table(options.out)
            (options.out / "table.txt").write_text(text)
            print(text)
        return int(runner.records.failed)
    print(table(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
