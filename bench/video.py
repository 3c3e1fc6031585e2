"""What plans and reuse save on the frames of videos, beside full depth and PyTorch.

    python bench/video.py                   # the shipped network
    python bench/video.py -n WEIGHTS        # another one that carries a fit, or has one beside it

Two clips are made: a drawing on which an object moves, and a photograph that the camera moves over, with noise. x264
codes them, the drawing once without loss, as recorders of screens do. Times are processor time of one thread per frame,
without the first frame, of which nothing can be reused; the ways take turns, frame by frame.

Of Real-ESRGAN's own networks for videos there are rows of ncnn, in which Real-ESRGAN runs them, if ncnn and pnnx are
installed (the extra `bench`); in float32 as all others are. Its picture is compared to PyTorch's before.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
from ape_sr.models.compact import SRVGGNetCompact
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
COLUMNS = ("clip", "way", "interpolated", "computed", "ms per frame", "frames per second")
PEERS = ("PyTorch", "ncnn")
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


Run = Callable[[torch.Tensor], object]


@dataclass
class Way:
    """A row of the table. most: frames that it runs after the first; None: all. taken: processor time of each."""

    name: str
    run: Run
    most: int | None = None
    taken: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Per frame, without the first."""
        return float(np.mean(self.taken[1:]))


class Reused:
    """Runs frames with reuse. counts: cells in all, computed, and left to interpolation, without the first frame's."""

    def __init__(self, network: ape_sr.APEForward, tolerance: float = 0) -> None:
        self._reuse = FrameReuse(network, tolerance * ROUNDED / LEVELS)
        self._counts: list[tuple[int, ...]] = []

    def __call__(self, image: torch.Tensor) -> None:
        """The next frame."""
        self._reuse(image)
        assert self._reuse.last is not None
        self._counts.append(tuple(self._reuse.last))

    @property
    def counts(self) -> np.ndarray:
        return np.sum(self._counts[1:], 0)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="Time plans and reuse on the frames of videos.")
    parser.add_argument("-n", "--weights", default="edsr-12x32-x4", help="network with a fit (%(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="of a clip (%(default)s)")
    parser.add_argument("--slow-frames", type=int, default=1, help="after the first, of PyTorch and ncnn (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    full, planned = ape_sr.load(args.weights, fidelity=None), ape_sr.load(args.weights)
    if planned.network.fit is None:
        parser.error(f"weights: expected some that carry a fit, got {args.weights}")
    model = full.network.model.to(memory_format=torch.channels_last)
    there = importlib.util.find_spec("ncnn") and importlib.util.find_spec("pnnx")
    peer = in_ncnn(model) if there and isinstance(model, SRVGGNetCompact) else None
    asked = planned.network.fidelity
    print(f"{Path(args.weights).name}, {SIZE[0]}x{SIZE[1]} x{full.scale}, fidelity {asked:g} dB")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        clips = {clip.name: coded(clip, args.frames, Path(folder) / "clip.mp4", pixel_range(model)) for clip in CLIPS}
        if peer is not None:
            check(peer, model, clips[CLIPS[0].name][0])
        columns = [*COLUMNS, *(f"times {name}" for name in PEERS[: 1 if peer is None else 2])]
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for name, images in clips.items():
            ways = [
                Way("PyTorch", lambda image: model(image.to(memory_format=torch.channels_last)), args.slow_frames),
                *([] if peer is None else [Way("ncnn", peer, args.slow_frames)]),
                Way("full depth", full.network),
                Way("full depth, reuse", Reused(full.network)),
                Way("plan", planned.network),
                Way("plan, reuse", Reused(planned.network)),
                Way(f"plan, reuse, tolerance {TOLERANCE:g}", Reused(planned.network, TOLERANCE)),
            ]
            measure(ways, images)
            left_out = float((planned.network.plan(images[-1]).exit_at < 0).double().mean())
            print_rows(name, ways, left_out)


def measure(ways: list[Way], images: list[torch.Tensor]) -> None:
    """Run the ways on every frame, one after the other."""
    for number, image in enumerate(images):
        for way in ways:
            if way.most is None or number <= way.most:
                begin = time.process_time()
                way.run(image)
                way.taken.append(time.process_time() - begin)


def print_rows(clip: str, ways: list[Way], left_out: float) -> None:
    """Rows of the table. left_out: share of the cells of the last frame that the plan leaves to interpolation."""
    slow = {way.name: way.seconds for way in ways}
    for way in ways:
        interpolated, computed = left_out if way.name == "plan" else 0.0, 1.0
        if isinstance(way.run, Reused):
            cells, renewed, few = way.run.counts
            interpolated, computed = few / cells, renewed / cells
        shares = f"{interpolated:.0%} | {computed:.0%} | {1000 * way.seconds:.0f} | {1 / way.seconds:.2f}"
        times = (f"{slow[peer] / way.seconds:.2f}" for peer in PEERS if peer in slow)
        print(f"| {clip} | {way.name} | {shares} | {' | '.join(times)} |", flush=True)


def in_ncnn(model: torch.nn.Module) -> Run:
    """The network at full depth in ncnn, on one thread; gives float32 ``[3, s * H, s * W]``."""
    import ncnn
    import pnnx

    examples = [torch.rand(1, 3, *size) for size in ((64, 96), (80, 128))]  # two sizes: neither is fixed
    with tempfile.TemporaryDirectory() as folder:
        with torch.no_grad():
            pnnx.export(model, f"{folder}/net.pt", (examples[0],), inputs2=(examples[1],), fp16=False)
        net = ncnn.Net()
        net.opt.num_threads = 1
        net.load_param(f"{folder}/net.ncnn.param")
        net.load_model(f"{folder}/net.ncnn.bin")

    def run(image: torch.Tensor) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0].contiguous().numpy()))
        return np.array(extractor.extract("out0")[1])

    return run


def check(peer: Run, model: torch.nn.Module, image: torch.Tensor) -> None:
    """Print how far ncnn's picture of a frame is from PyTorch's."""
    wanted = model(image)[0].numpy() / pixel_range(model)
    error = np.mean((peer(image) / pixel_range(model) - wanted) ** 2)
    print(f"ncnn's picture to PyTorch's: {-10 * np.log10(error):.0f} dB")
    assert error < 1e-8


def coded(clip: Clip, count: int, path: Path, rgb_range: float) -> list[torch.Tensor]:
    """The frames float32 ``[1, 3, H, W]`` after x264 has coded them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=clip.options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for pixels in clip.made(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return [torch.from_numpy(to_planes(shot.pixels, rgb_range)) for shot in frames(path, read_shape(path))]


if __name__ == "__main__":
    main()
