"""Upscaling from Python: `load` a network, then `Upscaler.upscale` files, PIL images, arrays and tensors."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ape_kernels
from ape_kernels import APEForward, NotRecognised, PatchGrid
from ape_kernels.geometry import PATCH_SIZE
from ape_kernels.plan import Plan
from ape_kernels.policy import Fidelity
from ape_kernels.progress import Progress
from ape_kernels.run.levels import Levels
from ape_sr.checkpoint import load_network
from ape_sr.distributed import default_device, named_device
from ape_sr.errors import UserError
from ape_sr.models.base import pixel_range
from ape_sr.models.convert import Unsaid
from ape_sr.pictures.planes import LUMA, bound, cover_hidden, from_planes, peak_of, to_planes
from ape_sr.pictures.read import pixels_of, read_file
from ape_sr.weights import find_weights

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

COUNTS = ("interpolated", "flops", "flops_full", "body_flops", "body_flops_full")

Picture = TypeVar("Picture", np.ndarray, Tensor, Image.Image)


@dataclass(frozen=True, kw_only=True, repr=False)
class Report(ape_kernels.Report):
    """What upscaling one image, or one batch of images, did. Transparency counts as an image of its own.

    seconds: time of upscaling, without files.
    backend: name of the backend that computed.
    """

    seconds: float
    backend: str

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {super().__str__()}, backend {self.backend}"


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
    dtype: of the matrix products, "fp32", "fp16" or "bf16"; on a CPU "fp16" only with the backend "torch".
    backend: "auto", "cpu", "torch", "triton" or "cuda".
    device: such as "cpu" or "cuda:1". None: a GPU where there is one and the backend runs on it, else the CPU.
    exit_interval, res_scale, scale: what a state dict does not say: blocks between exits, factor of EDSR's residual
        blocks, and VDSR's upscaling factor. Refused where the weights say it and it is another; the scale of the
        picture is the network's, and `ape-sr upscale -s` resizes.

    Raises UserError for weights that are missing, damaged, of no known network or of another scale, for a device that
    cannot be used, and for a dtype that is only slower there; TypeError for weights that are no path, ValueError for
    another argument that is wrong; `ape_kernels.BackendUnavailable` for a backend that cannot run here.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights: expected a name or a path, got {type(weights).__name__}")
    path = find_weights(Path(weights))
    model = load_network(path, Unsaid(exit_interval, res_scale, scale))
    place = default_device(backend) if device is None else named_device(str(device))
    if dtype == "fp16" and place.type == "cpu" and backend == "auto" and "APE_BACKEND" not in os.environ:
        raise UserError(
            "dtype: expected fp32 or bf16 on a CPU, got fp16, in which only the torch backend computes there, many "
            "times slower; name that backend if you want it"
        )
    model = model.to(place)
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
    if scale not in (None, network.scale):
        raise UserError(f"scale: expected {network.scale}, the scale of {path}, got {scale}")
    return Upscaler(network)


class Upscaler:
    """A network of `ape_sr`, ready to upscale. Made by `load`.

    network: the `APEForward` that computes; its `fidelity`, `budget` and `threshold` may be set between calls.
    """

    def __init__(self, network: APEForward) -> None:
        self.network = network
        _ = self.backend  # packs the weights now, so that the first image is not timed with it

    def __repr__(self) -> str:
        network = self.network
        depth = "full depth"
        if network.budget is not None:
            depth = f"budget {network.budget:g}"
        elif network.fidelity is not None:
            depth = f"fidelity {network.fidelity:g} dB"
        elif network.context == "patch" and network.threshold:
            depth = f"threshold {network.threshold:g}"
        name = type(network.model).__name__
        return f"Upscaler({name} x{self.scale}, {depth}, backend {self.backend} on {self.device})"

    @property
    def scale(self) -> int:
        """Sides of the picture divided by sides of the image."""
        return self.network.scale

    @property
    def backend(self) -> str:
        """Name of the backend that computes; never "auto"."""
        return self.network.packed_for_images.backend

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def check_finite(self, sr: Tensor) -> None:
        """UserError for a picture of the network in which values have overflowed in fp16."""
        if self.network.dtype == torch.float16 and not torch.isfinite(sr).all():
            raise UserError("dtype: expected fp32 or bf16 for this network, whose values overflow in fp16")

    @overload
    def upscale(
        self, image: Picture, *, return_report: Literal[False] = False, progress: Progress | None = None
    ) -> Picture: ...
    @overload
    def upscale(
        self, image: Picture, *, return_report: Literal[True], progress: Progress | None = None
    ) -> tuple[Picture, Report]: ...
    @overload
    def upscale(
        self,
        image: str | os.PathLike[str],
        *,
        return_report: Literal[False] = False,
        progress: Progress | None = None,
    ) -> Image.Image: ...
    @overload
    def upscale(
        self, image: str | os.PathLike[str], *, return_report: Literal[True], progress: Progress | None = None
    ) -> tuple[Image.Image, Report]: ...
    def upscale(
        self,
        image: np.ndarray | Tensor | Image.Image | str | os.PathLike[str],
        *,
        return_report: bool = False,
        progress: Progress | None = None,
    ) -> np.ndarray | Tensor | Image.Image | tuple[np.ndarray | Tensor | Image.Image, Report]:
        """Upscale an image; the picture is of the same kind.

        image: a file's path (the picture is then a PIL image, of the first frame), a PIL image, an array, or a tensor
            ``[3, H, W]`` or ``[B, 3, H, W]`` on any device. Arrays are ``[H, W]``, grey, or ``[H, W, C]``: C = 1 grey,
            2 grey and alpha, 3 RGB, 4 RGB and alpha. Arrays are uint8 or uint16, tensors uint8; both may be of a float
            dtype with values from 0 to 1. The picture has the same dtype and channels. PIL images come out as L, LA,
            RGB, RGBA or I;16. Alpha is enlarged by the network too, and colours that it hides do not bleed.
        return_report: give ``(picture, report)`` instead of the picture.
        progress: called now and then with the share of the picture that is done, from 0 to 1. What it raises ends the
            call.

        Raises UserError for a file that cannot be read, for a PIL image of more than 16 bits per channel and for a file
        with 16 bits in colour, which PIL cannot hold; TypeError for another type or dtype, ValueError for another shape
        or values outside the range.
        """
        if isinstance(image, (str, os.PathLike)):
            (frame,) = read_file(Path(image), first_frame=True).frames
            picture, report = self._upscale_array(frame.pixels, progress)
            picture = _as_pil(picture, str(image))
        elif isinstance(image, Tensor):
            if image.ndim not in (3, 4) or image.shape[-3] != 3:
                raise ValueError(f"image: expected a tensor [3, H, W] or [B, 3, H, W], got {list(image.shape)}")
            picture, report = self._upscale_tensor(image if image.ndim == 4 else image[None], progress)
            picture = picture if image.ndim == 4 else picture[0]
        elif isinstance(image, np.ndarray):
            picture, report = self._upscale_array(image[..., None] if image.ndim == 2 else image, progress)
            picture = picture[..., 0] if image.ndim == 2 else picture
        elif isinstance(image, Image.Image):
            picture, report = self._upscale_array(pixels_of(image, "image"), progress)
            picture = _as_pil(picture, "image")
        else:
            raise TypeError(f"image: expected a path, PIL image, array or tensor, got {type(image).__name__}")
        return (picture, report) if return_report else picture

    def exit_map(self, picture: np.ndarray | Image.Image, report: ape_kernels.Report) -> np.ndarray:
        """How deep each part of an image ran: the picture in grey, tinted brighter for more work, with a legend.

        picture, report: of one image, as `upscale` gave them; no tensor.
        Returns uint8 ``[h + legend, max(w, legend), 3]``: h x w is the picture, reduced to at most 4 megapixels.
        """
        from ape_sr.exit_map import draw_exit_map  # Matplotlib takes as long to import as a small image to upscale

        pixels = np.asarray(picture)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        height, width = (side // self.scale for side in pixels.shape[:2])
        cut = (self.network.patch_size, self.network.overlap) if report.cell is None else (report.cell, 0)
        grid = PatchGrid(height, width, *cut, self.scale)
        exits = report.exit_index[0].cpu().numpy()
        return draw_exit_map(pixels, exits, grid, len(report.patches_per_exit), report.share)

    def _upscale_array(self, image: np.ndarray, progress: Progress | None) -> tuple[np.ndarray, Report]:
        """``[H, W, C]``, see `upscale`."""
        if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4):
            raise ValueError(
                f"image: expected an array [H, W] or [H, W, C] with C from 1 to 4, got {list(image.shape)}"
            )
        if 0 in image.shape:
            raise ValueError(f"image: expected H and W at least 1, got {list(image.shape)}")
        if image.dtype.kind == "f":
            _check_values(float(image.min()), float(image.max()))
        elif image.dtype not in (np.uint8, np.uint16):
            raise TypeError(f"image: expected uint8, uint16 or a float dtype, got {image.dtype}")
        started = time.perf_counter()
        height, width, channels = image.shape
        picture = np.empty((height * self.scale, width * self.scale, channels), image.dtype)
        colours, alpha = (image, None) if channels % 2 else (image[..., :-1], image[..., -1])
        if alpha is not None:
            colours = cover_hidden(colours, alpha)
        has_detail = alpha is not None and alpha.min() != alpha.max()
        of_colours, of_alpha = _halves(progress) if has_detail else (progress, None)
        reports = [self.fill(colours, picture[..., : colours.shape[2]], of_colours)]
        if alpha is not None:
            if not has_detail:
                picture[..., -1] = alpha.flat[0]
            else:
                reports.append(self.fill(alpha[..., None], picture[..., -1:], of_alpha))
                bound(picture[..., -1], alpha, self.scale)
        return picture, self._timed(reports, time.perf_counter() - started)

    def fill(
        self, colours: np.ndarray, out: np.ndarray, progress: Progress | None = None, plan: Plan | None = None
    ) -> ape_kernels.Report:
        """Upscale an array into another.

        colours: uint8, uint16 or float ``[H, W, 1 or 3]``. out: of the same dtype, ``[scale * H, scale * W, 1 or 3]``.
        progress: as for `upscale`. plan: instead of the one that the settings ask for.
        """
        rgb_range = pixel_range(self.network.model)
        runner = self.network.runner()

        def pixels() -> Tensor:
            return torch.from_numpy(to_planes(colours, rgb_range)).to(self.device)

        if colours.dtype.kind != "f":
            levels = Levels(np.broadcast_to(colours, (*colours.shape[:2], 3)), out, rgb_range)
            if (report := runner.run_levels(levels, pixels, progress, plan)) is not None:
                return report

        def put(first: int, strip: Tensor) -> None:
            self.check_finite(strip)
            rows = out[first : first + strip.shape[1]]
            if strip.device.type == "cpu":
                from_planes(strip.numpy(), rgb_range, rows)
            else:
                from_device(strip, rgb_range, rows)

        _, report = runner.run(pixels(), plan=plan, report=True, progress=progress, put=put)
        assert report is not None
        return report

    def _upscale_tensor(self, images: Tensor, progress: Progress | None) -> tuple[Tensor, Report]:
        """``[B, 3, H, W]``, uint8 or float from 0 to 1; the picture on the device of `images`."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"image: expected uint8 or a float dtype, got {images.dtype}")
        if images.is_floating_point() and images.numel():
            _check_values(*(float(value) for value in torch.aminmax(images.detach())))
        started = time.perf_counter()
        peak = 255 if images.dtype == torch.uint8 else 1
        rgb_range = pixel_range(self.network.model)
        sr, report = self._run(images.to(self.device).float() * (rgb_range / peak), progress)
        levels = (sr * (peak / rgb_range)).clamp(0, peak)
        if images.dtype == torch.uint8:
            levels = levels.round()
        picture = levels.to(images.device, images.dtype)
        return picture, self._timed([report], time.perf_counter() - started)

    def _run(self, images: Tensor, progress: Progress | None) -> tuple[Tensor, ape_kernels.Report]:
        """The one call of the network: float32 ``[B, 3, H, W]`` on its device and in its range."""
        with torch.no_grad():
            sr, report = self.network(images, return_report=True, progress=progress)
        self.check_finite(sr)
        return sr, report

    def _timed(self, reports: Sequence[ape_kernels.Report], seconds: float) -> Report:
        return Report(**_joined(reports), seconds=seconds, backend=self.backend)


