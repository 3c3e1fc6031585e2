"""What plans and reuse save on the frames of videos, beside full depth and PyTorch.

    python bench/video.py                   # the shipped network
    python bench/video.py -n WEIGHTS        # another one that carries a fit, or has one beside it

Two clips are made: a drawing on which an object moves, and a photograph that the camera moves over, with noise. x264
codes them, the drawing once without loss, as recorders of screens do. Times are processor time of one thread per frame,
without the first frame, of which nothing can be reused.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from drawings import draw
from PIL import Image

import ape_sr
from ape_kernels.reuse import FrameReuse
from ape_sr.models.base import pixel_range
from ape_sr.pictures.planes import to_planes
from ape_sr.video.codecs import LEVELS
from ape_sr.video.enlarge import ROUNDED
from ape_sr.video.reading import frames, read_shape

ROOT = Path(__file__).parents[1]
SIZE = (1280, 720)  # of a frame, width and height
OBJECT = 64  # pixels of its sides
STEP = 4  # pixels by which it moves per frame
PAN = 2  # pixels by which the camera moves per frame
NOISE = 2.0  # levels, standard deviation
TOLERANCE = 2.0  # levels
GROUND, THING = 2000, 2001  # seeds of drawings that no fit has seen


class Clip(NamedTuple):
    """Frames uint8 ``[H, W, 3]``, and the options with which x264 codes them."""

    name: str
    made: Callable[[int], Iterator[np.ndarray]]
    options: dict[str, str]


def drawn(count: int) -> Iterator[np.ndarray]:
    """A disc moves over ground that stands still."""
    ground, thing = draw(GROUND, SIZE), draw(THING, (OBJECT, OBJECT))
    y, x = np.mgrid[:OBJECT, :OBJECT] - (OBJECT - 1) / 2
    disc = (x**2 + y**2 < (OBJECT / 2) ** 2)[..., None]
    top = (SIZE[1] - OBJECT) // 2
    for number in range(count):
        left = 100 + STEP * number
        frame = ground.copy()
        part = frame[top : top + OBJECT, left : left + OBJECT]
        part[...] = np.where(disc, thing, part)
        yield frame


def filmed(count: int) -> Iterator[np.ndarray]:
    """The camera moves over a photograph, and its sensor is noisy."""
    rng = np.random.default_rng(0)
    photo = Image.open(ROOT / "assets" / "photo.jpg").convert("RGB")
    width = SIZE[0] + PAN * count
    photo = np.asarray(photo.resize((width, width * photo.height // photo.width))).astype(np.float32)
    for number in range(count):
        frame = photo[: SIZE[1], PAN * number : PAN * number + SIZE[0]]
        yield np.clip(np.rint(frame + rng.normal(0, NOISE, frame.shape)), 0, 255).astype(np.uint8)


CLIPS = (
    Clip("drawn, x264 without loss", drawn, {"qp": "0"}),
    Clip("drawn, x264 as by default", drawn, {"crf": "18"}),
    Clip("filmed, x264 as by default", filmed, {"crf": "18"}),
)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="Time plans and reuse on the frames of videos.")
    parser.add_argument("-n", "--weights", default="edsr-12x32-x4", help="network with a fit (%(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="of a clip (%(default)s)")
    parser.add_argument("--pytorch-frames", type=int, default=1, help="that PyTorch runs (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    upscaler = ape_sr.load(args.weights)
    if upscaler.network.fit is None:
        parser.error(f"weights: expected some that carry a fit, got {args.weights}")
    asked = upscaler.network.fidelity
    print(f"{Path(args.weights).name}, {SIZE[0]}x{SIZE[1]} x{upscaler.scale}, fidelity {asked:g} dB\n")
    print("| clip | way | interpolated | computed | ms per frame | frames per second | times PyTorch |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for clip in CLIPS:
            images = coded(clip, args.frames, Path(folder) / "clip.mp4", pixel_range(upscaler.network.model))
            rows(clip.name, upscaler, images, args.pytorch_frames)


def coded(clip: Clip, count: int, path: Path, rgb_range: float) -> list[torch.Tensor]:
    """The frames float32 ``[1, 3, H, W]`` after x264 has coded them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=clip.options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for pixels in clip.made(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return [torch.from_numpy(to_planes(shot.pixels, rgb_range)) for shot in frames(path, read_shape(path))]


def rows(name: str, upscaler: ape_sr.Upscaler, images: list[torch.Tensor], pytorch_frames: int) -> None:
    """Print the rows of a clip."""
    network, asked = upscaler.network, upscaler.network.fidelity
    model = network.model.to(memory_format=torch.channels_last)
    few = [image.to(memory_format=torch.channels_last) for image in images[: pytorch_frames + 1]]
    slowest = seconds(model, few)

    def row(way: str, taken: float, interpolated: float = 0, computed: float = 1) -> None:
        shares = f"{interpolated:.0%} | {computed:.0%}"
        print(
            f"| {name} | {way} | {shares} | {1000 * taken:.0f} | {1 / taken:.2f} | {slowest / taken:.2f} |", flush=True
        )

    row("PyTorch", slowest)
    network.fidelity = None
    row("full depth", seconds(network, images))
    again = FrameReuse(network)
    taken, _, computed = reused(again, images)
    row("full depth, reuse", taken, 0, computed)
    network.fidelity = asked
    plan = network.plan(images[-1])
    row("plan", seconds(network, images), float((plan.exit_at < 0).double().mean()))
    for tolerance in (0.0, TOLERANCE):
        taken, interpolated, computed = reused(FrameReuse(network, tolerance * ROUNDED / LEVELS), images)
        row(f"plan, reuse{f', tolerance {tolerance:g}' if tolerance else ''}", taken, interpolated, computed)


def seconds(run: Callable[[torch.Tensor], object], images: list[torch.Tensor]) -> float:
    """Mean processor time of a call, without the first."""
    run(images[0])
    begin = time.process_time()
    for image in images[1:]:
        run(image)
    return (time.process_time() - begin) / (len(images) - 1)


def reused(reuse: FrameReuse, images: list[torch.Tensor]) -> tuple[float, float, float]:
    """Mean processor time of a call without the first; shares of cells that were interpolated and computed in these."""
    counts = np.zeros(3)

    def run(image: torch.Tensor) -> None:
        reuse(image)
        assert reuse.last is not None
        counts[:] += reuse.last

    run(images[0])
    counts[:] = 0
    begin = time.process_time()
    for image in images[1:]:
        run(image)
    taken = (time.process_time() - begin) / (len(images) - 1)
    return taken, counts[2] / counts[0], counts[1] / counts[0]


if __name__ == "__main__":
    main()
