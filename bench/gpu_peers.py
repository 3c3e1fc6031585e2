"""What a user would run on a GPU instead, the device's ceilings, and timing in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from peers import Run, Unavailable
from reference import literal_forward
from torch import Tensor, nn


def authors(model: nn.Module, patches: Tensor, boundary: float) -> Run:
    """The paper's test loop in float32, as its authors ran it."""
    if not hasattr(model, "exit_interval") or type(model).__name__ != "EDSR":
        raise Unavailable("the literal test loop is written for EDSR")
    return lambda patches: literal_forward(model, patches, boundary)[0]


def _half(model: nn.Module) -> nn.Module:
    torch.backends.cudnn.benchmark = True
    return copy.deepcopy(model).half().to(memory_format=torch.channels_last)


def eager(model: nn.Module, patches: Tensor, boundary: float) -> Run:
    """PyTorch, float16, channels_last, cudnn.benchmark."""
    half = _half(model)
    return lambda patches: half(patches.half().to(memory_format=torch.channels_last)).float()


def compiled(model: nn.Module, patches: Tensor, boundary: float) -> Run:
    """torch.compile(mode="max-autotune") of the same; minutes to compile, so for one case only."""
    if len(patches) != 500 or type(model).__name__ != "EDSR" or model.body[0].body[0].in_channels != 64:
        raise Unavailable("compiled for EDSR 16x64 and 500 patches only: it takes minutes")
    fast = torch.compile(_half(model), mode="max-autotune")
    return lambda patches: fast(patches.half().to(memory_format=torch.channels_last)).float()


def graphed(model: nn.Module, patches: Tensor, boundary: float) -> Run:
    """The eager network captured in a CUDA graph."""
    half = _half(model)
    static = patches.half().to(memory_format=torch.channels_last)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        half(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = half(static)

    def run(patches: Tensor) -> Tensor:
        static.copy_(patches)
        graph.replay()
        return out.float()

    return run


PEERS = {
    "authors' eager forward, fp32": authors,
    "torch fp16 channels_last": eager,
    "torch.compile max-autotune fp16": compiled,
    "CUDA-graphed fp16": graphed,
}
RUN_EXITS = ("authors' eager forward, fp32",)


def milliseconds_in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """`rounds` times of every row by CUDA events, taken in turns after two calls to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for run in runs.values():
            run()
            run()
        for _ in range(rounds):
            for name, run in runs.items():
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                torch.cuda.synchronize()
                begin.record()
                run()
                end.record()
                torch.cuda.synchronize()
                taken[name].append(begin.elapsed_time(end))
    return taken


@cache
def ceilings() -> tuple[float, float]:
    """FLOP/s of an 8192-cubed float16 matrix product and bytes/s of a 1 GiB copy (read and written)."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    source = torch.empty(1 << 29, device="cuda", dtype=torch.float16)
    target = torch.empty_like(source)
    times = milliseconds_in_turns({"product": lambda: a @ a, "copy": lambda: target.copy_(source)}, 5)
    return 2 * 8192**3 / (min(times["product"]) / 1e3), 2 * source.nbytes / (min(times["copy"]) / 1e3)
