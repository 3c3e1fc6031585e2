"""Upscaling from Python: `load` a network, then `Upscaler.upscale` files, PIL images, arrays and tensors."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ape_kernels
from ape_kernels import APEForward, NotRecognised, PatchGrid
from ape_kernels.geometry import PATCH_SIZE
from ape_kernels.policy import Fidelity
from ape_sr.checkpoint import load_network
from ape_sr.data.images import read_image, to_rgb
from ape_sr.distributed import default_device, named_device
from ape_sr.errors import UserError
from ape_sr.models.base import pixel_range
from ape_sr.models.convert import Unsaid
from ape_sr.weights import find_weights

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Picture = TypeVar("Picture", np.ndarray, Tensor, Image.Image)


@dataclass(frozen=True, kw_only=True)
class Report(ape_kernels.Report):
    """What upscaling one image, or one batch of images, did.

    seconds: time of upscaling, without reading files.
    backend: name of the backend that computed.
    """

    seconds: float
    backend: str

    def __str__(self) -> str:
        parts = [f"{self.seconds:.2f} s", f"{self.share:.1%} of the computation"]
        if self.plan is not None:
            parts.append(f"{float(self.plan.picture_fidelity.mean()):.1f} dB expected to full depth")
        if self.interpolated:
            parts.append(f"{self.interpolated / self.exit_index.numel():.0%} interpolated")
        if self.interpolated < self.exit_index.numel():
            parts.append(f"mean exit {self.mean_exit:.2f} of 0..{len(self.patches_per_exit) - 1}")
        return ", ".join([*parts, f"backend {self.backend}"])


def load(
    weights: str | os.PathLike[str],
    *,
    threshold: float | None = None,
    min_gain_db: float | None = None,
    fidelity: Fidelity = "auto",
    budget: float | None = None,
    patch_size: int = PATCH_SIZE,
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
    backend: str = "auto",
    device: str | torch.device | None = None,
    exit_interval: int | None = None,
    res_scale: float | None = None,
    scale: int | None = None,
) -> Upscaler:
    """Load a network, ready to upscale.

    weights: the name of weights that come with the package ("edsr-12x32-x4", "edsr-12x32-x2"), else a file, else the
        name of a file in the folder APE_MODELS. A file is one written by `ape-sr train`, or a state dict of EDSR, RCAN,
        VDSR, ECBSR, RRDBNet (ESRGAN), SRVGGNetCompact or SwinIR (``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``,
        ``.bin``); with spandrel installed of other networks that `APEForward` takes, too.
    fidelity: dB, from 20 to 80, that each part of an image is to have to the network's own picture; planned from the
        image by the fit that the weights carry (`ape-sr fit`). None: full depth. "auto": what the fit says, and full
        depth without one.
    budget: share of all work that each image may take at most; needs a fit too.
    threshold: the paper's way instead: images are cut into patches, and each leaves the network where its predicted
        capacity is below this, from 0 (never) to 1. min_gain_db: the same as dB that a stage must bring.
        Give at most one of these four.
    patch_size: sides of the patches, in pixels of the image.
    dtype: of the matrix products, "fp32", "fp16" or "bf16".
    backend: "auto", "cpu", "torch", "triton" or "cuda".
    device: such as "cpu" or "cuda:1". None: a GPU where there is one and the backend runs on it, else the CPU.
    exit_interval, res_scale, scale: what a state dict does not say: blocks between exits, factor of EDSR's residual
        blocks, and VDSR's upscaling factor. A network that has a scale of its own keeps it.

    Raises UserError for weights that are missing, damaged or of no known network, and for a device that cannot be used;
    ValueError for another argument that is wrong; `ape_kernels.BackendUnavailable` for a backend that cannot run here.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    path = find_weights(Path(weights))
    model = load_network(path, Unsaid(exit_interval, res_scale, scale))
    model = model.to(default_device(backend) if device is None else named_device(str(device)))
    try:
        network = APEForward(
            model,
            threshold,
            min_gain_db=min_gain_db,
            fidelity=fidelity,
            budget=budget,
            patch_size=patch_size,
            backend=backend,
            dtype=DTYPES[dtype],
        )
    except NotRecognised as error:
        raise UserError(f"weights: {path}: {error}") from None
    colors = network.program.in_channels, network.program.out_channels
    if colors != (3, 3):
        raise UserError(f"weights: {path}: expected a network of 3 colours to 3, got {colors[0]} to {colors[1]}")
    return Upscaler(network)


