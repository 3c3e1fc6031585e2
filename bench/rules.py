"""Rules that decide how deep each part of an image runs, against computation and time.

    python bench/rules.py -i Photo2K Urban10 -n WEIGHTS --paper REGRESSOR --edges TABLE -o OUT
    python bench/rules.py -i TRAIN -n WEIGHTS --fit-edges TABLE

- plan: what `APEForward` does for a fidelity.
- oracle: knows how far each candidate of each cell is from full depth, and takes the first that serves.
- edge table: as ARM (Chen et al., ECCV 2022) chooses: one edge score per cell, the mean of the absolute Laplacian, and
  a table of the PSNR to the ground truth that each candidate had on pictures with ground truth. The candidate with
  the highest PSNR, less a price for its work, runs. `--fit-edges` makes the table.
- regressor: the paper's, on patches that overlap, with a threshold.

All but the last run the same cells on shared feature maps. Fidelity is the PSNR of the picture to the model's own, over
all channels, PSNR Y that to the ground truth. Work is all computation; the whole picture at full depth is 1. Time is
processor time of one thread, the best of two, as a share of full depth's on the same image.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from curves import read_regressor
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plans import spent
from torch import Tensor
from torch.nn.functional import conv2d, pad
from tqdm import tqdm

from ape_kernels import APEForward
from ape_kernels.backends.torch.interpolate import interpolate
from ape_kernels.plan import ExitFit
from ape_kernels.plan.measure import cell_means
from ape_kernels.plan.work import Work, areas
from ape_sr.checkpoint import load_model
from ape_sr.data.images import to_image, to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.metrics import LUMA, psnr_y

FIDELITIES = (30, 34, 37, 40, 42, 44, 45, 46, 48, 50, 53, 56, 60)
THRESHOLDS = (0, 0.06, 0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.25, 0.3, 0.4, 1)
PRICES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)  # dB for the work of full depth
RULES = {"plan": FIDELITIES, "oracle": FIDELITIES, "edge table": PRICES, "regressor": THRESHOLDS}
STYLES = {"oracle": "k--", "plan": "C0o-", "edge table": "C2s-", "regressor": "C3^-"}
BINS = 30  # of the edge score, each with as many cells
FIELDS = {"work": "computation, % of full depth", "time": "processor time, % of full depth"}


@dataclass
class Curve:
    """Of a rule on a folder: means over the pictures, one entry for each parameter.

    fidelity: dB, of the pictures; worst: of the worst of them. psnr_y: dB. work, time: shares of full depth's.
    """

    parameter: list[float] = field(default_factory=list)
    fidelity: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    psnr_y: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)


class Scene:
    """One image with all that is known of it. low: float ``[1, 3, h, w]``. hr: uint8 ``[H, W, 3]``."""

    def __init__(self, network: APEForward, fit: ExitFit, low: np.ndarray, hr: np.ndarray) -> None:
        self.low, self.hr, self.cell = to_tensor(low), hr, fit.cell
        self.sides = areas(*self.low.shape[2:], fit.cell, self.low.device)
        images = self.low.expand(fit.stages, -1, -1, -1)
        exits = network.forward_patches(images, exit_at=torch.arange(fit.stages))[0]
        first = interpolate(fit.colours(self.low), fit.scale)
        pictures = torch.cat([first, exits]).clamp_(0, 1)
        self.full = pictures[-1].clone()
        side, luma, truth = fit.cell * fit.scale, torch.tensor(LUMA).float(), to_tensor(hr)[0]
        squares = [(picture - self.full).square().mean(0) for picture in pictures]
        # dB of each candidate of each cell, [R, K, C]: to full depth, and Y to the ground truth
        self.reached = -10 * torch.stack([cell_means(each, side) for each in squares], -1).log10()
        errors = [torch.einsum("chw,c->hw", picture - truth, luma).square() for picture in pictures]
        means = torch.stack([cell_means(each, side) for each in errors], -1)
        self.psnr = -10 * means.clamp_min(1e-6).log10()

    def known(self, asked: float) -> Tensor:
        """Depths of the first candidates that are `asked` dB from full depth, int64 ``[1, R, K]``."""
        return (self.reached >= asked).int().argmax(-1)[None] - 1


def edge_scores(image: Tensor, cell: int) -> Tensor:
    """Mean absolute Laplacian of the luma of each cell, float ``[R, K]``."""
    luma = torch.einsum("bchw,c->bhw", image, torch.tensor(LUMA).float())[:, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    edges = conv2d(pad(luma, (1, 1, 1, 1), mode="replicate"), kernel).abs()[0, 0]
    return cell_means(edges, cell).float()


def fit_edges(scenes: Iterator[Scene]) -> dict[str, list]:
    """The table: upper ends of the score's bins, and the mean PSNR Y of each candidate in each bin."""
    known = [(edge_scores(scene.low, scene.cell).flatten(), scene.psnr.flatten(0, 1)) for scene in scenes]
    scores, psnr = (torch.cat(each) for each in zip(*known, strict=True))
    ends = torch.quantile(scores, torch.arange(1, BINS) / BINS)
    bins = torch.bucketize(scores, ends)
    table = [[round(value, 3) for value in psnr[bins == number].mean(0).tolist()] for number in range(BINS)]
    return {"ends": [round(end, 6) for end in ends.tolist()], "psnr_y": table}


