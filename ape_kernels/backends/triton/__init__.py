"""The triton backend: persistent kernels that carry patches through the instruction table.

conv.py, steps.py   what each row of the table does for one patch
worker.py           the two operations as persistent kernels that take patches from a queue
spread.py           the same for few patches: one launch per row
launch.py           starts the kernels
image_kernels.py    whole images on shared feature maps: one launch per row
image.py            starts these kernels
plan.py             what a launch needs to know of a table
config.py           tile configurations
split_merge.py      split and merge
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ape_kernels.backends.torch.predict import predict
from ape_kernels.backends.torch.statistics import statistics
from ape_kernels.backends.triton.plan import program_unit
from ape_kernels.program import ChannelAttention, Conv, Exit, PatchProgram, Reconstruct, Step
from ape_kernels.sharing import why_not_shared
from ape_kernels.table import PackedProgram, bias_of, matrices_and_biases
from ape_kernels.table import pack as pack_program

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

if importlib.util.find_spec("triton") is not None:
    from ape_kernels.backends.triton.config import INTERPRETED
    from ape_kernels.backends.triton.image import image_bytes, run_image
    from ape_kernels.backends.triton.launch import run_patches, run_stage
    from ape_kernels.backends.triton.split_merge import merge, split

    __all__ = [
        "image_bytes",
        "merge",
        "pack",
        "predict",
        "run_image",
        "run_patches",
        "run_stage",
        "split",
        "statistics",
        "supports",
        "supports_images",
        "supports_patches",
        "unavailable",
    ]


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "torch sees no CUDA device (TRITON_INTERPRET=1 runs its kernels on the CPU, slowly)"


def supports(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    if (reason := _device(device)) is not None:
        return reason
    if dtype not in DTYPES or (INTERPRETED and dtype == torch.bfloat16):
        return f"computes in {', '.join(map(str, DTYPES))} (the last one not in the interpreter), not {dtype}"
    if program.opaque:
        return f"has no kernels for {program.opaque}"
    return None


def supports_images(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    return why_not_shared(program)


def supports_patches(device: torch.device, dtype: torch.dtype) -> str | None:
    return _device(device)


def pack(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> PackedProgram:
    unit = program_unit(program)
    return pack_program(program, lambda step: _layout(step, program, unit), dtype=dtype, device=device)


def _device(device: torch.device) -> str | None:
    wanted = "cpu" if INTERPRETED else "cuda"
    return None if device.type == wanted else f"runs on {wanted} devices, not on {device}"


def _layout(step: Step, program: PatchProgram, unit: int) -> tuple[Tensor, Tensor]:
    """A step's weights and biases as the triton column of docs/program.md, "Weight layouts", describes them."""
    match step:
        case Conv():
            channels = [program.buffers[source].channels for source in step.sources]
            parts = [_taps(part, unit) for part in step.weight.split(channels, dim=1)]
            return torch.cat(parts), _pad(bias_of(step), unit, 0)
        case Exit():
            return step.weight, step.bias
        case ChannelAttention():
            return matrices_and_biases(step)
        case Reconstruct():
            kernels, biases = step.tail.kernel.flatten(0, 1), step.tail.bias.flatten(0, 1)
            return torch.cat([_taps(kernel, unit) for kernel in kernels]), _pad(biases, unit, 1).flatten()


def _taps(kernel: Tensor, unit: int) -> Tensor:
    """``[C_out, C_in, k, k]`` to ``[k * k][C_out][C_in]``, flat, with channels padded to multiples of `unit`."""
    return _pad(_pad(kernel, unit, 0), unit, 1).flatten(2).permute(2, 0, 1).flatten()


def _pad(values: Tensor, unit: int, dim: int) -> Tensor:
    missing = -values.shape[dim] % unit
    return torch.nn.functional.pad(values, (0, 0) * (values.ndim - 1 - dim) + (0, missing))
