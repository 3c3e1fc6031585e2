"""Fitting: closed form, no ground truth and no training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor, nn

from ape_kernels.backends.protocol import FIRST, LEVELS, STEP
from ape_kernels.forward import APEForward
from ape_kernels.plan.fit import MEASURE, ExitFit, fingerprint_of
from ape_kernels.plan.measure import Cells, Measured, join, mean_by
from ape_kernels.plan.ring import SAMPLES, measure_ring, sample_of
from ape_kernels.plan.tones import measure_tones
from ape_kernels.sharing import why_not_shared

# Low-resolution pixels. On photographs held back, EDSR 12x32 x4 at 45 dB saves 69 % of all work with cells of 48, 73 %
# with 24, 74 % with 16, rings counted. Halos, which are not counted, grow as cells shrink.
CELL = 24
# Of networks without exits: on drawings, realesr-animevideov3 at 42 dB saves 40 % with cells of 24, 46 % with 16.
CELL_WITHOUT_EXITS = 16
THIRDS = 3
ENOUGH = 300  # cells
LEAST_ERROR = 1e-9  # mean squares below count as this: 90 dB
RIDGE = 1e-6
KINDS = 6
SERVED, SLACK = 0.98, 1.0  # of the cells of MEASURE pixels, so many get what was asked for less so many dB
# margins that are tried, in errors of a candidate
SHIFTS = torch.arange(-2.0, 6.0, 0.1, dtype=torch.float32, device="cpu")
SLIGHT = 1e-3  # share of the range
NOISE = 10 / 255  # highest standard deviation of noise, as a share of the range


@torch.no_grad()
def fit_exits(
    model: nn.Module, images: Iterable[Tensor], *, value_range: float | None = None, cell: int | None = None
) -> ExitFit:
    """Learn how far the exits of `model`, and interpolation, are from its own full depth, and attach it to the model.

    model: a network that an adapter recognises, with exits or without, and that shares feature maps (not RCAN or
    transformers, which read the whole patch). images: low-resolution pictures as the model
    takes them, float ``[C, H, W]`` or ``[1, C, H, W]``, on any device; no ground truth is needed. Pictures that
    resemble each other should follow each other: each third of them is held back in turn. Each is used as it is and
    once more in grey, with noise of up to 10 levels, at half brightness, or smoothed, in turn. Some fifty pictures of
    512x320, at least part of them photographs reduced to low resolution, are enough.
    value_range: what white is; None takes the model's own `rgb_range`, 1 where it has none.
    cell: low-resolution pixels along the sides of the cells that are decided on, a divisor of 48; None takes 24, and
        16 for a network without exits.

    Returns the fit, which is also set as ``model.exit_fit``. It belongs to the weights as they are now.
    Raises TypeError and ValueError for images that the model does not take or that are too few, NotRecognised for
    another model.
    """
    if cell is not None and (not isinstance(cell, int) or cell < 8 or MEASURE % cell):
        raise ValueError(f"cell: expected a divisor of {MEASURE} of at least 8, got {cell!r}")
    fast = APEForward(model, threshold=0.0)
    if (why := why_not_shared(fast.program)) is not None:
        raise ValueError(f"model: expected a network that can be planned, got {type(model).__name__}: {why}")
    program, device = fast.program, next(model.parameters()).device
    if cell is None:
        cell = CELL if len(program.stages) > 1 else CELL_WITHOUT_EXITS
    if cell % program.fold:
        raise ValueError(f"cell: expected a multiple of {program.fold}, by which the network folds, got {cell}")
    white = float(getattr(model, "rgb_range", 1.0) if value_range is None else value_range)
    checked = _checked(images, program.in_channels, device)
    first = list(islice(checked, 1))  # whatever is wrong with it is said before the rest takes its time
    tones = None
    if program.in_channels == program.out_channels == 3:
        tones = measure_tones(lambda patches: fast.forward_patches(patches)[0], white, device)

    def run(patches: Tensor, exit_at: Tensor) -> Tensor:
        return fast.forward_patches(patches, exit_at=exit_at)[0]

    measured = Measured(run, len(program.stages), program.scale, cell, white, tones)
    pictures: list[Cells] = []
    samples: list[Tensor] = []
    for number, image in enumerate(chain(first, checked)):
        pictures.append(join([part for copy in _copies(image, number, white) for part in measured.cells(copy)]))
        if number % 4 == 0 and len(samples) < SAMPLES:  # pictures side by side are often of a kind
            samples.append(sample_of(image))
    if len(pictures) < THIRDS or sum(len(cells.area) for cells in pictures) < ENOUGH:
        count = sum(len(cells.area) for cells in pictures)
        raise ValueError(
            f"images: expected at least {THIRDS} with {ENOUGH} cells of {cell}x{cell} pixels, "
            f"got {len(pictures)} with {count}"
        )
    third = torch.cat([torch.full_like(cells.whole, i * THIRDS // len(pictures)) for i, cells in enumerate(pictures)])
    cells = join(pictures)
    standard = _Standard.of(cells)
    truth = -10 * torch.log10(cells.error.clamp_min(LEAST_ERROR)).float()
    held_back = torch.empty_like(truth)
    for i in range(THIRDS):
        away = third == i
        held_back[away] = standard.predict(cells.statistics[away], standard.solve(cells, truth, ~away))
    low, high = cells.statistics.amin(0), cells.statistics.amax(0)
    low[-1], high[-1] = -SLIGHT, 1 + SLIGHT  # black and white bars are on many pictures, and rounding moves their mean
    kinds = torch.quantile(cells.kind, torch.arange(1, KINDS, dtype=torch.float32, device="cpu") / KINDS)
    fit = ExitFit(
        fingerprint=fingerprint_of(model),
        scale=program.scale,
        stages=len(program.stages),
        cell=cell,
        value_range=white,
        mean=standard.mean,
        deviation=standard.deviation,
        low=low,
        high=high,
        precision=standard.precision,
        leverage=standard.leverages(cells.statistics).max(),
        quadratic=standard.solve(cells, truth, third >= 0).float(),
        kinds=kinds,
        needed=_needed(cells, truth, held_back, torch.bucketize(cells.kind, kinds)),
        tones=None if tones is None else tones.cpu(),
    )
    fit = replace(fit, ring=measure_ring(fit, fast.packed_for_images, samples))
    model.exit_fit = fit  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue] - a plain attribute
    return fit


def _checked(images: Iterable[Tensor], channels: int, device: torch.device) -> Iterator[Tensor]:
    """The images as float32 ``[C, H, W]`` on the model's device."""
    for image in images:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"images: expected floating-point tensors, got {got}")
        flat = image[0] if image.ndim == 4 and len(image) == 1 else image
        if flat.ndim != 3 or flat.shape[0] != channels or 0 in flat.shape:
            raise ValueError(f"images: expected [{channels}, H, W], got {list(image.shape)}")
        yield flat.detach().to(device, torch.float32)