class Rules:
    """What runs a scene by each rule at each parameter."""

    def __init__(self, weights: Path, paper: Path, edges: Path) -> None:
        model, other = load_model(weights), load_model(weights)
        assert model.exit_fit is not None, "weights that carry a fit"
        self.fit: ExitFit = model.exit_fit
        self.network = APEForward(model, cell=self.fit.cell)
        weight, bias = read_regressor(paper)
        with torch.no_grad():
            other.regressor[2].weight.copy_(torch.from_numpy(weight))
            other.regressor[2].bias.fill_(bias)
        self.patches = APEForward(other, threshold=0.0, context="patch")
        self.work = Work.of(self.network.program, self.fit.tones is not None)
        table = json.loads(edges.read_text())
        self.ends, self.psnr = torch.tensor(table["ends"]), torch.tensor(table["psnr_y"])

    def prepare(self, rule: str, scene: Scene, parameter: float) -> Callable[[], Tensor]:
        """The picture of `scene`, as something to be timed; what an oracle knows is found before."""
        if rule == "plan":
            self.network.fidelity = parameter
            return lambda: self.network(scene.low)
        if rule == "oracle":
            depths = scene.known(parameter)
            return lambda: self.network(scene.low, exit_at=depths)
        if rule == "edge table":
            return lambda: self.network(scene.low, exit_at=self.by_edges(scene.low, parameter))
        self.patches.threshold = parameter
        return lambda: self.patches(scene.low)

    def by_edges(self, low: Tensor, price: float) -> Tensor:
        """Depths by the table, int64 ``[1, R, K]``."""
        cost = torch.tensor(self.work.candidates) / self.work.candidates[-1]
        best = (self.psnr - price * cost).argmax(1) - 1
        return best[torch.bucketize(edge_scores(low, self.fit.cell), self.ends)][None]

    def done(self, rule: str, scene: Scene, parameter: float) -> float:
        """Work as a share of the whole picture's at full depth."""
        if rule == "plan":
            self.network.fidelity = parameter
            return float(self.network.plan(scene.low).share)
        if rule == "regressor":
            self.patches.threshold = parameter
            _, report = self.patches(scene.low, return_report=True)
            return report.flops / (self.work.candidates[-1] * scene.low[0, 0].numel())
        depths = scene.known(parameter) if rule == "oracle" else self.by_edges(scene.low, parameter)
        return spent(self.work, depths + 1, scene.sides, self.fit.ring)


