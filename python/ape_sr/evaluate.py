"""Measures quality against computation on a folder of pictures, as papers report it."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ape_kernels import APEForward, Report
from ape_sr.data.degrade import bicubic_downscale, bicubic_upscale, modcrop
from ape_sr.data.images import list_images, read_image, to_image, to_tensor
from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.flops import uncollapsed_flops
from ape_sr.metrics import psnr_rgb, psnr_y, ssim_rgb, ssim_y
from ape_sr.models.base import pixel_range

HR, LR = "_HR", "_LR"
SSIM_WINDOW = 11  # so many pixels must remain per side after the border is cut


@dataclass(frozen=True)
class ImagePair:
    """The file of a picture, and the file of its low-resolution version, or None if that has to be made."""

    name: str
    hr: Path
    lr: Path | None

    def read(self, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """LR and HR, uint8 ``[h, w, 3]`` and ``[s * h, s * w, 3]``.

        Raises UserError when a file cannot be read, or when the sizes do not fit together or are too small.
        """
        hr = modcrop(read_image(self.hr), scale)
        smallest = -(-(2 * (scale + 6) + SSIM_WINDOW) // scale) * scale
        if min(hr.shape[:2]) < smallest:
            raise UserError(f"{self.hr}: expected sides of at least {smallest} pixels, got {hr.shape[1]}x{hr.shape[0]}")
        if self.lr is None:
            return bicubic_downscale(hr, scale), hr
        lr = read_image(self.lr)
        expected = (hr.shape[0] // scale, hr.shape[1] // scale)
        if lr.shape[:2] != expected:
            got = f"{lr.shape[1]}x{lr.shape[0]}"
            raise UserError(f"{self.lr}: expected {expected[1]}x{expected[0]}, 1/{scale} of {self.hr.name}, got {got}")
        return lr, hr


@dataclass(frozen=True)
class Result:
    """The result of one method for one picture.

    psnr_y, psnr_rgb: in dB, on Y without a border of `scale` pixels, on RGB without ``scale + 6``. ssim_y, ssim_rgb:
    the same for SSIM. seconds: of the upscaling alone.
    flops_share, body_share: FLOPs as shares of full depth, of the whole network and of its body. paper_share: of the
    whole network with its tail not collapsed; None for cells. mean_exit: counted from 0, over all that the network ran
    on. These are None for a method without exits.
    patches_per_exit: numbers of patches or cells; empty for a method without exits. interpolated: number of cells that
    the network did not run on.
    """

    image: str
    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float
    seconds: float
    flops_share: float | None = None
    body_share: float | None = None
    paper_share: float | None = None
    mean_exit: float | None = None
    patches_per_exit: tuple[int, ...] = ()
    interpolated: int = 0


COUNTS = ("patches_per_exit", "interpolated")
NUMBERS = [name for name in Result.__dataclass_fields__ if name not in ("image", *COUNTS)]


@dataclass(frozen=True)
class Method:
    """A way to upscale images.

    kind: "bicubic"; "plain", the network's own forward on the whole image; "full", the same by `APEForward`;
    "fidelity" or "budget", planned from the image by the fit that the network carries; "threshold", the paper's way:
    patches on their own, which leave early. value: fidelity in dB, budget or threshold, else None.
    """

    kind: str
    value: float | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        return self.kind if self.value is None else f"{self.kind} {self.value:.4g}"


BICUBIC, PLAIN, FULL = Method("bicubic"), Method("plain"), Method("full")
PLANNED = ("fidelity", "budget")


def at_thresholds(values: Iterable[float]) -> list[Method]:
    """One method per threshold."""
    return [Method("threshold", value) for value in values]


@dataclass(frozen=True)
class Row:
    """The results of one method for all pictures."""

    method: Method
    results: tuple[Result, ...]

    def mean(self, field: str) -> float | None:
        """Mean of a field of `Result` over the pictures, or None if the method has no such number."""
        values = [getattr(result, field) for result in self.results]
        return None if None in values else float(np.mean(values))

    def number(self, field: str) -> float:
        """The same as `mean`, for a field that the method has."""
        value = self.mean(field)
        assert value is not None
        return value

    @property
    def patches_per_exit(self) -> list[int]:
        """Numbers of patches per exit, summed over the pictures."""
        return [sum(counts) for counts in zip(*(result.patches_per_exit for result in self.results), strict=True)]

    @property
    def interpolated(self) -> int:
        """Number of interpolated cells, summed over the pictures."""
        return sum(result.interpolated for result in self.results)

    def as_json(self) -> dict[str, object]:
        """All results as plain values. Infinite PSNR (of equal pictures), and the mean exit of nothing, become None."""
        images = [{key: _finite(value) for key, value in asdict(result).items()} for result in self.results]
        mean = {field: _finite(self.mean(field)) for field in NUMBERS}
        return {
            "method": self.method.name,
            "threshold": self.method.value if self.method.kind == "threshold" else None,
            **{kind: self.method.value if self.method.kind == kind else None for kind in PLANNED},
            "mean": {**mean, **{name: getattr(self, name) for name in COUNTS}},
            "images": images,
        }


def find_pairs(folder: Path) -> list[ImagePair]:
    """The image pairs of a folder: files ``<name>_HR.*`` and ``<name>_LR.*``, or only HR pictures with any names.

    Raises UserError when one file of a pair is missing, when some names have these endings and others do not, and for a
    folder without pictures.
    """
    paths = list_images(folder)
    if not any(path.stem.endswith((HR, LR)) for path in paths):
        return [ImagePair(path.stem, path, None) for path in paths]
    by_stem = {path.stem: path for path in paths}
    for path in paths:
        if not path.stem.endswith((HR, LR)):
            raise UserError(f"{path}: expected a name ending in {HR} or {LR}, as others in this folder have")
        partner = path.stem[: -len(HR)] + (LR if path.stem.endswith(HR) else HR)
        if partner not in by_stem:
            raise UserError(f"{path}: expected {partner}{path.suffix} beside it")
    names = sorted(stem.removesuffix(HR) for stem in by_stem if stem.endswith(HR))
    return [ImagePair(name, by_stem[name + HR], by_stem[name + LR]) for name in names]


# Called with (pair, method, picture uint8 [H, W, 3], report) for every picture of a method with exits.
Watch = Callable[[ImagePair, Method, np.ndarray, Report], None]


def evaluate(
    network: APEForward,
    pairs: Iterable[ImagePair],
    methods: Sequence[Method],
    watch: Watch | None = None,
    skip: Callable[[UserError], None] | None = None,
) -> list[Row]:
    """Run every method on every pair.

    network: its model, patches, backend and dtype count; what says how far images run is the methods'.
    watch: called for every picture of a method with exits. skip: called with what is wrong with a pair, which is then
    left out: a picture that cannot be read, does not fit its pair or is too small. Without it that is raised.

    Raises UserError for that, and for a fidelity or budget that the network cannot have.
    """
    runners = {kind: _runner(network, kind) for kind in {method.kind for method in methods} - {"bicubic", "plain"}}
    uncollapsed = uncollapsed_flops(network.model, network.program)
    columns: list[list[Result]] = [[] for _ in methods]
    for pair in pairs:
        try:
            lr, hr = pair.read(network.scale)
        except UserError as error:
            if skip is None:
                raise
            skip(error)
            continue
        for column, method in zip(columns, methods, strict=True):
            runner = runners.get(method.kind, network)
            column.append(_result(runner, pair, method, lr, hr, uncollapsed, watch))
    return [Row(method, tuple(column)) for method, column in zip(methods, columns, strict=True)]


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a table of text, with means over the pictures and summed patches per exit."""
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.method.name,
        "PSNR Y": lambda row: f"{row.mean('psnr_y'):.3f}",
        "SSIM Y": lambda row: f"{row.mean('ssim_y'):.4f}",
        "PSNR RGB": lambda row: f"{row.mean('psnr_rgb'):.3f}",
        "SSIM RGB": lambda row: f"{row.mean('ssim_rgb'):.4f}",
        "FLOPs": lambda row: _optional(row.mean("flops_share"), ".1%"),
        "body FLOPs": lambda row: _optional(row.mean("body_share"), ".1%"),
        "uncollapsed": lambda row: _optional(row.mean("paper_share"), ".1%"),
        "mean exit": lambda row: _optional(row.mean("mean_exit"), ".2f"),
        "seconds": lambda row: f"{row.mean('seconds'):.3f}",
        "interpolated": lambda row: str(row.interpolated) if row.patches_per_exit else "-",
        "patches per exit": lambda row: " ".join(map(str, row.patches_per_exit)) or "-",
    }
    cells = [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = []
    for first, *others in cells:
        aligned = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join((f"{first:<{widths[0]}}", *aligned)))
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line per method, with means over the pictures and summed patches per exit.

    A number that a method does not have is left empty.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", *NUMBERS, *COUNTS])
        for row in rows:
            means = (row.mean(field) for field in NUMBERS)
            numbers = ["" if value is None else f"{value:.6g}" for value in means]
            writer.writerow([row.method.name, *numbers, " ".join(map(str, row.patches_per_exit)), row.interpolated])


