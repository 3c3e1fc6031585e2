"""Plans on shared feature maps: do borders between cells of different depth show, and does every cell get what it was
asked for?

    python bench/borders.py -i FOLDER [-n edsr-12x32-x4] [--fidelity 40 45 50] [--ring 4]

Two plans for each picture and fidelity: the oracle's, which knows how far each candidate is from full depth on each
cell alone, and the planner's, which knows the image. Both are run, and their pictures compared with the model's own.
So is one that is pasted together by the oracle's plan, each cell from a picture in which all cells have its depth:

    seam    mean gradient across borders of cells that differ in depth, less the model's own there, in levels of 8 bits
    2nd     second percentile of fidelity less what was asked for, in dB, over cells of 48 low-resolution pixels, those
            that are all at full depth left out
    full    second percentile of the fidelity of the others, in dB
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from plans import candidates
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ape_kernels import APEForward, Wish, pack
from ape_kernels.backends.protocol import Depths
from ape_kernels.packed import Packed
from ape_kernels.plan import ExitFit, make_plan
from ape_kernels.plan.fit import MEASURE
from ape_kernels.plan.measure import cell_means
from ape_kernels.run.images import run_image
from ape_sr.checkpoint import load_model
from ape_sr.data.images import to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.weights import find_weights


class Borders(NamedTuple):
    """What a plan left on one picture: sum and number of gradients, and decibels of cells."""

    seam: float
    count: int
    mixed: list[float]
    full: list[float]


@torch.no_grad()
def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Borders between cells of different depth, on a folder of pictures.")
    parser.add_argument("-n", "--weights", type=Path, default=Path("edsr-12x32-x4"))
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("--fidelity", type=float, nargs="+", default=[40.0, 45.0, 50.0])
    parser.add_argument("--ring", type=int, help="pixels, instead of the fit's")
    args = parser.parse_args()
    model = load_model(find_weights(args.weights))
    fit = model.exit_fit if args.ring is None else replace(model.exit_fit, ring=args.ring)
    fast, packed = APEForward(model, threshold=0.0), pack(model, Wish(images=True))
    found: dict[tuple[float, str], list[Borders]] = {}
    for pair in tqdm(list(find_pairs(args.input)), unit="picture", disable=None):
        image = to_tensor(pair.read(model.scale)[0], model.rgb_range)
        full = run_image(image, packed, Depths(None, fit.cell, fit.ring))
        reached = candidates(fast, fit, image)
        each_depth = pictures_of(image, packed, fit)
        for asked in args.fidelity:
            plans = {
                "oracle": (reached >= asked).int().argmax(-1)[None] - 1,
                "planner": make_plan(fit, packed.program, image, asked, packed.backend).exit_at,
            }
            for name, exit_at in plans.items():
                picture = run_image(image, packed, Depths(exit_at, fit.cell, fit.ring), fit.colours(image))
                found.setdefault((asked, name), []).append(left_by(exit_at, picture, full, fit))
            picture = pasted(plans["oracle"], each_depth, fit)
            found.setdefault((asked, "pasted"), []).append(left_by(plans["oracle"], picture, full, fit))
    print("asked plan     seam    2nd   full")
    for (asked, name), some in found.items():
        seam = sum(each.seam for each in some) / max(1, sum(each.count for each in some))
        mixed, deep = (np.concatenate([each[field] for each in some]) for field in (2, 3))
        second = np.percentile(mixed - asked, 2) if len(mixed) else np.nan
        print(f"{asked:5g} {name:8s} {seam:5.3f} {second:+6.2f} {np.percentile(deep, 2) if len(deep) else np.nan:6.1f}")


def pictures_of(image: Tensor, packed: Packed, fit: ExitFit) -> list[Tensor]:
    """Of an image ``[1, C, H, W]``: interpolated, then with all cells leaving after each stage."""
    cells = (-(-side // fit.cell) for side in image.shape[2:])
    everywhere = torch.zeros(1, *cells, dtype=torch.int64)
    depths = [Depths(everywhere + depth, fit.cell, fit.ring) for depth in range(-1, fit.stages)]
    return [run_image(image, packed, each, fit.colours(image)) for each in depths]


def pasted(exit_at: Tensor, pictures: list[Tensor], fit: ExitFit) -> Tensor:
    """Each cell out of the picture whose cells all have its depth."""
    side = fit.cell * fit.scale
    depth = exit_at.repeat_interleave(side, 1).repeat_interleave(side, 2)
    depth = depth[:, None, : pictures[0].shape[2], : pictures[0].shape[3]].expand_as(pictures[0])
    return torch.stack(pictures).gather(0, depth[None] + 1)[0]


def left_by(exit_at: Tensor, picture: Tensor, full: Tensor, fit: ExitFit) -> Borders:
    """Of a plan int64 ``[1, R, K]`` by which `picture` was made; `full` is the one at full depth."""
    ours, own = ((each / fit.value_range).clamp(0, 1)[0] for each in (picture, full))
    squares = cell_means((ours - own).square().mean(0), MEASURE * fit.scale)
    decibels = -10 * torch.log10(squares.clamp_min(1e-10))
    parts = MEASURE // fit.cell
    deep = (exit_at == fit.stages - 1).float()
    deep = functional.pad(deep, (0, -deep.shape[2] % parts, 0, -deep.shape[1] % parts), value=1.0)
    all_deep = functional.max_pool2d(-deep, parts)[0] < 0
    mixed, others = decibels[~all_deep].tolist(), decibels[all_deep].tolist()
    return Borders(*excess_gradient(ours * 255, own * 255, exit_at[0], fit.cell * fit.scale), mixed, others)


def excess_gradient(picture: Tensor, full: Tensor, exit_at: Tensor, step: int) -> tuple[float, int]:
    """Sum over the pixels ``[C, H, W]`` along borders of cells that differ, and their number."""
    total, count = 0.0, 0
    for axis in (0, 1):
        for number in range(1, exit_at.shape[axis]):
            differ = exit_at.select(axis, number) != exit_at.select(axis, number - 1)
            mask = differ.repeat_interleave(step)[: full.shape[2 - axis]]
            ours, theirs = (
                (each.select(axis + 1, number * step) - each.select(axis + 1, number * step - 1)).abs().mean(0)[mask]
                for each in (picture, full)
            )
            total, count = total + float((ours - theirs).sum()), count + int(mask.sum())
    return total, count


if __name__ == "__main__":
    main()