def _copies(image: Tensor, number: int, white: float) -> Iterator[Tensor]:
    """The picture, and one more like it: grey, noisy, darker or smoother ones are pictures that people have too."""
    yield image
    match number % 4:
        case 0:
            yield image.mean(0, keepdim=True).expand_as(image)
        case 1:
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(image.shape, generator=generator, dtype=torch.float32, device="cpu")
            noise = noise * torch.rand(1, generator=generator, dtype=torch.float32, device="cpu") * NOISE * white
            yield (image + noise.to(image.device)).clamp(0, white)
        case 2:
            yield image / 2
        case _:
            smooth = nn.functional.avg_pool2d(image[None], 9, 1, 4, count_include_pad=False)[0]
            yield (smooth * (255 / white)).round() * (white / 255)


class _Standard:
    """Standardised statistics, and regression on their products."""

    def __init__(self, mean: Tensor, deviation: Tensor, precision: Tensor) -> None:
        self.mean, self.deviation, self.precision = mean, deviation, precision
        self._rows, self._columns = torch.triu_indices(len(mean) + 1, len(mean) + 1, device="cpu")

    @classmethod
    def of(cls, cells: Cells) -> _Standard:
        mean, deviation = cells.statistics.mean(0), cells.statistics.std(0).clamp_min(1e-3)
        z = ((cells.statistics - mean) / deviation).double()
        precision = torch.linalg.inv(z.T @ z / len(z) + 1e-3 * torch.eye(len(mean), dtype=torch.float64, device="cpu"))
        return cls(mean, deviation, precision.float())

    def leverages(self, statistics: Tensor) -> Tensor:
        z = (statistics - self.mean) / self.deviation
        return ((z @ self.precision) * z).sum(1)

    def solve(self, cells: Cells, truth: Tensor, rows: Tensor) -> Tensor:
        """Quadratic forms float64 ``[C, F + 1, F + 1]`` that tell `truth` from the statistics of the cells `rows`."""
        products, weight = self._products(cells.statistics[rows]), cells.area[rows].double()[:, None]
        weighted = products * weight
        penalty = RIDGE * (weighted * products).sum(0)
        penalty[-1] = 0  # the product of 1 and 1: the constant
        solution = torch.linalg.solve(weighted.T @ products + penalty.diag(), weighted.T @ truth[rows].double())
        forms = solution.new_zeros(truth.shape[1], len(self.mean) + 1, len(self.mean) + 1)
        forms[:, self._rows, self._columns] = solution.T
        return forms

    def predict(self, statistics: Tensor, forms: Tensor) -> Tensor:
        """float32 ``[N, C]``."""
        return (self._products(statistics) @ forms[:, self._rows, self._columns].T).float()

    def _products(self, statistics: Tensor) -> Tensor:
        z = ((statistics - self.mean) / self.deviation).double()
        z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        return z[:, self._rows] * z[:, self._columns]