class Upscaler:
    """A network of `ape_sr`, ready to upscale. Made by `load`.

    network: the `APEForward` that computes; its `fidelity`, `budget` and `threshold` may be set between calls.
    """

    def __init__(self, network: APEForward) -> None:
        self.network = network
        _ = self.backend  # packs the weights now, so that the first image is not timed with it

    @property
    def scale(self) -> int:
        """Sides of the picture divided by sides of the image."""
        return self.network.scale

    @property
    def backend(self) -> str:
        """Name of the backend that computes; never "auto"."""
        return self.network.packed_for_images.backend

    @overload
    def upscale(self, image: Picture, *, return_report: Literal[False] = False) -> Picture: ...
    @overload
    def upscale(self, image: Picture, *, return_report: Literal[True]) -> tuple[Picture, Report]: ...
    @overload
    def upscale(self, image: str | os.PathLike[str], *, return_report: Literal[False] = False) -> Image.Image: ...
    @overload
    def upscale(self, image: str | os.PathLike[str], *, return_report: Literal[True]) -> tuple[Image.Image, Report]: ...
    def upscale(
        self, image: np.ndarray | Tensor | Image.Image | str | os.PathLike[str], *, return_report: bool = False
    ) -> np.ndarray | Tensor | Image.Image | tuple[np.ndarray | Tensor | Image.Image, Report]:
        """Upscale an image; the picture is of the same kind.

        image: a file's path (the picture is then a PIL image), a PIL image of 8 bits per channel (the picture is RGB),
            an array ``[H, W, 3]``, or a tensor ``[3, H, W]`` or ``[B, 3, H, W]`` on any device. Arrays and tensors are
            uint8, or of a float dtype with values from 0 to 1; the picture has the same dtype.
        return_report: give ``(picture, report)`` instead of the picture.

        Raises UserError for a file that cannot be read and for more than 8 bits per channel, TypeError for another type
        or dtype, ValueError for another shape or values outside the range.
        """
        if isinstance(image, (str, os.PathLike)):
            image = Image.fromarray(read_image(Path(image)))
        if isinstance(image, Tensor):
            if image.ndim not in (3, 4) or image.shape[-3] != 3:
                raise ValueError(f"image: expected a tensor [3, H, W] or [B, 3, H, W], got {list(image.shape)}")
            picture, report = self._upscale(image if image.ndim == 4 else image[None])
            picture = picture if image.ndim == 4 else picture[0]
        elif isinstance(image, np.ndarray):
            picture, report = self._upscale_array(image)
        elif isinstance(image, Image.Image):
            picture, report = self._upscale_array(to_rgb(image, "image"))
            picture = Image.fromarray(picture)
        else:
            raise TypeError(f"image: expected a path, PIL image, array or tensor, got {type(image).__name__}")
        return (picture, report) if return_report else picture

    def exit_map(self, picture: np.ndarray | Image.Image, report: ape_kernels.Report) -> np.ndarray:
        """How deep each part of an image ran: the picture in grey, tinted brighter for more work, with a legend.

        picture, report: of one image, as `upscale` gave them; uint8 ``[H, W, 3]`` if an array.
        Returns uint8 ``[H + legend, max(W, legend), 3]``.
        """
        from ape_sr.exit_map import draw_exit_map  # Matplotlib takes as long to import as a small image to upscale

        pixels = np.asarray(picture)
        height, width = (side // self.scale for side in pixels.shape[:2])
        cut = (self.network.patch_size, self.network.overlap) if report.cell is None else (report.cell, 0)
        grid = PatchGrid(height, width, *cut, self.scale)
        exits = report.exit_index[0].cpu().numpy()
        return draw_exit_map(pixels, exits, grid, len(report.patches_per_exit), report.share)

    def _upscale_array(self, image: np.ndarray) -> tuple[np.ndarray, Report]:
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image: expected an array [H, W, 3], got {list(image.shape)}")
        if image.dtype != np.uint8 and image.dtype.kind != "f":
            raise TypeError(f"image: expected uint8 or a float dtype, got {image.dtype}")
        pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)  # a copy: arrays may be read-only
        picture, report = self._upscale(pixels[None])
        return picture[0].permute(1, 2, 0).contiguous().numpy(), report

    def _upscale(self, images: Tensor) -> tuple[Tensor, Report]:
        """``[B, 3, H, W]``, uint8 or float from 0 to 1; the picture on the device of `images`."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"image: expected uint8 or a float dtype, got {images.dtype}")
        if images.is_floating_point() and images.numel():
            low, high = (float(value) for value in torch.aminmax(images.detach()))
            if not (low >= 0 and high <= 1):
                raise ValueError(f"image: expected values from 0 to 1, got {low:.6g} to {high:.6g}")
        started = time.perf_counter()
        peak = 255 if images.dtype == torch.uint8 else 1
        rgb_range = pixel_range(self.network.model)
        device = next(self.network.parameters()).device
        with torch.no_grad():
            sr, report = self.network(images.to(device).float() * (rgb_range / peak), return_report=True)
            levels = (sr * (peak / rgb_range)).clamp(0, peak)
            if images.dtype == torch.uint8:
                levels = levels.round()
            picture = levels.to(images.device, images.dtype)
        seconds = time.perf_counter() - started
        return picture, Report(**vars(report), seconds=seconds, backend=self.backend)
