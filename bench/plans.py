"""Plans on pictures that were not fitted: what they save, and what is left of the model's own picture.

    python bench/plans.py -n edsr-12x32-x4 -i PHOTOGRAPHS [--fidelity 40 45 48] [--copies] [--json OUT]

Every plan is run, and the picture compared with the model's own whole picture: fidelity is the PSNR over all channels,
clamped, on cells of 48 low-resolution pixels. The oracle knows the distances; its cells each reach what is asked for.
Work counts head, body, tail, rings and interpolation; the network at full depth is 1. Time is processor time of one
thread, plan, network and interpolation, as a share of full depth's on the same image; each is run once.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ape_kernels import APEForward
from ape_kernels.plan.fit import MEASURE, ExitFit
from ape_kernels.plan.measure import Measured, cell_means
from ape_kernels.plan.work import Work, areas, ring_pixels
from ape_sr.checkpoint import load_model
from ape_sr.data.images import to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.fits import read_fit
from ape_sr.weights import find_weights

COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda picture: picture,
    "grey": lambda picture: np.repeat(picture.mean(2, keepdims=True).round(), 3, 2).astype(np.uint8),
    "half brightness": lambda picture: picture // 2,
    "JPEG 85": lambda picture: _jpeg(picture, 85),
}


@dataclass
class Outcome:
    """One picture, one fidelity asked for (dB).

    saved, oracle: shares of all work. interpolated: share of the cells. time: share of full depth's. predicted,
    picture: dB, of the picture. cells: dB, of cells of 48 pixels.
    """

    name: str
    copy: str
    asked: float
    saved: float
    oracle: float
    interpolated: float
    time: float
    predicted: float
    picture: float
    cells: list[float]


def main() -> None:
    """Measure, print a table, write every number."""
    parser = argparse.ArgumentParser(description="Measure plans on a folder of pictures.")
    parser.add_argument("-n", "--weights", type=Path, default=Path("edsr-12x32-x4"))
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("--fit", type=Path, help="instead of the fit stored with the weights")
    parser.add_argument("--fidelity", type=float, nargs="+", default=[40.0, 45.0, 48.0])
    parser.add_argument("--copies", action="store_true", help="also in grey, at half brightness, and as JPEG")
    parser.add_argument("--unreduced", action="store_true", help="run the pictures in their own size")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(find_weights(args.weights), with_fit=args.fit is None)
    if args.fit is not None:
        model.exit_fit = read_fit(args.fit.read_bytes(), args.fit)
    copies = COPIES if args.copies else {"as it is": COPIES["as it is"]}
    outcomes: list[Outcome] = []
    for pair in tqdm(find_pairs(args.input), unit="picture", disable=None):
        low = pair.read(model.scale)[args.unreduced]
        for copy, change in copies.items():
            image = to_tensor(change(low), model.rgb_range)
            for outcome in measure(APEForward(model, fidelity=None), image, args.fidelity):
                outcome.name, outcome.copy = pair.name, copy
                outcomes.append(outcome)
    print_table(outcomes)
    if args.json:
        lines = ",\n".join(json.dumps(asdict(outcome)) for outcome in outcomes)
        args.json.write_text(f"[\n{lines}\n]\n")


@torch.no_grad()
def measure(fast: APEForward, image: Tensor, fidelities: list[float]) -> Iterator[Outcome]:
    """Of one image ``[1, C, H, W]``. fast: at full depth; its fidelity is set here."""
    fit = fast.fit
    assert fit is not None, "weights that carry a fit"
    work = Work.of(fast.program, fit.tones is not None)
    fast.fidelity = None
    _ = fast.packed_for_images  # outside of what is timed
    full_time, full = _seconds(fast, image)
    sides = areas(*image.shape[2:], fit.cell, image.device)
    reached = candidates(fast, fit, image)
    for asked in fidelities:
        fast.fidelity = asked
        plan = fast.plan(image)
        best = (reached >= asked).int().argmax(-1)[None]
        took, picture = _seconds(fast, image)
        squares = ((picture / fit.value_range).clamp(0, 1) - (full / fit.value_range).clamp(0, 1)).square()
        yield Outcome(
            "",
            "",
            asked,
            1 - float(plan.share),
            1 - spent(work, best, sides, fit.ring),
            float((plan.exit_at < 0).float().mean()),
            took / full_time,
            float(plan.picture_fidelity),
            _db(squares.mean()),
            [round(_db(value), 2) for value in _cell_means(squares.mean(1)[0], MEASURE * fit.scale)],
        )


def candidates(fast: APEForward, fit: ExitFit, image: Tensor) -> Tensor:
    """Fidelity in dB of each candidate on each cell alone, ``[R, K, C + 1]``; infinite at full depth."""
    measured = Measured(
        lambda patches, exits: fast.forward_patches(patches, exit_at=exits)[0],
        fit.stages,
        fit.scale,
        fit.cell,
        fit.value_range,
        fit.tones,
    )
    rows, columns = (-(-side // fit.cell) for side in image.shape[2:])
    errors = measured.errors(image).view(rows, columns, -1)
    return -10 * torch.log10(torch.cat([errors, torch.zeros_like(errors[..., :1])], -1))


def print_table(outcomes: list[Outcome]) -> None:
    """A line for each fidelity and kind of copy."""
    head = (
        "asked copy             saved oracle ratio interp.  time picture mean worst >=asked-2 <asked-5 lowest predicted"
    )
    print(head)
    for asked in sorted({outcome.asked for outcome in outcomes}):
        for copy in dict.fromkeys(outcome.copy for outcome in outcomes):
            some = [outcome for outcome in outcomes if (outcome.asked, outcome.copy) == (asked, copy)]
            cells = np.array([value for outcome in some for value in outcome.cells])
            saved, oracle = (np.mean([getattr(outcome, name) for outcome in some]) for name in ("saved", "oracle"))
            print(
                f"{asked:5.0f} {copy:16s} {saved:5.1%}  {oracle:5.1%} {saved / oracle:5.3f}   "
                f"{np.mean([outcome.interpolated for outcome in some]):5.1%} "
                f"{np.mean([outcome.time for outcome in some]):5.1%} "
                f"{np.mean([outcome.picture for outcome in some]):12.1f} "
                f"{min(outcome.picture for outcome in some):5.1f} "
                f"{np.mean(cells >= asked - 2):9.2%} {np.sum(cells < asked - 5):8d} {cells.min():6.1f} "
                f"{np.mean([outcome.predicted for outcome in some]):9.1f}"
            )


def _seconds(fast: APEForward, image: Tensor) -> tuple[float, Tensor]:
    """Processor time, and the picture."""
    begin = time.process_time()
    picture = fast(image)
    return time.process_time() - begin, picture


def spent(work: Work, chosen: Tensor, sides: tuple[Tensor, Tensor], ring: int) -> float:
    """Share of full depth's work of candidates ``[1, R, K]`` of cells with such sides, their rings included."""
    area = sides[0] * sides[1]
    own = torch.tensor(work.candidates)[chosen] * area
    flops = own + work.ring * ring_pixels(chosen > 0, *sides, ring)
    return float(flops.sum() / (work.candidates[-1] * area.sum()))


def _cell_means(values: Tensor, side: int) -> list[float]:
    """Means over cells; those cut by the edge to less than half of their area are left out."""
    heights, widths = areas(*values.shape, side, values.device)
    return cell_means(values, side)[heights * widths >= 0.5 * side**2].tolist()


def _db(error: Tensor | float) -> float:
    return -10 * float(np.log10(max(float(error), 1e-10)))


def _jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


if __name__ == "__main__":
    main()