def _needed(cells: Cells, truth: Tensor, held_back: Tensor, kind: Tensor) -> Tensor:
    """`ExitFit.needed`: for each kind and each fidelity asked for, the least margin with which the promise is kept.

    A plan with that margin is made of the held-back predictions and judged on cells of MEASURE pixels.
    """
    middle = (truth > 30) & (truth < 65)  # dB; of what nobody asks for, errors are larger
    squares = torch.where(middle, (held_back - truth).square(), 0.0).sum(0)
    error = (squares / middle.sum(0).clamp_min(1)).sqrt().clamp_min(0.5)
    reached = torch.cat([cells.error, torch.zeros_like(cells.error[:, :1])], 1)
    needed = torch.empty(KINDS, truth.shape[1], LEVELS, dtype=torch.float32, device="cpu")
    for k in range(KINDS):
        rows = (kind == k).nonzero()[:, 0]
        _, whole = torch.unique(cells.whole[rows], return_inverse=True)
        area, predicted, errors = cells.area[rows].double(), held_back[rows], reached[rows]
        total = errors.new_zeros(int(whole.max()) + 1).index_add_(0, whole, area)
        for level in range(LEVELS):
            asked, shift = FIRST + STEP * level, 0.0
            for shift in SHIFTS.tolist():
                serves = predicted >= asked + shift * error
                chosen = torch.cat([serves, torch.ones_like(serves[:, :1])], 1).int().argmax(1)
                got = mean_by(errors.gather(1, chosen[:, None])[:, 0], whole, area)
                served = got <= 10 ** (-(asked - SLACK) / 10)
                if (total * served).sum() >= SERVED * total.sum():
                    break
            needed[k, :, level] = asked + shift * error
    steps = needed.diff(dim=-1).clamp_min(0.1)  # ascending, or the level of a prediction would not be one number
    return torch.cat([needed[..., :1], needed[..., :1] + steps.cumsum(-1)], -1)
