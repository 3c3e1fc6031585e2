"""What a candidate runs for whole images: pictures on shared feature maps, at full depth and by a plan.

full      two images at full depth
plan      the same, each cell to a depth of its own, interpolated ones among them
lowest    the plan once more, images repeated until the device is full: the least of each pixel's results,
highest   and the greatest: what an image gives must not depend on its company
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from ape_kernels.backends.protocol import Depths, Picture
from ape_kernels.program import PatchProgram
from ape_kernels.sharing import sharing_of
from ape_kernels.table import PackedProgram
from ape_kernels.verify.device import fill, median_seconds
from ape_kernels.verify.signature import program_of
from ape_kernels.verify.task import Task

IMAGES = 2
RING = 4  # pixels


def make_reference(task: Task, device: torch.device) -> dict[str, Any]:
    """The images, the plan, and what is right: torch's results in float32."""
    oracle = importlib.import_module("ape_kernels.backends.torch")
    program = program_of(task.signature)
    generator = torch.Generator().manual_seed(3)
    height, width = (2 * side + side // 2 + 1 for side in task.patch)  # cells are cut off by the edges
    image = (2 * torch.rand(IMAGES, program.in_channels, height, width, generator=generator) - 1).to(device)
    deepest = len(program.stages) - 1
    lowest = -1 if program.in_channels == program.out_channels else 0
    plan = torch.randint(lowest, deepest + 1, (IMAGES, 3, 3), generator=generator)
    plan[:, 0, 0], plan[:, 1, 1] = deepest, lowest
    packed = oracle.pack(program, device, torch.float32)
    image_bytes = 4 * height * width * (oracle.image_bytes(packed) // 4 + program.out_channels * program.upscale**2)
    return {
        "image": image,
        "plan": plan.to(device),
        "repeats": torch.tensor(fill(device, height * width / math.prod(task.patch), image_bytes, IMAGES)),
        "right.full": run_image(oracle, program, packed, image, None, task),
        "right.plan": run_image(oracle, program, packed, image, plan.to(device), task),
    }


def measure(backend: Any, task: Task, device: torch.device, reference: Any) -> dict[str, Any]:
    """Results of `backend` by every way (see above), and the milliseconds that a patch's pixels take at full depth."""
    program = program_of(task.signature)
    image, plan = (torch.from_numpy(reference[name]).to(device) for name in ("image", "plan"))
    repeats = int(reference["repeats"])
    packed = backend.pack(program, device, getattr(torch, task.dtype))
    many = image.repeat(repeats, 1, 1, 1)
    by_plan = run_image(backend, program, packed, many, plan.repeat(repeats, 1, 1), task).unflatten(0, (repeats, -1))
    results = {
        "full": run_image(backend, program, packed, image, None, task),
        "plan": run_image(backend, program, packed, image, plan, task),
        "lowest": by_plan.amin(0),
        "highest": by_plan.amax(0),
    }
    torch.set_float32_matmul_precision(task.precision)
    run_image(backend, program, packed, many, None, task)  # with another precision there may be something to compile
    seconds = median_seconds(lambda: run_image(backend, program, packed, many, None, task), device)
    patches = many[:, 0].numel() / math.prod(task.patch)
    return {**results, "milliseconds": torch.tensor(1e3 * seconds / patches)}


def run_image(
    backend: Any, program: PatchProgram, packed: PackedProgram, image: Tensor, plan: Tensor | None, task: Task
) -> Tensor:
    """`backend.run_image` in cells as large as the task's patches."""
    height, width = (side * program.upscale for side in image.shape[2:])
    out = image.new_empty(len(image), program.out_channels, height, width)
    picture = Picture(out, image, program.upscale)
    backend.run_image(packed, sharing_of(packed.table), image, Depths(plan, task.patch[0], RING), picture)
    return out
