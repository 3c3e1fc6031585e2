"""The torch backend: it has every step, runs on any device, and is the reference that the others are tested against."""

from __future__ import annotations

from functools import partial

import torch

from ape_kernels.backends.torch.image import image_bytes, run_image
from ape_kernels.backends.torch.interpreter import run_patches, run_stage
from ape_kernels.backends.torch.predict import predict
from ape_kernels.backends.torch.split_merge import merge, split
from ape_kernels.backends.torch.statistics import statistics
from ape_kernels.program import ChannelAttention, Conv, Exit, PatchProgram, Reconstruct, Weighted
from ape_kernels.sharing import why_not_shared
from ape_kernels.table import PackedProgram, bias_of, matrices_and_biases
from ape_kernels.table import pack as pack_program

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

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    return None


def supports(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    return None if dtype in DTYPES else f"computes in {', '.join(map(str, DTYPES))}, not {dtype}"


def supports_images(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    return why_not_shared(program)


def supports_patches(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def pack(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> PackedProgram:
    return pack_program(program, partial(_layout, dtype), dtype=dtype, device=device)


def _layout(dtype: torch.dtype, step: Weighted) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as PyTorch stores them, flattened."""
    match step:
        case Conv():
            return step.weight.flatten(), _in_two(bias_of(step), dtype)
        case Exit():
            return step.weight, step.bias
        case ChannelAttention():
            return matrices_and_biases(step)
        case Reconstruct():
            return step.tail.kernel.to(dtype).flatten(), _in_two(step.tail.bias.flatten(), dtype)


def _in_two(bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The bias rounded to `dtype`, then the rest of it. A bias in bfloat16 alone would change grey levels."""
    rounded = bias.to(dtype).to(bias.dtype)
    return torch.cat([rounded, bias - rounded])
