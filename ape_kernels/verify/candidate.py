"""What runs in a process of its own: one backend runs the patches of a task, in every way that users' calls do.

    few       `run_patches` on some patches that all differ
    lowest    `run_patches` on the same patches, repeated until the device is full: the lowest of each value's results
    highest   the same, the highest; it shows whether a result depends on the other patches of the call
    stages    `run_stage` for one stage after the other, with head and tail by torch
    picture   an image, split and merged

The first process also makes the reference: results of the torch backend in float32, and exits that split the patches.
A task for whole images runs what images.py says.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ape_kernels.backends.protocol import Exits, PatchResults
from ape_kernels.backends.torch import pack as pack_torch
from ape_kernels.backends.torch.interpreter import run_head, run_tail
from ape_kernels.backends.torch.interpreter import run_stage as run_torch_stage
from ape_kernels.geometry import AxisBlend, PatchGrid
from ape_kernels.program import PatchProgram
from ape_kernels.table import PackedProgram
from ape_kernels.verify import images
from ape_kernels.verify.device import fill, median_seconds
from ape_kernels.verify.signature import program_of
from ape_kernels.verify.task import IMAGES, REFERENCE, TASK, Task

PATCHES = 12
BOUNDARY = 0.5  # of the exits' predictions
GAP = 0.04  # No prediction is closer to the boundary. 16-bit types change a prediction by less than half of this.
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(folder: Path, module: str) -> None:
    """Run one backend on the task in `folder`.

    module: import path of the backend. The results are written to `module`.npz in `folder`; if the backend fails, the
    reason is written to `module`.json and the process ends with status 1. If there is no reference yet, it is made
    first.
    """
    task = Task.read(folder / TASK)
    _end_with_parent(task.limit_s)
    torch.set_float32_matmul_precision("highest")  # NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE
    try:
        device = task.device.find()
        make, examine = (make_reference, measure)
        if task.operation == IMAGES:
            make, examine = images.make_reference, images.measure
        with torch.no_grad():
            if not (folder / REFERENCE).exists():
                _write(folder / REFERENCE, make(task, device))
            with np.load(folder / REFERENCE) as reference:
                _write(folder / f"{module}.npz", examine(importlib.import_module(module), task, device, reference))
    except Exception as error:
        passing = isinstance(error, (torch.OutOfMemoryError, MemoryError, OSError))  # no memory, no room on the disk
        line = next(iter(str(error).strip().splitlines()), "")
        report = {"why_not": f"{type(error).__name__}: {line}", "passing": passing}
        (folder / f"{module}.json").write_text(json.dumps(report))
        sys.exit(1)


def make_reference(task: Task, device: torch.device) -> dict[str, Any]:
    """The patches, the weights and biases of the exits, and the right results: those of torch in float32.

    Raises RuntimeError when the random weights give values that are not of order one, or when all patches leave at the
    same exit.
    """
    backend = importlib.import_module("ape_kernels.backends.torch")
    program = program_of(task.signature)
    patches = make_patches(program, task.patch).to(device)
    packed = backend.pack(program, device, torch.float32)
    exits = split_exits(pooled_at_exits(program, packed, patches))
    packed = backend.pack(program_of(task.signature, exits), device, torch.float32)
    sr, exit_index, capacity = run_patches(backend, program, packed, patches)
    deviation = float(sr.std())
    if not 0.01 < deviation < 100:
        raise RuntimeError(f"signature: expected random weights that keep signals of order one, got {deviation:.2g}")
    if any(stage.has_exit for stage in program.stages[:-1]) and len(exit_index.unique()) < 2:
        raise RuntimeError("signature: expected exits that split the patches, all leave together")
    return {
        "patches": patches,
        **{f"exit_weight.{i}": weight for i, (weight, _) in enumerate(exits)},
        **{f"exit_bias.{i}": bias for i, (_, bias) in enumerate(exits)},
        "repeats": torch.tensor(_repeats(program, task, device)),
        **_named("right", (sr, exit_index, capacity)),
        "picture": split_and_merge(backend, task, device),
    }


def exits_of(reference: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each exit in the reference that `make_reference` gave."""
    for i in range(sum(name.startswith("exit_bias.") for name in reference)):
        yield torch.from_numpy(reference[f"exit_weight.{i}"]), torch.from_numpy(reference[f"exit_bias.{i}"])


