"""Curves of quality against computation, for rules by which patches leave and for an oracle that knows the truth.

    python bench/curves.py -i Set5 Urban10 -n weights.safetensors --paper regressor.json -o docs/results

Every picture of every folder runs once through all exits. The rules then choose among the recorded results. Writes
`curves.json` and one PNG, and prints a table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ape_kernels import APEForward, PatchGrid
from ape_kernels.policy import exit_boundary
from ape_kernels.run.patches import merge, split
from ape_sr.checkpoint import load_model
from ape_sr.data.images import to_image, to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.flops import uncollapsed_flops
from ape_sr.metrics import LUMA, psnr_y

LOSS = 0.02  # dB of PSNR; a rule may lose this much when its saving is measured
STYLES = {"oracle": "k-", "look-ahead": "C0-", "paper": "C3-", "uniform": "C7o:"}


@dataclass
class Recorded:
    """One picture at every exit. E exits, P patches.

    pictures: float ``[E, P, 3, h, w]`` in [0, 1]. psnr: ``[P, E]``, PSNR (Y) of each patch. pooled: ``[P, E, C]``, the
    averages that regressors read. hr: uint8 ``[H, W, 3]``.
    """

    grid: PatchGrid
    pictures: torch.Tensor
    psnr: np.ndarray
    pooled: np.ndarray
    hr: np.ndarray

    def quality(self, exits: np.ndarray) -> float:
        """PSNR (Y) of the picture when patches leave at `exits` ``[P]``."""
        chosen = self.pictures[torch.from_numpy(exits), torch.arange(len(exits))]
        return psnr_y(to_image(merge(self.grid, chosen)), self.hr, self.grid.scale)


def record(network: APEForward, folder: Path) -> Iterator[Recorded]:
    """Run every picture of a folder."""
    scale, exits = network.scale, len(network.program.stages)
    for pair in find_pairs(folder):
        lr, hr = pair.read(scale)
        height, width = lr.shape[:2]
        patches = split(PatchGrid(height, width, network.patch_size, network.overlap), to_tensor(lr))
        grid = PatchGrid(height, width, network.patch_size, network.overlap, scale)
        sizes = (height * scale, width * scale, network.patch_size * scale, network.overlap * scale)
        truth = split(PatchGrid(*sizes), to_tensor(hr))
        with torch.inference_mode():
            pictures = torch.stack(
                [network.forward_patches(patches, torch.full((len(patches),), i))[0] for i in range(exits)]
            )
            features = [network.model.exit_features(part)[1] for part in patches.split(16)]
        pooled = torch.cat([torch.stack([f.mean(dim=(2, 3)) for f in part], dim=1) for part in features])
        luma = torch.from_numpy(LUMA).float()
        error = torch.stack([torch.einsum("pchw,c->phw", p - truth, luma).square().mean(dim=(1, 2)) for p in pictures])
        psnr = -10 * torch.log10(error.T.clamp_min(1e-9))
        yield Recorded(grid, pictures, psnr.numpy(), pooled.numpy(), hr)


Rule = Callable[[Recorded, float], np.ndarray]  # maps (picture, parameter) to the exit of every patch


def first(leaves: np.ndarray) -> np.ndarray:
    """The first exit where ``leaves [P, E]`` is true, else the last exit."""
    leaves[:, -1] = True
    return leaves.argmax(axis=1)


def oracle(picture: Recorded, tolerance: float) -> np.ndarray:
    """The first exit at which the patch is at most `tolerance` dB below the best PSNR that it has at any exit."""
    return first(picture.psnr >= picture.psnr.max(axis=1, keepdims=True) - tolerance)


def uniform(picture: Recorded, exit_index: float) -> np.ndarray:
    """Every patch at the same exit."""
    return np.full(len(picture.psnr), int(exit_index))


def thresholded(weight: np.ndarray, bias: float) -> Rule:
    """Leave where the regressor's prediction reaches 1 - threshold."""
    return lambda picture, threshold: first(np.tanh(picture.pooled @ weight + bias) >= exit_boundary(threshold))


@dataclass
class Curve:
    """Means over the pictures, one entry per parameter.

    psnr: PSNR (Y). body, flops, paper: FLOPs as shares of full depth, of the body, of the whole network, and of the
    whole network with its tail not collapsed.
    """

    parameter: list[float]
    psnr: list[float]
    body: list[float]
    flops: list[float]
    paper: list[float]

    def saving(self, full: float, field: str = "body") -> float:
        """The largest share that is saved with a loss of at most `LOSS` dB against `full`, interpolated linearly."""
        order = np.argsort(getattr(self, field))[::-1]
        share, loss = np.array(getattr(self, field))[order], full - np.array(self.psnr)[order]
        best = 0.0
        for i, (here, cost) in enumerate(zip(share, loss, strict=True)):
            if cost <= LOSS:
                best = max(best, 1 - here)
            elif i and loss[i - 1] <= LOSS:
                reached = (LOSS - loss[i - 1]) / (cost - loss[i - 1])
                best = max(best, 1 - (share[i - 1] + reached * (here - share[i - 1])))
        return float(best)

    def at(self, share: float) -> float:
        """PSNR at a share of the body's FLOPs, interpolated linearly."""
        order = np.argsort(self.body)
        return float(np.interp(share, np.array(self.body)[order], np.array(self.psnr)[order]))


