"""The cuda backend (csrc/cuda): a persistent worker kernel carries patches through the program, on tensor cores.

It is compiled for sm_80 to sm_120. Its tests execute it on the CPU. It was measured on an H200 (docs/kernels.md,
docs/performance.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ape_kernels.backends.cuda.image import image_bytes, run_image, why_no_windows
from ape_kernels.backends.cuda.launch import DTYPES, run_patches, run_stage
from ape_kernels.backends.cuda.layout import pack
from ape_kernels.backends.native_calls import merge_call, split_call
from ape_kernels.backends.torch.predict import predict
from ape_kernels.backends.torch.statistics import statistics
from ape_kernels.geometry import AxisBlend
from ape_kernels.native import core, how_to_build, missing
from ape_kernels.program import PatchProgram
from ape_kernels.sharing import why_not_shared
from ape_kernels.table import ELEMENT_TYPES

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

DEVICE = "cuda"
CAPABILITY = (8, 0)  # the first one with cp.async and with mma.sync of the size that the kernels use


def unavailable() -> str | None:
    if missing():
        return missing()
    if core().build_info()["cuda"] is None:
        return f"the native core was built without CUDA; with nvcc installed {how_to_build('APE_BUILD_CUDA=1')}"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def supports(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != DEVICE:
        return f"runs on CUDA devices, not on {device}"
    if dtype not in DTYPES:
        return f"computes in {' and '.join(map(str, DTYPES))}, not {dtype}: features stay in the type of the operands"
    if program.opaque:
        return f"has no kernels for {program.opaque}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        major, minor = torch.cuda.get_device_capability(device)
        return f"needs compute capability 8.0, {torch.cuda.get_device_name(device)} has {major}.{minor}"
    return None


def supports_images(program: PatchProgram, device: torch.device, dtype: torch.dtype) -> str | None:
    return why_not_shared(program) or why_no_windows(program)


def supports_patches(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != DEVICE:
        return f"runs on CUDA devices, not on {device}"
    return None if dtype in ELEMENT_TYPES else f"splits and merges float32, float16 and bfloat16, not {dtype}"


def split(image: Tensor, row_start: Tensor, column_start: Tensor, patch_shape: tuple[int, int]) -> Tensor:
    with torch.cuda.device_of(image):
        call = split_call(image, row_start, column_start, patch_shape)
        stream = torch.cuda.current_stream().cuda_stream
        core().cuda_split(**call.arguments, dtype=ELEMENT_TYPES[image.dtype], stream=stream)
    return call.result


def merge(patches: Tensor, rows: AxisBlend, columns: AxisBlend, batch: int, patch_rows: int) -> Tensor:
    with torch.cuda.device_of(patches):
        call = merge_call(patches, rows, columns, batch, patch_rows)
        stream = torch.cuda.current_stream().cuda_stream
        core().cuda_merge(**call.arguments, dtype=ELEMENT_TYPES[patches.dtype], stream=stream)
    return call.result
