"""``python -m ape_kernels verify``: which backends are right on this machine, and how fast."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ape_kernels.backends import modules_able
from ape_kernels.precision import matmul_precision
from ape_kernels.verify.device import Device
from ape_kernels.verify.judge import verify
from ape_kernels.verify.programs import PROGRAMS
from ape_kernels.verify.signature import program_of
from ape_kernels.verify.task import IMAGES, PATCHES, Finding, Task

DTYPES = ("float16", "float32", "bfloat16")
BY_HAND_LIMIT_S = 300.0  # for one program in one dtype; longer than in `auto`, because no picture waits for it
ROW = "{:<24}{:<10}{:<10}{:<7}{:<14}{}"


def main(arguments: Sequence[str]) -> int:
    """Run the command with these arguments. Returns 0 if every backend that can run is right, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m ape_kernels verify",
        description="Run each backend that can run here, in a process of its own, on programs of every kind of step, "
        "compare its results with PyTorch's in float32, and time it. The status is 0 if all are right.",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="as torch calls it (%(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES, help="of the computation (all)")
    parser.add_argument("--patch-size", type=int, default=48, help="low-resolution pixels (%(default)s)")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)  # `judge.verify` starts this command with a module
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.candidate is not None:
        from ape_kernels.verify.candidate import run  # only here, because it imports a backend

        run(args.folder, args.candidate)
        return 0
    if args.patch_size < 1:
        parser.error(f"--patch-size: expected at least 1, got {args.patch_size}")
    # As an exception, SIGTERM also ends the processes and removes the files that were made.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return print_table(torch.device(args.device), args.dtype, args.patch_size)


def print_table(device: torch.device, dtypes: Sequence[str], patch_size: int) -> int:
    """Verify all `PROGRAMS` and print one row per backend. Returns 0 if every backend that can run is right, else 1.

    Why a backend cannot run is told once.
    """
    all_right, told = True, set[tuple[str, str]]()
    for operation, what in ((PATCHES, "patches"), (IMAGES, "images on shared feature maps, cells")):
        print(f"{what} of {patch_size}x{patch_size} on {Device.of(device).name}")
        print(ROW.format("program", "dtype", "backend", "right", "ms per patch", "why not").rstrip())
        for dtype in dtypes:
            for name in PROGRAMS:
                for finding, able in _findings(name, device, dtype, patch_size, operation):
                    all_right &= finding.right or not able
                    why = finding.backend, finding.why_not
                    if not able and why in told:
                        continue
                    told.add(why)
                    right = "-" if not able else "yes" if finding.right else "no"
                    time = "" if finding.milliseconds is None else f"{finding.milliseconds:.4g}"
                    row = ROW.format(name, dtype, finding.backend, right, time, finding.why_not)
                    print(row.rstrip(), flush=True)
    return 0 if all_right else 1


def _findings(
    name: str, device: torch.device, dtype: str, patch_size: int, operation: str
) -> Iterator[tuple[Finding, bool]]:
    """The finding for each backend, and whether the backend can run at all."""
    signature = PROGRAMS[name]
    able, reasons = modules_able(program_of(signature), device, getattr(torch, dtype), operation)
    size = (patch_size, patch_size)
    precision = matmul_precision()
    task = Task(signature, Device.of(device), dtype, size, precision, BY_HAND_LIMIT_S, operation)
    if able:
        yield from ((finding, True) for finding in verify(task, able, BY_HAND_LIMIT_S).findings)
    yield from ((Finding(backend, reason), False) for backend, reason in reasons.items())
