"""Whole images on shared feature maps, on the CPU: what a pixel costs beside patches, and what plans take and leave.

    python bench/images.py                       # pixels of images and patches, parts that are interpolated
    python bench/images.py -i PHOTOGRAPHS        # plans: share of the work, share of the time
    python bench/images.py -n WEIGHTS            # another network in the first table

Times are processor time of one thread, the best of some: other processes on the machine count little. How much two
threads save is told by the clock, on a quiet machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ape_kernels import APEForward, Wish, pack
from ape_kernels.backends.protocol import Depths, Exits
from ape_kernels.geometry import cells_of
from ape_kernels.packed import Packed
from ape_kernels.plan.tones import toned
from ape_kernels.run.images import RING, run_image
from ape_kernels.run.patches import run_patches
from ape_sr.checkpoint import load_model, load_network
from ape_sr.data.images import to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.models import EDSR
from ape_sr.weights import find_weights

SIZES = ((512, 320), (1024, 640))  # low-resolution pixels, width and height
PATCH = 48
CELL = 16
NEVER = float("inf")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time whole images on shared feature maps on one thread.")
    parser.add_argument(
        "-n", "--weights", type=Path, help="network of the first table (EDSR 12x32 and 16x64, untrained)"
    )
    parser.add_argument(
        "-i", "--input", type=Path, help="folder of pictures: measure plans of the shipped weights instead"
    )
    parser.add_argument("--fidelity", type=float, nargs="+", default=[40.0, 45.0, 50.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        if args.input is not None:
            return plans(args.input, args.fidelity)
        networks: dict[str, nn.Module] = {"EDSR 12x32 x4": EDSR(4, 12, 32, 2), "EDSR 16x64 x4": EDSR(4, 16, 64, 2)}
        if args.weights is not None:
            networks = {args.weights.name: load_network(args.weights)}
        for name, model in networks.items():
            pixels(name, pack(model.eval(), Wish("cpu")))


def seconds(run: Callable[[], object], times: int = 5) -> float:
    """Least processor time of a call."""
    taken = []
    for _ in range(times):
        begin = time.process_time()
        run()
        taken.append(time.process_time() - begin)
    return min(taken)


def speed_up(run: Callable[[], object]) -> float:
    """Time on the clock with one thread by that with two: the best of five each, in turns."""
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(5):
        for threads, times in taken.items():
            torch.set_num_threads(threads)
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    torch.set_num_threads(1)
    return min(taken[1]) / min(taken[2])


def pixels(name: str, packed: Packed) -> None:
    """A pixel of an image beside one of patches; images of which a half is interpolated."""
    patches = torch.rand(32, 3, PATCH, PATCH)
    patch = seconds(lambda: run_patches(patches, packed, Exits(NEVER))) / (len(patches) * PATCH**2)
    for width, height in SIZES:
        image = torch.rand(1, 3, height, width)
        took = seconds(lambda image=image: run_image(image, packed, Depths(None, CELL, RING)))
        cost = took / (width * height)
        faster = speed_up(lambda image=image: run_image(image, packed, Depths(None, CELL, RING)))
        print(
            f"{name}, {width}x{height}: {cost * 1e6:.2f} us per pixel, {cost / patch:.3f} of a pixel in patches; "
            f"two threads are {faster:.2f} times as fast"
        )
    width, height = SIZES[0]
    image, full = torch.rand(1, 3, height, width), len(packed.program.stages) - 1
    depths = Depths(None, CELL, RING)
    whole = seconds(lambda: run_image(image, packed, depths))
    for label, exit_at, cell in parts(height, width, full):
        took = seconds(lambda at=exit_at, cell=cell: run_image(image, packed, Depths(at, cell, RING)))
        print(f"{name}, {label}: {took / whole:.3f} of full depth's time")
    nothing = torch.full((1, *cells_of(height, width, CELL)), -1)
    took = seconds(lambda: run_image(image, packed, Depths(nothing, CELL, RING)))
    pixel = took / (width * height * packed.program.scale**2)
    added = seconds(lambda: toned(image, torch.rand(9, 9, 9, 3), 1.0)) / (width * height * packed.program.scale**2)
    print(f"{name}, interpolation: {pixel * 1e9:.1f} ns per pixel of the picture, {added * 1e9:.1f} more with tones")


def parts(height: int, width: int, full: int) -> list[tuple[str, Tensor, int]]:
    """Name, depths and cell of images of which the network runs on a half."""
    upper = torch.full((1, *cells_of(height, width, CELL)), full)
    upper[:, : upper.shape[1] // 2] = -1
    rows, columns = cells_of(height, width, PATCH)
    checks = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2
    return [
        ("upper half interpolated", upper, CELL),
        (f"checkerboard of {PATCH} pixels interpolated", torch.where(checks == 0, -1, full)[None], PATCH),
    ]


def plans(folder: Path, fidelities: list[float]) -> None:
    """Share of the work and of the time of each picture's plan."""
    model = load_model(find_weights(Path("edsr-12x32-x4")))
    whole = APEForward(model, fidelity=None)
    lows = {pair.name: to_tensor(pair.read(model.scale)[0], model.rgb_range) for pair in find_pairs(folder)}
    for asked in fidelities:
        fast = APEForward(model, fidelity=asked)
        for name, image in lows.items():
            plan = fast.plan(image)
            took, whole_took = (seconds(partial(run, image), 3) for run in (fast, whole))
            work = f"{float(plan.share):.3f} of the work, {took / whole_took:.3f} of the time"
            print(f"{asked:g} dB, {name}: {work}")


if __name__ == "__main__":
    main()