def _runner(network: APEForward, kind: str) -> APEForward:
    """The same network, to run images as methods of one kind do."""
    return APEForward(
        network.model,
        fidelity=None if kind == "full" else "auto",
        context="patch" if kind == "threshold" else None,
        patch_size=network.patch_size,
        overlap=network.overlap,
        blend=network.blend,
        backend=network.backend,
        dtype=network.dtype,
    )


def _result(
    network: APEForward,
    pair: ImagePair,
    method: Method,
    lr: np.ndarray,
    hr: np.ndarray,
    uncollapsed: Sequence[int],
    watch: Watch | None,
) -> Result:
    scale, rgb_range = network.scale, pixel_range(network.model)
    report = None
    started = time.perf_counter()
    if method.kind == "bicubic":
        picture = bicubic_upscale(lr, scale)
    else:
        pixels = to_tensor(lr, rgb_range).to(next(network.parameters()).device)
        if method.value is not None:
            _set(network, method.kind, method.value)
        with torch.inference_mode():
            sr, report = (network.model(pixels), None) if method.kind == "plain" else network(pixels, True)
        picture = to_image(sr, rgb_range)
    seconds = time.perf_counter() - started
    scores = _scores(picture, hr, scale)
    if report is None:
        return Result(pair.name, *scores, seconds)
    if watch is not None:
        watch(pair, method, picture, report)
    counts = tuple(report.patches_per_exit.tolist())
    shares = report.share, report.body_share
    if report.cell is not None:
        return Result(pair.name, *scores, seconds, *shares, None, report.mean_exit, counts, report.interpolated)
    paper = sum(n * flops for n, flops in zip(counts, uncollapsed, strict=True)) / (sum(counts) * uncollapsed[-1])
    return Result(pair.name, *scores, seconds, *shares, paper, report.mean_exit, counts)


def _set(network: APEForward, kind: str, value: float) -> None:
    try:
        setattr(network, kind, value)
    except ValueError as error:
        raise UserError(str(error)) from None


def _scores(picture: np.ndarray, hr: np.ndarray, scale: int) -> tuple[float, float, float, float]:
    return (
        psnr_y(picture, hr, scale),
        ssim_y(picture, hr, scale),
        psnr_rgb(picture, hr, scale),
        ssim_rgb(picture, hr, scale),
    )


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
