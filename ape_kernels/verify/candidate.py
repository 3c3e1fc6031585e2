"""What runs in a process of its own: one backend, on the patches of a task, by the ways that users' calls take.

    few       `run_patches` on some patches, all different
    lowest    `run_patches` on the same ones, repeated until the device is full: the least of each patch's results,
    highest   and the greatest: what a patch gives must not depend on its company
    stages    `run_stage` for one stage after the other, head and tail by torch, as for a budget
    picture   an image split and merged

Of a task for whole images: images.py.

The first process makes the reference besides: the torch backend in float32, and exits that split the patches.
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
MARGIN = 0.04  # no prediction is closer to the boundary: half precision moves one by less than half of it
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(folder: Path, module: str) -> None:
    """Run the backend that `module` is on the task in `folder`; `module`.npz or, if it fails, `module`.json is written.

    Makes the reference first where there is none yet. Ends the process with status 1 when it failed.
    """
    task = Task.read(folder / TASK)
    _end_with_parent(task.limit_s)
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
        memory = isinstance(error, torch.OutOfMemoryError)
        line = next(iter(str(error).strip().splitlines()), "")
        report = {"why_not": f"{type(error).__name__}: {line}", "passing": memory}
        (folder / f"{module}.json").write_text(json.dumps(report))
        sys.exit(1)


def make_reference(task: Task, device: torch.device) -> dict[str, Any]:
    """The patches, weights and biases of the exits, and what is right: torch's results in float32.

    RuntimeError where the program's random weights do not make the patches leave at different exits.
    """
    oracle = importlib.import_module("ape_kernels.backends.torch")
    program = program_of(task.signature)
    patches = make_patches(program, task.patch).to(device)
    packed = oracle.pack(program, device, torch.float32)
    exits = split_exits(pooled_at_exits(program, packed, patches))
    packed = oracle.pack(program_of(task.signature, exits), device, torch.float32)
    sr, exit_index, capacity = run_patches(oracle, program, packed, patches)
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
        "picture": split_and_merge(oracle, task, device),
    }


def exits_of(reference: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights and biases of the exits in what `make_reference` gave."""
    for i in range(sum(name.startswith("exit_bias.") for name in reference)):
        yield torch.from_numpy(reference[f"exit_weight.{i}"]), torch.from_numpy(reference[f"exit_bias.{i}"])


def make_patches(program: PatchProgram, size: tuple[int, int]) -> Tensor:
    """Noise, each patch of its own contrast and brightness, of order one: ``[PATCHES, C, *size]``."""
    generator = torch.Generator().manual_seed(1)
    noise = 2 * torch.rand(PATCHES, program.buffers[0].channels, *size, generator=generator) - 1
    contrast = torch.linspace(0.3, 1.0, PATCHES)
    brightness = torch.linspace(-1.0, 1.0, PATCHES)[5 * torch.arange(PATCHES) % PATCHES]
    return noise * contrast[:, None, None, None] + brightness[:, None, None, None]


def pooled_at_exits(program: PatchProgram, packed: PackedProgram, patches: Tensor) -> list[Tensor]:
    """Means of the feature maps of all patches at each exit, ``[PATCHES, C]`` float64 on the CPU."""
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
    """Weight and bias of each exit so that at each one some of the patches still there leave.

    pooled: of all patches at each exit, ``[patches, C]``. The weights lie along what differs most between the patches
    (their first principal component), so that rounding moves predictions least. The boundary comes to lie in a gap
    between two patches; where there is none of `MARGIN` on both sides, no patch leaves.
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
        # tanh rises by 3/4 of the way there; 1.1 for its curvature
        if leaving and gaps[leaving] / 2 * 0.75 > 1.1 * MARGIN:
            cut = (values[leaving - 1] + values[leaving]) / 2
            there = ranked[leaving:]
        else:
            cut = values[0] + 1
        found.append((weight.float(), torch.tensor([math.atanh(BOUNDARY) - cut])))
    return found


def measure(backend: Any, task: Task, device: torch.device, reference: Any) -> dict[str, Any]:
    """Results of `backend` by every way (see above), and the milliseconds that a patch takes among many."""
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
    run_patches(backend, program, packed, full)  # with another precision there may be something to compile
    seconds = median_seconds(lambda: run_patches(backend, program, packed, full), device)
    return {**results, "milliseconds": torch.tensor(1e3 * seconds / len(full))}


def run_patches(backend: Any, program: PatchProgram, packed: PackedProgram, patches: Tensor) -> PatchResults:
    """`backend.run_patches`, exits as predicted."""
    out = PatchResults.empty(patches, program.upscale, program.out_channels)
    backend.run_patches(packed, patches, Exits(BOUNDARY), out)
    return out


def stage_by_stage(
    backend: Any, packed: PackedProgram, program: PatchProgram, patches: Tensor, dtype: torch.dtype
) -> PatchResults:
    """The same patches by `backend.run_stage`, what leaves scattered back."""
    frame = pack_torch(program, patches.device, dtype)
    features = run_head(patches, frame)
    ids = torch.arange(len(patches), device=patches.device)
    exit_index, capacity = torch.zeros_like(ids), patches.new_full((len(patches),), math.nan)
    for stage in range(len(program.stages)):
        out, rows, known, n_left = backend.run_stage(packed, stage, features, ids, Exits(BOUNDARY))
        features[rows] = out
        exit_index[rows] = stage
        capacity[rows] = torch.where(known.isnan(), capacity[rows], known)  # a rest of blocks may have no exit
        ids = rows[int(n_left) :]
    return PatchResults(run_tail(patches, features, frame), exit_index, capacity)


def split_and_merge(backend: Any, task: Task, device: torch.device) -> Tensor:
    """Two images of a size that the patches do not divide, cut and put together again, each patch scaled first."""
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
    """How often the patches are repeated to fill the device; torch holds some copies of the widest buffer."""
    widest = max(buffer.channels * buffer.resolution**2 for buffer in program.buffers)
    patch_bytes = 4 * math.prod(task.patch) * max(widest, program.out_channels * program.upscale**2)
    return fill(device, 1, patch_bytes, PATCHES)


def _end_with_parent(limit_s: float) -> None:
    """Have the operating system end this process, whatever it hangs in, when the thread that waits for it is gone.

    Only Linux can be asked for that, and only from now on: a timer does it in any case once the time limit is over.
    """
    signal.alarm(math.ceil(limit_s) + 1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _named(what: str, results: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"{what}.{name}": part for name, part in zip(("sr", "exit", "capacity"), results, strict=True)}


def _write(path: Path, tensors: dict[str, Any]) -> None:
    """All tensors, or no file of that name."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **{name: tensor.cpu().numpy() for name, tensor in tensors.items()})
    partial.rename(path)