def _check_values(low: float, high: float) -> None:
    """ValueError unless the least and the greatest value of a float image are in its range."""
    if not (low >= 0 and high <= 1):
        raise ValueError(f"image: expected values from 0 to 1, got {low:.6g} to {high:.6g}")


def _halves(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """For two calls after each other, what they tell of the work as a whole."""
    if progress is None:
        return None, None
    return (lambda share: progress(share / 2)), (lambda share: progress((1 + share) / 2))


def from_device(planes: Tensor, rgb_range: float, out: np.ndarray) -> None:
    """`from_planes`, computed where the planes are: a GPU rounds faster, and its levels are smaller to fetch."""
    peak = peak_of(out.dtype)
    levels = planes * (peak / rgb_range)
    if out.shape[2] == 1:
        levels = torch.tensordot(torch.tensor(LUMA, device=planes.device), levels, 1)[None]
    levels = levels.clamp(0, peak)
    if out.dtype.kind != "f":
        levels = levels.round().to(torch.uint8 if peak == 255 else torch.int32)
    out[...] = levels.permute(1, 2, 0).contiguous().cpu().numpy()


def add_reports(reports: Sequence[Report]) -> Report:
    """One report of the frames of a picture: those of one size become a batch, of several the patches become a row."""
    seconds = sum(report.seconds for report in reports)
    return Report(**_joined(reports), seconds=seconds, backend=reports[0].backend)


def _joined(reports: Sequence[ape_kernels.Report]) -> dict[str, Any]:
    """Fields of one report of several."""
    exits, capacities = ([getattr(report, name) for report in reports] for name in ("exit_index", "capacity"))
    along = 0
    if len({exit_index.shape[1:] for exit_index in exits}) > 1:
        along = 2
        exits, capacities = ([each.reshape(1, 1, -1) for each in parts] for parts in (exits, capacities))
    return {
        "exit_index": torch.cat(exits, along),
        "capacity": torch.cat(capacities, along),
        "patches_per_exit": torch.stack([report.patches_per_exit for report in reports]).sum(0),
        **{name: sum(getattr(report, name) for report in reports) for name in COUNTS},
        "cell": reports[0].cell,
        "plan": reports[0].plan if len(reports) == 1 else None,
    }


def _as_pil(pixels: np.ndarray, name: str) -> Image.Image:
    if pixels.dtype == np.uint16 and pixels.shape[2] > 1:
        raise UserError(f"{name}: expected 8 bits per channel in colour, as PIL holds no more; upscale it as an array")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
