"""Whole pictures on a GPU: on shared feature maps, at full depth and by plans, beside the plain network.

Every row of ours is checked against the torch backend in float32 before it is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import gpu_peers as peers
import torch
from gpu_device import Run
from torch import Tensor, nn

from ape_kernels.backends import get_backend
from ape_kernels.backends.protocol import Depths
from ape_kernels.geometry import cells_of
from ape_kernels.packed import Packed, Wish, pack
from ape_kernels.program import PatchProgram
from ape_kernels.run.images import run_image

if TYPE_CHECKING:
    from gpu_steps import Bench

SIZES = ((540, 960), (1080, 1920))
CELL, RING = 48, 4
FULL = "full depth"
TOLERANCE = 2e-2  # of the oracle's standard deviation, root mean square, in float16
WORST = 0.3  # of the same, any pixel: one that stands in a wrong place is off by more than 1


@dataclass(frozen=True)
class Picture:
    """One picture, its network and what each plan needs; `name` as the rows have it."""

    name: str
    model: nn.Module
    image: Tensor
    packed: Packed

    @classmethod
    def of(cls, bench: Bench, network: str, size: tuple[int, int]) -> Picture:
        """A random one on the device; `packed` is the oracle."""
        torch.manual_seed(1)
        image = torch.rand(1, 3, *size, device=bench.device.kind)
        model = bench.model(network)
        name = f"{network}, picture of {size[1]}x{size[0]}"
        return cls(name, model, image, pack(model, Wish("torch", torch.float32)))

    @property
    def program(self) -> PatchProgram:
        """The program of the network."""
        return self.packed.program

    def plans(self, cell: int) -> dict[str, Tensor | None]:
        """Depths of the cells, int64 ``[1, R, K]``, by what the rows call them."""
        rows, columns = cells_of(*self.image.shape[2:], cell)
        deepest = len(self.program.stages) - 1
        y, x = torch.arange(rows)[:, None], torch.arange(columns)[None]
        board, upper = (y + x) % 2 == 0, (y < rows // 2).expand(rows, columns)
        depths = {
            "half leave after stage 0, a checkerboard": torch.where(board, 0, deepest),
            "half interpolated, a checkerboard": torch.where(board, -1, deepest),
            "half interpolated, the upper half": torch.where(upper, -1, deepest),
        }
        return {FULL: None, **{name: plan[None].to(self.image.device) for name, plan in depths.items()}}

    def tflop(self, exit_at: Tensor | None, cell: int) -> float:
        """TFLOP of a plan. What is interpolated and the ring count nothing."""
        deepest = len(self.program.stages) - 1
        height, width = self.image.shape[2:]
        if exit_at is None:
            return height * width * self.program.flops_to_stage(deepest) / 1e12
        pixels = exit_at[0].repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width].flatten().cpu()
        counts = torch.bincount(pixels + 1, minlength=deepest + 2).tolist()[1:]
        return sum(count * self.program.flops_to_stage(stage) for stage, count in enumerate(counts)) / 1e12


def check(got: Tensor, oracle: Tensor) -> None:
    """ValueError unless the picture is the oracle's, but for what half precision brings."""
    error = (got.float() - oracle).abs_().div_(oracle.std())
    mean_square, worst = float(error.square().mean().sqrt()), float(error.max())
    if not (mean_square <= TOLERANCE and worst <= WORST):
        raise ValueError(f"another picture: {mean_square:.1e}, at worst {worst:.1e} of the oracle's deviation off")


def ours(bench: Bench, network: str, name: str) -> None:
    """Rows of one of our backends: pictures of both sizes by all plans, the smaller one also as patches."""
    for size in sizes(bench):
        shared_maps(bench, Picture.of(bench, network, size), name)
    if name != "torch":
        picture = Picture.of(bench, network, sizes(bench)[0])
        fast = bench.wrapped(picture.model, name)
        label = f"{name}, patches merged, CUDA graph"
        merged = lambda: bench.device.graph(lambda: fast(picture.image))  # noqa: E731
        bench.row(label, picture.name, 1, FULL, picture.tflop(None, CELL), merged)


def shared_maps(bench: Bench, picture: Picture, name: str) -> None:
    """Rows of one picture by all plans."""
    backend, cell = bench.backend(name), 8 if bench.dry else CELL
    if reason := get_backend(backend).supports_images(picture.program, picture.image.device, bench.dtype):
        raise ValueError(f"{name}, {picture.name}: {reason}")
    packed = pack(picture.model, Wish(backend, bench.dtype))
    label = "ape_kernels torch, shared maps" if name == "torch" else f"{name}, shared maps"
    for exits, exit_at in picture.plans(cell).items():
        depths = Depths(exit_at, cell, RING)
        run = lambda depths=depths: run_image(picture.image, packed, depths)  # noqa: E731

        def eager(run=run, depths=depths) -> Run:
            check(run(), run_image(picture.image, picture.packed, depths))
            return run

        tflop = picture.tflop(exit_at, cell)
        bench.row(label, picture.name, 1, exits, tflop, eager)
        if name != "torch":  # that one asks the host
            graphed = lambda run=run: bench.device.graph(run)  # noqa: E731
            bench.row(f"{label}, CUDA graph", picture.name, 1, exits, tflop, graphed)


def sizes(bench: Bench) -> tuple[tuple[int, int], ...]:
    """Height and width of the pictures, the smallest first."""
    return ((20, 30),) if bench.dry else SIZES


def torch_time(bench: Bench, network: str) -> None:
    """The plain network in PyTorch, for pictures to 3840x2160 and 7680x4320."""
    for size in sizes(bench):
        picture = Picture.of(bench, network, size)
        half = peers.half(picture.model, bench.device)
        whole = peers.prepared(picture.image, half)
        run = lambda half=half, whole=whole: half(whole)  # noqa: E731
        tflop, label = picture.tflop(None, CELL), "torch fp16 channels_last"
        bench.row(label, picture.name, 1, FULL, tflop, lambda run=run: run)
        bench.row(f"{label}, CUDA graph", picture.name, 1, FULL, tflop, lambda run=run: bench.device.graph(run))


def compile_time(bench: Bench, network: str) -> None:
    """torch.compile on the same pictures."""
    for size in sizes(bench):
        picture = Picture.of(bench, network, size)
        half = peers.half(picture.model, bench.device)
        whole = peers.prepared(picture.image, half)
        forward = half if bench.dry else torch.compile(half, dynamic=False)
        run = lambda forward=forward, whole=whole: bench.device.graph(lambda: forward(whole))  # noqa: E731
        label = "torch.compile default fp16, CUDA graph"
        bench.row(label, picture.name, 1, FULL, picture.tflop(None, CELL), run)


def profile(bench: Bench, network: str) -> None:
    """Three runs of the smaller picture by the cuda backend."""
    picture = Picture.of(bench, network, sizes(bench)[0])
    packed = pack(picture.model, Wish(bench.backend("cuda"), bench.dtype))
    for _ in range(3):
        run_image(picture.image, packed, Depths(None, CELL, RING))
