"""Whole photographs: planned by this package, at full depth, and by OpenVINO in float32 and in INT8 (NNCF).

    python bench/photographs.py -i PHOTOGRAPHS [-n edsr-12x32-x4] [--fidelity 45] [--threads 1]

Needs the packages openvino and nncf. INT8 is calibrated on the photographs themselves, the best case for it. Each
engine gets the whole picture, with shapes fixed in advance; a plan's time is in its row. Times are processor time of
all threads, the best of five in turns: other processes on the machine count little. bf16 is faster on CPUs with AMX
alone. Fidelity is the PSNR to the model's own picture in float32, over all channels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import openvino as ov
import torch
from torch import Tensor, nn

from ape_kernels import APEForward
from ape_sr.checkpoint import load_model
from ape_sr.data.images import to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.weights import find_weights

TURNS = 5
TILE = 128  # pixels a side of the pictures that INT8 is calibrated on


@torch.no_grad()
def main() -> None:
    """Measure, and print a line for each photograph and the totals."""
    parser = argparse.ArgumentParser(description="Time whole photographs beside OpenVINO.")
    parser.add_argument("-n", "--weights", type=Path, default=Path("edsr-12x32-x4"))
    parser.add_argument("-i", "--input", type=Path, required=True)
    parser.add_argument("--fidelity", type=float, default=45.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(find_weights(args.weights))
    images = {pair.name: to_tensor(pair.read(model.scale)[0], model.rgb_range) for pair in find_pairs(args.input)}
    planned = f"planned, {args.fidelity:g} dB"
    small = quantised(model, list(images.values()))
    totals: dict[str, float] = {}
    for name, image in images.items():
        fast, whole = APEForward(model, fidelity=args.fidelity), APEForward(model, fidelity=None)
        fast_bf16 = APEForward(model, fidelity=args.fidelity, dtype=torch.bfloat16)
        rows: dict[str, Callable[[], Tensor]] = {
            "OpenVINO f32": on_openvino(converted(model, image), args.threads, image),
            "OpenVINO INT8": on_openvino(reshaped(small, image), args.threads, image),
            "full depth": lambda image=image, whole=whole: whole(image),
            planned: lambda image=image, fast=fast: fast(image),
            f"{planned}, bf16": lambda image=image, fast=fast_bf16: fast(image),
        }
        own = whole(image)
        taken: dict[str, list[float]] = {row: [] for row in rows}
        for _ in range(TURNS):
            for row, run in rows.items():
                begin = time.process_time()
                run()
                taken[row].append(time.process_time() - begin)
        line = [f"{float(1 - fast.plan(image).share):.1%} saved"]
        for row, run in rows.items():
            totals[row] = totals.get(row, 0.0) + min(taken[row])
            line.append(f"{row} {min(taken[row]) * 1e3:.0f} ms ({decibels(run(), own):.1f} dB)")
        print(f"{name}, {image.shape[3]}x{image.shape[2]}: {', '.join(line)}", flush=True)
    print("totals: " + ", ".join(f"{row} {seconds * 1e3:.0f} ms" for row, seconds in totals.items()))
    for row in ("OpenVINO f32", "OpenVINO INT8"):
        gains = [f"{totals[row] / totals[ours]:.2f} times {ours}" for ours in list(totals)[2:]]
        print(f"{row} takes {' and '.join(gains)}")


def converted(model: nn.Module, image: Tensor) -> Any:
    """For pictures as large as `image`."""
    return ov.convert_model(model, example_input=image, input=list(image.shape))


def quantised(model: nn.Module, images: list[Tensor]) -> Any:
    """In INT8, calibrated on squares of the images, for pictures of any size."""
    squares = [part for each in images for row in each.split(TILE, 2) for part in row.split(TILE, 3)]
    squares = [part for part in squares if part.shape[2] == part.shape[3] == TILE]
    anything = ov.convert_model(model, example_input=squares[0], input=[1, squares[0].shape[1], -1, -1])
    return nncf.quantize(anything, nncf.Dataset(squares, lambda part: part.numpy()))


def reshaped(network: Any, image: Tensor) -> Any:
    """For pictures as large as `image`."""
    network = network.clone()
    network.reshape(list(image.shape))
    return network


def on_openvino(network: Any, threads: int, image: Tensor) -> Callable[[], Tensor]:
    """One request at a time, in float32 where it is not quantised."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()

    def run() -> Tensor:
        request.infer({0: image.numpy()})
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


def decibels(picture: Tensor, own: Tensor) -> float:
    """Of pictures from 0 to 1, clamped."""
    error = (picture.clamp(0, 1) - own.clamp(0, 1)).square().mean()
    return -10 * float(torch.log10(error.clamp_min(1e-10)))


if __name__ == "__main__":
    main()
