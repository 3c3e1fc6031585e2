"""Timing and CUDA graphs on a GPU, or for dry runs on the CPU in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]
LEAST_SAMPLES, MOST_SAMPLES = 5, 30


class Gpu:
    """A CUDA device. Times are measured between events on its stream."""

    kind = "cuda"
    seconds = 1.0  # how long one row is sampled

    def milliseconds(self, run: Run) -> float:
        """The time of one call, from start to end on the device."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    def graph(self, run: Run) -> Run:
        """Capture `run` once and return its replay. Every replay overwrites the same result."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def wait(self) -> None:
        """Until everything that was started has ended."""
        torch.cuda.synchronize()


class StandIn:
    """The CPU in the place of a GPU. It has the same methods, so that a dry run executes the same code."""

    kind = "cpu"
    seconds = 0.01

    def milliseconds(self, run: Run) -> float:
        """The time of one call."""
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1e3

    def graph(self, run: Run) -> Run:
        """`run` itself, called once."""
        run()
        return run

    def wait(self) -> None:
        """Nothing runs on by itself here."""


def samples(device: Gpu | StandIn, run: Run) -> list[float]:
    """Milliseconds of several calls, after two calls to warm up."""
    run()
    run()
    taken: list[float] = []
    while len(taken) < LEAST_SAMPLES or (sum(taken) < device.seconds * 1e3 and len(taken) < MOST_SAMPLES):
        taken.append(device.milliseconds(run))
    return taken


def ceilings(device: Gpu | StandIn) -> tuple[float, float]:
    """TFLOP/s of a float16 matrix product of random data, and TB/s of a copy (bytes read plus bytes written)."""
    side, elements = (8192, 1 << 29) if device.kind == "cuda" else (64, 1 << 12)
    dtype = torch.float16 if device.kind == "cuda" else torch.float32
    a = torch.randn(side, side, device=device.kind, dtype=dtype)
    product = min(samples(device, lambda: a @ a))
    source = torch.empty(elements, device=device.kind, dtype=dtype)
    target = torch.empty_like(source)
    copy = min(samples(device, lambda: target.copy_(source)))
    return 2 * side**3 / product / 1e9, 2 * source.nbytes / copy / 1e9
