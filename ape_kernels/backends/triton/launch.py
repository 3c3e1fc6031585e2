"""Starts the kernels: allocates memory and chooses the configuration and how to spread patches over the device.

Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ape_kernels.backends.protocol import Exits, PatchResults, StageResults
from ape_kernels.backends.triton.config import INTERPRETED, Config, choose, shipped_for_images
from ape_kernels.backends.triton.plan import Geometry, Plan, plan
from ape_kernels.backends.triton.spread import begin_kernel, exit_kernel, row_kernel
from ape_kernels.backends.triton.worker import run_patches_kernel, run_stage_kernel
from ape_kernels.precision import matmul_precision
from ape_kernels.table import Column, Opcode, PackedProgram

# If patches are spread over the chip, each row of the table takes one launch. If each patch runs on one worker, the
# other workers are idle. With fewer patches than this share of the workers, spreading is faster. On an H200 (132
# workers) and for EDSR 16x64, 66 patches take 4.4 ms spread and 6.0 ms otherwise; 132 patches take 7.2 and 6.4 ms
# (bench/results/h200).
SPREAD_BELOW = 0.75
INTERPRETED_WORKERS = 2
ANY_BM = 64  # Pixels per tile of all other convolutions than the main one. Larger tiles need registers for addresses.
MAX_REGISTERS = 255  # Per thread. Without it ptxas may aim for two programs per multiprocessor, and spill registers.
STEP_ELEMENTS = 4096 if INTERPRETED else 2048  # pixels times channels that a memory-bound step holds at once


def run_patches(packed: PackedProgram, patches: Tensor, exits: Exits, out: PatchResults) -> None:
    count, _, height, width = patches.shape
    if not count:
        return
    with torch.cuda.device_of(patches):
        call = Call(plan(packed.table, patches.device), packed.weights, height, width, exits)
        config = call.config(lambda c: call.seconds(c, patches, out))
        workers = call.workers(config, patches, out)
        if count < SPREAD_BELOW * workers:
            call.spread(config, patches, out)
        else:
            call.persistent(config, min(workers, count), patches, out)


def run_stage(packed: PackedProgram, stage: int, features: Tensor, active: Tensor, exits: Exits) -> StageResults:
    network = plan(packed.table, features.device)
    if not 0 <= stage < len(network.stage_rows):
        raise ValueError(f"stage: expected 0 to {len(network.stage_rows) - 1}, got {stage}")
    count = len(active)
    _, channels, height, width = features.shape
    out = StageResults(
        features.new_empty(count, *features.shape[1:]),
        torch.empty_like(active),
        features.new_empty(count),
        active.new_zeros(1),
    )
    if not count:
        return out
    row = network.stage_rows[stage]
    resolution = network.buffer(network.rows[row][Column.SRC])[Column.RESOLUTION]
    with torch.cuda.device_of(features):
        call = Call(network, packed.weights, height // resolution, width // resolution, exits)
        config = call.config()
        workers = min(call.workers_by_device(), count)
        zeros = torch.zeros(1 + count, dtype=torch.int32, device=features.device)
        run_stage_kernel[(workers,)](
            features, active, *out, call.exit_at, network.table, call.geometry.buffers, packed.weights,
            call.scratch(workers), zeros[:1], zeros[1:], count, call.height, call.width, channels,
            channels * height * width, call.geometry.arena_size, stage, row,
            int(stage == len(network.stage_rows) - 1), exits.boundary, **call.constants(config),
        )  # fmt: skip
    return out


class Call:
    """One call of an operation: the program, the size of the patches, and what decides the exits."""

    def __init__(self, network: Plan, weights: Tensor, height: int, width: int, exits: Exits) -> None:
        self.network, self.weights, self.boundary = network, weights, exits.boundary
        self.height, self.width = height, width
        self.forced = exits.exit_at is not None
        self.exit_at = network.table if exits.exit_at is None else exits.exit_at  # the table is not read as exit_at
        self.geometry: Geometry = network.geometry(height, width)
        self.device = weights.device

    def config(self, seconds: Callable[[Config], float] | None = None) -> Config:
        """Tiles of the main convolution; `seconds` as in `choose`."""
        return choose(self.network.channels, self.weights.dtype, _capability(self.device), seconds)

    def config_for_images(self) -> tuple[Config, int]:
        """The same for whole images, and the most registers of a thread."""
        return shipped_for_images(self.config(), _capability(self.device))

    def scratch(self, arenas: int, make: Callable[..., Tensor] = torch.zeros) -> Tensor:
        """Memory for so many arenas, zeroed or as `make` makes it. Feature maps are float32 for bfloat16 weights.

        A residual stream needs more bits than bfloat16 has.
        """
        dtype = torch.float16 if self.weights.dtype == torch.float16 else torch.float32
        return make(arenas * self.geometry.arena_size, dtype=dtype, device=self.device)

    def constants(self, config: Config) -> dict[str, Any]:
        """The constant arguments of the kernels that run rows."""
        return {
            "FORCED": self.forced,
            "HAS_ATTENTION": self.network.has(Opcode.ATTENTION),
            "HAS_UPSAMPLE": self.network.has(Opcode.UPSAMPLE),
            **self.step_constants(),
            "CHANNELS": self.network.channels,
            "UNIT": self.network.unit,
            "BM": config.bm,
            "BN": config.bn,
            "BK": config.bk,
            "PIPELINE": config.pipeline,
            "CACHE": config.cache,
            "SWAP": config.swap,
            "ANY_BM": ANY_BM if config.bm > ANY_BM and not INTERPRETED else config.bm,
            "PRECISION": "ieee" if matmul_precision() == "highest" else "tf32",
            "num_warps": config.warps,
            "maxnreg": MAX_REGISTERS,
        }

    def step_constants(self) -> dict[str, int]:
        """The constant arguments of memory-bound steps.

        A kernel that runs them must have as many warps as the main kernel, because the order of a sum depends on it.
        """
        return {"PIXELS": max(1, STEP_ELEMENTS // self.network.wide), "WIDE": self.network.wide}

    def _persistent_arguments(
        self, scratch: Tensor, queue: Tensor, patches: Tensor, out: PatchResults
    ) -> tuple[Any, ...]:
        count, channels = patches.shape[:2]
        return (
            patches, *out, self.exit_at, self.network.table, self.geometry.buffers, self.weights,
            scratch, queue, count, self.height, self.width, channels, out.sr[0].numel(), self.geometry.arena_size,
            self.network.first_row, self.network.tail_row, self.boundary,
        )  # fmt: skip

    def persistent(self, config: Config, workers: int, patches: Tensor, out: PatchResults) -> None:
        """One launch; its workers take patches from a queue."""
        queue = torch.zeros(1, dtype=torch.int32, device=self.device)
        arguments = self._persistent_arguments(self.scratch(workers), queue, patches, out)
        run_patches_kernel[(workers,)](*arguments, **self.constants(config))

    def spread(self, config: Config, patches: Tensor, out: PatchResults) -> None:
        """One launch per row and one arena per patch."""
        network, count, (sr, exit_index, capacity) = self.network, len(patches), out
        buffers, arena_size = self.geometry.buffers, self.geometry.arena_size
        scratch, constants = self.scratch(count), self.constants(config)
        forced, steps = constants.pop("FORCED"), self.step_constants()
        begin_kernel[(count,)](
            patches, exit_index, capacity, buffers, scratch, self.height, self.width, patches.shape[1], arena_size,
            **steps, num_warps=config.warps,
        )  # fmt: skip
        ends = [row - 1 for row in (*network.stage_rows[1:], network.tail_row)]  # last row of each stage
        for row in range(network.first_row, len(network.rows)):
            programs = self._programs(row, config)
            if programs:
                row_kernel[(programs, count)](
                    sr, exit_index, network.table, buffers, self.weights, scratch, row, self.height, self.width,
                    sr[0].numel(), arena_size, IN_TAIL=row > network.tail_row, **constants,
                )  # fmt: skip
            if row in ends:
                stage = ends.index(row)
                exit_kernel[(count,)](
                    exit_index, capacity, self.exit_at, network.table, buffers, self.weights, scratch, row, stage,
                    int(stage == len(ends) - 1), self.height, self.width, arena_size, self.boundary,
                    FORCED=forced, **steps, num_warps=config.warps,
                )  # fmt: skip

    def _programs(self, row: int, config: Config) -> int:
        """How many Triton programs run a row for one patch.

        One per tile; one for a step without tiles; none for a row that is no step.
        """
        columns = self.network.rows[row]
        if columns[Column.OPCODE] not in (Opcode.CONV, Opcode.RECONSTRUCT):
            return int(columns[Column.OPCODE] in (Opcode.ATTENTION, Opcode.UPSAMPLE))
        resolution = self.network.buffer(columns[Column.SRC])[Column.RESOLUTION]
        tiles = triton.cdiv(self.height * self.width * resolution**2, config.bm)
        return tiles * triton.cdiv(columns[Column.OUT_CHANNELS], config.bn)

    def workers_by_device(self) -> int:
        """Multiprocessors of the device."""
        return (
            INTERPRETED_WORKERS if INTERPRETED else torch.cuda.get_device_properties(self.device).multi_processor_count
        )

    def workers(self, config: Config, patches: Tensor, out: PatchResults) -> int:
        """Programs that the device holds at once: its multiprocessors times the programs that fit on one of them."""
        if INTERPRETED:
            return INTERPRETED_WORKERS
        constants = self.constants(config)
        key = (self.weights.dtype, *constants.values())
        if key not in self.network.workers:
            queue = torch.zeros(1, dtype=torch.int32, device=self.device)
            arguments = self._persistent_arguments(self.scratch(0), queue, patches, out)
            compiled = run_patches_kernel.warmup(*arguments, grid=(1,), **constants)
            self.network.workers[key] = self.workers_by_device() * _resident(compiled, self.device)
        return self.network.workers[key]

    def seconds(self, config: Config, patches: Tensor, out: PatchResults) -> float:
        """Milliseconds of the persistent kernel with this configuration; infinity if it does not fit the device."""
        try:
            workers = min(self.workers(config, patches, out), len(patches))
            return triton.testing.do_bench(lambda: self.persistent(config, workers, patches, out))
        except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
            return math.inf


def _resident(compiled: Any, device: torch.device) -> int:
    """How many programs of a compiled kernel fit on a multiprocessor, by threads, registers and shared memory."""
    compiled[(1, 1, 1)]  # loads the kernel; before that its registers are not known
    properties = torch.cuda.get_device_properties(device)
    threads = compiled.metadata.num_warps * 32
    registers = -(-compiled.n_regs // 8) * 8 * threads
    shared = compiled.metadata.shared + 1024  # the driver keeps 1 KB per thread block
    return max(
        1,
        min(
            properties.max_threads_per_multi_processor // threads,
            properties.regs_per_multiprocessor // registers,
            properties.shared_memory_per_multiprocessor // shared,
        ),
    )


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return (0, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)