def middle(low: np.ndarray, hr: np.ndarray, crop: tuple[int, int] | None, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle of both, of at most `crop` pixels of the large one; as they are without a crop."""
    height, width = low.shape[:2]
    wide, high = (width, height) if crop is None else (min(width, crop[0] // scale), min(height, crop[1] // scale))
    top, left = (height - high) // 2, (width - wide) // 2
    inside = low[top : top + high, left : left + wide]
    return inside, hr[top * scale : (top + high) * scale, left * scale : (left + wide) * scale]


def seconds(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor time, the best of two, and the result."""
    taken, result = [], torch.empty(0)
    for _ in range(2):
        begin = time.process_time()
        result = run()
        taken.append(time.process_time() - begin)
    return min(taken), result


@torch.no_grad()
def measure(rules: Rules, scenes: list[Scene]) -> dict[str, Curve]:
    """The curves of all rules on the scenes of a folder."""
    curves = {}
    whole = APEForward(rules.network.model, fidelity=None)
    for rule, parameters in RULES.items():
        curve = curves[rule] = Curve()
        full_times = [seconds(partial(whole, scene.low))[0] for scene in scenes]
        for parameter in tqdm(parameters, desc=rule, disable=None):
            rows = []
            for scene, full_time in zip(scenes, full_times, strict=True):
                took, picture = seconds(rules.prepare(rule, scene, parameter))
                error = (picture[0].clamp(0, 1) - scene.full).square().mean()
                fidelity = -10 * np.log10(max(float(error), 1e-10))
                quality = psnr_y(to_image(picture), scene.hr, rules.fit.scale)
                rows.append((fidelity, quality, rules.done(rule, scene, parameter), took / full_time))
            means = np.mean(rows, axis=0)
            curve.parameter.append(float(parameter))
            curve.worst.append(float(min(row[0] for row in rows)))
            for name, value in zip(("fidelity", "psnr_y", "work", "time"), means, strict=True):
                getattr(curve, name).append(float(value))
    return curves


def draw(path: Path, title: str, curves: dict[str, Curve], full: float) -> None:
    """Write a PNG: fidelity and PSNR Y against work and time. full: PSNR Y at full depth."""
    figure = Figure(figsize=(11, 7), dpi=80, layout="constrained")
    for axes, (name, text) in zip(figure.subplots(2, 2).T, FIELDS.items(), strict=True):
        for rule, style in STYLES.items():
            curve = curves[rule]
            x = 100 * np.array(getattr(curve, name))
            for panel, values in zip(axes, (curve.fidelity, curve.psnr_y), strict=True):
                panel.plot(x, values, style, ms=3.5, lw=1.2, label=rule)
        axes[0].set(ylabel="PSNR to full depth (dB)", ylim=(32, 66))
        axes[1].axhline(full, color="grey", lw=0.7, ls=":")
        axes[1].set(ylabel="PSNR Y to the ground truth (dB)", xlabel=text)
        for panel in axes:
            panel.set(xlim=(0, 125))
            panel.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
    figure.suptitle(title)
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    """Measure and write, or fit the edge table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("-n", "--weights", type=Path, required=True, help="weights that carry a fit")
    parser.add_argument("--paper", type=Path, help="regressor of the paper's target on that backbone")
    parser.add_argument("--edges", type=Path, help="table that --fit-edges made")
    parser.add_argument("-o", "--output", type=Path, help="folder for rules.json and one PNG per folder of pictures")
    parser.add_argument("--crop", type=int, nargs=2, help="run the middle of each picture, so wide and high in pixels")
    parser.add_argument("--fit-edges", type=Path, help="write the edge table, of pictures with ground truth, and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.weights)
    network = APEForward(model, threshold=0.0)

    def scenes(folder: Path) -> Iterator[Scene]:
        for pair in find_pairs(folder):
            yield Scene(network, model.exit_fit, *middle(*pair.read(model.scale), args.crop, model.scale))

    if args.fit_edges:
        table = fit_edges(scene for folder in args.input for scene in scenes(folder))
        args.fit_edges.write_text(json.dumps({"made_by": f"python {' '.join(sys.argv)}", **table}) + "\n")
        return
    if not (args.paper and args.edges and args.output):
        parser.error("expected --paper, --edges and -o, or --fit-edges")
    rules = Rules(args.weights, args.paper, args.edges)
    args.output.mkdir(parents=True, exist_ok=True)
    found = {}
    for folder in args.input:
        name = folder.parent.name if folder.name[1:].isdigit() else folder.name
        known = list(scenes(folder))
        curves = measure(rules, known)
        full = float(np.mean([psnr_y(to_image(scene.full[None]), scene.hr, model.scale) for scene in known]))
        found[name] = {"full_psnr_y": full, "curves": {rule: vars(curve) for rule, curve in curves.items()}}
        draw(
            args.output / f"{name}_rules.png",
            f"{name} x{model.scale}: rules that decide how deep an image runs",
            curves,
            full,
        )
        (args.output / "rules.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