def trace(pictures: list[Recorded], rule: Rule, parameters: np.ndarray, costs: dict[str, np.ndarray]) -> Curve:
    """The curve of a rule. costs: FLOPs up to each exit, for each way of counting."""
    curve, known = Curve([], [], [], [], []), [{} for _ in pictures]
    for parameter in parameters:
        all_exits = [rule(picture, float(parameter)) for picture in pictures]
        quality = []
        for picture, exits, seen in zip(pictures, all_exits, known, strict=True):
            key = exits.tobytes()
            if key not in seen:
                seen[key] = picture.quality(exits)
            quality.append(seen[key])
        curve.parameter.append(float(parameter))
        curve.psnr.append(float(np.mean(quality)))
        for name, cost in costs.items():
            shares = [cost[exits].mean() / cost[-1] for exits in all_exits]
            getattr(curve, name).append(float(np.mean(shares)))
    return curve


def levels(pictures: list[Recorded], rule_values: np.ndarray, points: int) -> np.ndarray:
    """Parameters 0, 1, and even quantiles of the values that they are compared with."""
    inner = np.quantile(rule_values, np.linspace(0, 1, points)).clip(0, 1)
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def measure(network: APEForward, folder: Path, regressors: dict[str, tuple[np.ndarray, float]], points: int):
    """All curves on one folder, by name."""
    program = network.program
    stages = range(len(program.stages))
    costs = {
        "body": np.array([program.body_flops_to_stage(i) for i in stages], dtype=float),
        "flops": np.array([program.flops_to_stage(i) for i in stages], dtype=float),
        "paper": np.array(uncollapsed_flops(network.model, program), dtype=float),
    }
    pictures = list(record(network, folder))
    curves = {"uniform": trace(pictures, uniform, np.arange(len(stages)), costs)}
    tolerances = np.concatenate([[0.0], np.geomspace(0.01, 3, points)])
    curves["oracle"] = trace(pictures, oracle, tolerances, costs)
    for name, (weight, bias) in regressors.items():
        gains = np.concatenate([1 - np.tanh(p.pooled[:, :-1] @ weight + bias).ravel() for p in pictures])
        curves[name] = trace(pictures, thresholded(weight, bias), levels(pictures, gains, points), costs)
    return curves


def summary(curves: dict[str, Curve]) -> dict[str, float]:
    """Savings at a loss of at most `LOSS`, and the look-ahead rule compared with the others."""
    full = curves["uniform"].psnr[-1]
    savings = {name: curve.saving(full) for name, curve in curves.items()}
    shares = np.linspace(max(min(curves[n].body) for n in ("look-ahead", "paper")), 1, 50)
    ahead = [curves["look-ahead"].at(s) - curves["paper"].at(s) for s in shares]
    return {
        "full_psnr": full,
        **{f"saving_{name}": saving for name, saving in savings.items()},
        **{f"paper_count_{name}": curves[name].saving(full, "paper") for name in ("oracle", "look-ahead", "paper")},
        "of_the_oracles": savings["look-ahead"] / savings["oracle"] if savings["oracle"] else float("nan"),
        "least_above_paper": float(np.min(ahead)),
        "mean_above_paper": float(np.mean(ahead)),
    }


def draw(path: Path, all_curves: dict[str, dict[str, Curve]]) -> None:
    """PSNR against the share of the body's FLOPs, one panel per folder."""
    figure = Figure(figsize=(6 * len(all_curves), 4.2), dpi=75, layout="constrained")
    for axes, (folder, curves) in zip(
        np.atleast_1d(figure.subplots(1, len(all_curves))), all_curves.items(), strict=True
    ):
        for name, curve in curves.items():
            order = np.argsort(curve.body)
            axes.plot(100 * np.array(curve.body)[order], np.array(curve.psnr)[order], STYLES[name], ms=4, label=name)
        full = curves["uniform"].psnr[-1]
        axes.axhline(full - LOSS, color="grey", lw=0.7, ls="--")
        axes.set(xlabel="FLOPs of the body, %", ylabel="PSNR Y (dB)", title=f"{folder}; dashed: {LOSS} dB lost")
        axes.grid(alpha=0.3)
        axes.legend()
    FigureCanvasAgg(figure).print_png(path)


def regressor_of(model: torch.nn.Module) -> tuple[np.ndarray, float]:
    """Weight ``[C]`` and bias of a network's regressor."""
    linear = model.regressor[2]
    return linear.weight[0].detach().numpy(), linear.bias.item()


def read_regressor(path: Path) -> tuple[np.ndarray, float]:
    """Another regressor for the same backbone, from the weights of a network or from JSON with weight and bias."""
    if path.suffix != ".json":
        return regressor_of(load_model(path))
    stored = json.loads(path.read_text())
    return np.array(stored["weight"], dtype=np.float32), float(stored["bias"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("-n", "--weights", type=Path, required=True, help="network whose regressor looks ahead")
    parser.add_argument("--paper", type=Path, required=True, help="regressor of the paper's target on that backbone")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--points", type=int, default=24, help="points per curve (%(default)s)")
    args = parser.parse_args()
    network = APEForward(load_model(args.weights), 0.0)
    regressors = {"look-ahead": regressor_of(network.model), "paper": read_regressor(args.paper)}
    folders = {path.parent.name if path.name[1:].isdigit() else path.name: path for path in args.input}
    curves = {name: measure(network, folder, regressors, args.points) for name, folder in folders.items()}
    summaries = {name: summary(found) for name, found in curves.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    stored = {name: {rule: vars(curve) for rule, curve in found.items()} for name, found in curves.items()}
    text = json.dumps({"summary": summaries, "curves": stored}, indent=None, default=float)
    (args.output / "curves.json").write_text(text + "\n")
    draw(args.output / "curves.png", curves)
    for field in next(iter(summaries.values())):
        print(f"{field:24}", *(f"{name} {values[field]:8.3f}" for name, values in summaries.items()))


if __name__ == "__main__":
    main()
