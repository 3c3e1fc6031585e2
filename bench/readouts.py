"""Would inner layers of a network without exits pay? Readouts by least squares, judged by an oracle.

    python bench/readouts.py -n realesr-animevideov3-x4.pth --fit FOLDER... --test FOLDER [--fidelity 42]

For SRVGGNetCompact. After some of its convolutions a readout is fitted: a 3x3 convolution of the features to the pixels
of the picture, less what the network adds to anyway (its input, to the nearest pixel), which comes closest to the
network's own picture on the pictures to fit. An oracle then gives each cell of 16 low-resolution pixels the cheapest
candidate that reaches the fidelity: interpolation in the network's tones, a readout, or full depth. Rings are left out.
What the readouts add to its saving is the most that `fit_exits` could gain from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, unfold

from ape_kernels import APEForward
from ape_kernels.plan.measure import cell_means
from ape_kernels.plan.tones import measure_tones, toned
from ape_sr.checkpoint import load_network
from ape_sr.data.images import list_images, read_image, to_tensor

CELL, SIDE = 16, 192  # low-resolution pixels of a cell, and of the squares that are fitted and tested
LAYERS = (2, 4, 6, 8, 10, 12, 14)  # convolutions that have run
RIDGE = 1e-5


@torch.no_grad()
def main() -> None:
    """Fit, judge, and print a table."""
    parser = argparse.ArgumentParser(description="Readouts at inner layers of a compact network.")
    parser.add_argument("-n", "--weights", type=Path, required=True)
    parser.add_argument("--fit", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--fidelity", type=float, nargs="+", default=[40.0, 42.0, 45.0])
    parser.add_argument("--limit", type=int, default=16, help="pictures of each folder")
    args = parser.parse_args()
    model = load_network(args.weights).eval()
    scale = int(model.scale)
    products = {layer: torch.zeros(577, 577, dtype=torch.float64) for layer in LAYERS}
    targets = {layer: torch.zeros(577, 3 * scale**2, dtype=torch.float64) for layer in LAYERS}
    for image in squares(args.fit, scale, args.limit):
        inner, picture = run(model, image)
        wanted = rows_of(nn.functional.pixel_unshuffle(picture - base(image, scale), scale))
        for layer, features in inner.items():
            seen = around(features)
            products[layer] += (seen.T @ seen).double()
            targets[layer] += (seen.T @ wanted).double()
    readouts = {}
    for layer in LAYERS:
        penalty = RIDGE * products[layer].diagonal().mean() * torch.eye(577, dtype=torch.float64)
        readouts[layer] = torch.linalg.solve(products[layer] + penalty, targets[layer]).float()
    tones = measure_tones(lambda patches: APEForward(model).forward_patches(patches)[0], 1.0, torch.device("cpu"))
    reached: list[Tensor] = []
    for image in squares(args.test, scale, args.limit):
        inner, picture = run(model, image)
        colours = image if tones is None else toned(image, tones, 1.0)
        candidates = [interpolate(colours, scale_factor=scale, mode="bicubic")]
        for layer, features in inner.items():
            height, width = image.shape[2:]
            made = (around(features) @ readouts[layer]).T.reshape(1, -1, height, width)
            candidates.append(pixel_shuffle(made, scale) + base(image, scale))
        squared = [(each.clamp(0, 1) - picture.clamp(0, 1)).square().mean(1)[0] for each in candidates]
        errors = torch.stack([cell_means(each, CELL * scale).flatten() for each in squared], 1)
        reached.append(-10 * errors.clamp_min(1e-10).log10())
    cells = torch.cat(reached)
    medians = cells.median(0).values.tolist()
    print(
        "median dB to full depth: interpolation "
        + f"{medians[0]:.1f}, "
        + ", ".join(f"after {layer} {value:.1f}" for layer, value in zip(LAYERS, medians[1:], strict=True))
    )
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) - 1
    work = torch.tensor([0.0, *((layer + 1) / (convolutions + 1) for layer in LAYERS), 1.0])
    for asked in args.fidelity:
        plain = (cells[:, 0] >= asked).double().mean()
        serves = torch.cat([cells >= asked, torch.ones(len(cells), 1, dtype=torch.bool)], 1)
        spent = work[serves.int().argmax(1)].double().mean()
        print(f"{asked:g} dB: interpolation alone saves {plain:.1%}, with readouts {1 - spent:.1%} of the body")


def squares(folders: list[Path], scale: int, limit: int) -> Iterator[Tensor]:
    """Reduced pictures' middles, ``[1, 3, h, w]``, sides divisible by CELL."""
    for folder in folders:
        for path in list_images(folder)[:limit]:
            whole = to_tensor(read_image(path), 1.0)
            low = interpolate(whole, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(0, 1)
            low = (low * 255).round() / 255
            height, width = (min(side, SIDE) // CELL * CELL for side in low.shape[2:])
            top, left = (low.shape[2] - height) // 2, (low.shape[3] - width) // 2
            yield low[:, :, top : top + height, left : left + width].contiguous()


def run(model: nn.Module, image: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Features after each of LAYERS, and the network's picture."""
    inner: dict[int, Tensor] = {}
    features, count = image, 0
    layers = list(model.body)
    for number, layer in enumerate(layers[:-1]):
        features = layer(features)
        count += isinstance(layer, nn.Conv2d)
        ended = not isinstance(layer, nn.Conv2d) or isinstance(layers[number + 1], nn.Conv2d)
        if ended and count in LAYERS:
            inner[count] = features
    return inner, model(image)


def base(image: Tensor, scale: int) -> Tensor:
    """What the network adds its own output to."""
    return interpolate(image, scale_factor=scale, mode="nearest")


def around(features: Tensor) -> Tensor:
    """Of each pixel the 3x3 features around it, and 1: ``[H * W, 9 * C + 1]``."""
    seen = unfold(features, 3, padding=1)[0].T
    return torch.cat([seen, torch.ones(len(seen), 1)], 1)


def rows_of(planes: Tensor) -> Tensor:
    """``[1, C, H, W]`` to ``[H * W, C]``."""
    return planes[0].flatten(1).T


if __name__ == "__main__":
    main()