def make_patches(program: PatchProgram, size: tuple[int, int]) -> Tensor:
    """Noise of order one, float32 ``[PATCHES, C, *size]``. Each patch has its own contrast and brightness."""
    generator = torch.Generator().manual_seed(1)
    noise = 2 * torch.rand(PATCHES, program.buffers[0].channels, *size, generator=generator) - 1
    contrast = torch.linspace(0.3, 1.0, PATCHES)
    brightness = torch.linspace(-1.0, 1.0, PATCHES)[5 * torch.arange(PATCHES) % PATCHES]
    return noise * contrast[:, None, None, None] + brightness[:, None, None, None]


def pooled_at_exits(program: PatchProgram, packed: PackedProgram, patches: Tensor) -> list[Tensor]:
    """At each exit the means of the feature maps of all patches, float64 ``[PATCHES, C]`` on the CPU."""
    pooled: list[Tensor] = []
    features = run_head(patches, packed)
    ids = torch.arange(len(patches), device=patches.device)
    for i, stage in enumerate(program.stages):
        out, rows, _, _ = run_torch_stage(packed, i, features, ids, Exits(math.inf))
        features[rows] = out
        if stage.has_exit:
            pooled.append(features.mean(dim=(2, 3)).double().cpu())
    return pooled


def split_exits(pooled: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each exit, such that some of the remaining patches leave there.

    pooled: at each exit the means of all patches, ``[patches, C]``. The weights point along the first principal
    component of the patches, because rounding changes these predictions least. The boundary lies in the middle between
    the predictions of two patches. If no two patches are far enough apart for a distance of `GAP` on both sides, no
    patch leaves at this exit.
    """
    found, there = [], list(range(PATCHES))
    for i, means in enumerate(pooled):
        centre = means.mean(dim=0)
        direction = torch.linalg.svd(means - centre, full_matrices=False).Vh[0]
        weight = direction / (means @ direction).std().clamp_min(1e-2)
        scores = means @ weight
        ranked = sorted(there, key=lambda patch: -float(scores[patch]))
        values = scores[ranked].tolist()
        wanted = max(1, len(there) // (len(pooled) - i + 1))
        gaps = {n: values[n - 1] - values[n] for n in range(1, min(2 * wanted, len(there) - 1) + 1)}
        leaving = max(gaps, key=gaps.__getitem__, default=0)
        # The slope of tanh at the boundary is 3/4; the factor 1.1 allows for its curvature.
        if leaving and gaps[leaving] / 2 * 0.75 > 1.1 * GAP:
            cut = (values[leaving - 1] + values[leaving]) / 2
            there = ranked[leaving:]
        else:
            cut = values[0] + 1
        found.append((weight.float(), torch.tensor([math.atanh(BOUNDARY) - cut])))
    return found


def measure(backend: Any, task: Task, device: torch.device, reference: Any) -> dict[str, Any]:
    """Results of `backend` in every way (see the module), and the milliseconds per patch when the device is full."""
    program = program_of(task.signature, exits_of(reference))
    dtype = getattr(torch, task.dtype)
    patches = torch.from_numpy(reference["patches"]).to(device)
    repeats = int(reference["repeats"])
    packed = backend.pack(program, device, dtype)
    few = run_patches(backend, program, packed, patches)
    full = patches.repeat(repeats, 1, 1, 1)
    many = [part.unflatten(0, (repeats, PATCHES)) for part in run_patches(backend, program, packed, full)]
    results = {
        **_named("few", few),
        **_named("lowest", tuple(part.amin(0) for part in many)),
        **_named("highest", tuple(part.amax(0) for part in many)),
        **_named("stages", stage_by_stage(backend, packed, program, patches, dtype)),
    }
    if backend.supports_patches(device, torch.float32) is None:
        results["picture"] = split_and_merge(backend, task, device)
    torch.set_float32_matmul_precision(task.precision)
    run_patches(backend, program, packed, full)  # another precision may need kernels to be compiled
    seconds = median_seconds(lambda: run_patches(backend, program, packed, full), device)
    return {**results, "milliseconds": torch.tensor(1e3 * seconds / len(full))}


def run_patches(backend: Any, program: PatchProgram, packed: PackedProgram, patches: Tensor) -> PatchResults:
    """`backend.run_patches` with the exits that it predicts."""
    out = PatchResults.empty(patches, program.upscale, program.out_channels)
    backend.run_patches(packed, patches, Exits(BOUNDARY), out)
    return out


def stage_by_stage(
    backend: Any, packed: PackedProgram, program: PatchProgram, patches: Tensor, dtype: torch.dtype
) -> PatchResults:
    """The results for the same patches by `backend.run_stage`, in the order of the patches."""
    frame = pack_torch(program, patches.device, dtype)
    features = run_head(patches, frame)
    ids = torch.arange(len(patches), device=patches.device)
    exit_index, capacity = torch.zeros_like(ids), patches.new_full((len(patches),), math.nan)
    for stage in range(len(program.stages)):
        out, rows, known, n_left = backend.run_stage(packed, stage, features, ids, Exits(BOUNDARY))
        features[rows] = out
        exit_index[rows] = stage
        capacity[rows] = torch.where(known.isnan(), capacity[rows], known)  # the last stage may have no exit
        ids = rows[int(n_left) :]
    return PatchResults(run_tail(patches, features, frame), exit_index, capacity)


def split_and_merge(backend: Any, task: Task, device: torch.device) -> Tensor:
    """Two images, split into patches and merged again. Their size is not a multiple of the patches' size.

    Each patch is multiplied by a factor of its own in between, so that the result shows how patches are blended.
    """
    height, width = task.patch
    size = min(task.patch)
    grid = PatchGrid(height + height // 2 + 1, 2 * width + 1, size, min(2, size - 1))
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(2, 3, grid.height, grid.width, generator=generator).to(device)
    starts = (torch.tensor(s, dtype=torch.int32, device=device) for s in (grid.row_starts, grid.column_starts))
    patches = backend.split(image, *starts, grid.patch_shape)
    patches = patches * torch.linspace(0.5, 1.5, len(patches), device=device)[:, None, None, None]
    blends = (AxisBlend(*(table.to(device) for table in blend)) for blend in (grid.row_blend, grid.column_blend))
    return backend.merge(patches, *blends, 2, grid.shape[0])


def _repeats(program: PatchProgram, task: Task, device: torch.device) -> int:
    """How often the patches are repeated to fill the device. The torch backend holds copies of the widest buffer."""
    widest = max(buffer.channels * buffer.resolution**2 for buffer in program.buffers)
    patch_bytes = 4 * math.prod(task.patch) * max(widest, program.out_channels * program.upscale**2)
    return fill(device, 1, patch_bytes, PATCHES)


def _end_with_parent(limit_s: float) -> None:
    """Make the operating system end this process when the thread that waits for it is gone, even if this process hangs.

    Only Linux can do that, and only from this call on. On every system a timer ends the process after the time limit.
    """
    signal.alarm(math.ceil(limit_s) + 1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _named(what: str, results: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"{what}.{name}": part for name, part in zip(("sr", "exit", "capacity"), results, strict=True)}


def _write(path: Path, tensors: dict[str, Any]) -> None:
    """Write all tensors to `path`, or leave no file of that name."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **{name: tensor.cpu().numpy() for name, tensor in tensors.items()})
    partial.rename(path)
