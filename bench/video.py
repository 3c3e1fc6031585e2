"""What plans and reuse save on the frames of videos, beside full depth and PyTorch.

    python bench/video.py                   # the shipped network
    python bench/video.py -n WEIGHTS        # another one that carries a fit, or has one beside it
    python bench/video.py --sizes 64 200    # does time follow what is computed: objects so large move, at full depth
    python bench/video.py --memory          # what is kept of a frame for the next one

Two clips are made: a drawing on which an object moves, and a photograph that the camera moves over, with noise. x264
codes them, the drawing once without loss, as recorders of screens do. Times are processor time of one thread per frame,
without the first frame, of which nothing can be reused; the ways take turns, frame by frame. Frames and pictures are
whole numbers, as `ape-sr video` has them.

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
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from drawings import draw
from PIL import Image

import ape_sr
from ape_kernels import Wish, pack
from ape_kernels.backends.native_calls import program_arguments
from ape_kernels.native import core
from ape_sr.models import EDSR, RRDBNet
from ape_sr.models.base import pixel_range
from ape_sr.models.compact import SRVGGNetCompact
from ape_sr.pictures.planes import to_planes
from ape_sr.video.enlarge import Enlarger
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


def drawn(count: int, size: int = OBJECT) -> Iterator[np.ndarray]:
    """A disc moves over ground that stands still."""
    ground, thing = draw(GROUND, SIZE), draw(THING, (size, size))
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = (x**2 + y**2 < (size / 2) ** 2)[..., None]
    top = (SIZE[1] - size) // 2
    for number in range(count):
        left = 100 + STEP * number
        frame = ground.copy()
        part = frame[top : top + size, left : left + size]
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


Run = Callable[[np.ndarray], object]


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
    """Runs frames with reuse. counts: of each, its pixels, those computed, and those left to interpolation."""

    def __init__(self, upscaler: ape_sr.Upscaler, tolerance: float = 0) -> None:
        self._enlarger = Enlarger(upscaler, tolerance)
        self.counts: list[np.ndarray] = []

    def __call__(self, pixels: np.ndarray) -> None:
        """The next frame."""
        done = self._enlarger
        before = np.array((done.pixels, done.renewed, done.interpolated))
        done(pixels)
        self.counts.append(np.array((done.pixels, done.renewed, done.interpolated)) - before)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="Time plans and reuse on the frames of videos.")
    parser.add_argument("-n", "--weights", default="edsr-12x32-x4", help="network with a fit (%(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="of a clip (%(default)s)")
    parser.add_argument("--slow-frames", type=int, default=1, help="after the first, of PyTorch and ncnn (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", help="sides of objects: how time follows what is computed")
    parser.add_argument("--memory", action="store_true", help="print what is kept of a frame by several networks")
    args = parser.parse_args()
    if args.memory:
        print_memory()
        return
    torch.set_num_threads(1)
    full, planned = ape_sr.load(args.weights, fidelity=None), ape_sr.load(args.weights)
    if planned.network.fit is None:
        parser.error(f"weights: expected some that carry a fit, got {args.weights}")
    if args.sizes:
        follow(full, args.sizes, args.frames)
        return
    model = full.network.model.to(memory_format=torch.channels_last)
    white = pixel_range(model)

    def pytorch(pixels: np.ndarray) -> torch.Tensor:
        return model(torch.from_numpy(to_planes(pixels, white)).to(memory_format=torch.channels_last))

    there = importlib.util.find_spec("ncnn") and importlib.util.find_spec("pnnx")
    peer = in_ncnn(model, white) if there and isinstance(model, SRVGGNetCompact) else None
    asked = planned.network.fidelity
    print(f"{Path(args.weights).name}, {SIZE[0]}x{SIZE[1]} x{full.scale}, fidelity {asked:g} dB")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        clips = {clip.name: coded(clip, args.frames, Path(folder) / "clip.mp4") for clip in CLIPS}
        if peer is not None:
            check(peer, pytorch, clips[CLIPS[0].name][0], white)
        columns = [*COLUMNS, *(f"times {name}" for name in PEERS[: 1 if peer is None else 2])]
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for name, images in clips.items():
            ways = [
                Way("PyTorch", pytorch, args.slow_frames),
                *([] if peer is None else [Way("ncnn", peer, args.slow_frames)]),
                Way("full depth", full.upscale),
                Way("full depth, reuse", Reused(full)),
                Way("plan", planned.upscale),
                Way("plan, reuse", Reused(planned)),
                Way(f"plan, reuse, tolerance {TOLERANCE:g}", Reused(planned, TOLERANCE)),
            ]
            measure(ways, images)
            print_rows(name, ways)


def follow(upscaler: ape_sr.Upscaler, sizes: list[int], count: int) -> None:
    """Print how the time of a frame with reuse follows the share computed, as medians over the frames."""
    print("| object | computed | time, of the whole frame's | time to share |\n|---|---|---|---|")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            clip = Clip("", partial(drawn, size=size), {"qp": "0"})
            images = coded(clip, count, Path(folder) / "clip.mp4")
        ways = [Way("", upscaler.upscale), Way("", Reused(upscaler))]
        measure(ways, images)
        times = np.array(ways[1].taken[1:]) / np.array(ways[0].taken[1:])
        assert isinstance(ways[1].run, Reused)
        shares = np.array([renewed / pixels for pixels, renewed, _ in ways[1].run.counts[1:]])
        numbers = (f"{np.median(values):.3f}" for values in (shares, times, times / shares))
        print(f"| {size} | {' | '.join(numbers)} |", flush=True)


def print_memory() -> None:
    """Print the bytes of the strips that are kept of a frame, in MB."""
    networks = {
        "EDSR 12x32": EDSR(4, 12, 32, 3),
        "EDSR 16x64": EDSR(4, 16, 64, 4),
        "realesr-animevideov3": SRVGGNetCompact(4, 16, 64),
        "RealESRGAN_x4plus_anime_6B": RRDBNet(4, 6, 64, 32, None),
    }
    print(f"| {SIZE[0]}x{SIZE[1]}, MB | float32 | bfloat16 |\n|---|---|---|")
    for name, model in networks.items():
        kept: list[str] = []
        for dtype in (torch.float32, torch.bfloat16):
            packed = pack(model.eval(), Wish("cpu", dtype, images=True))
            assert packed.sharing is not None
            strips = program_arguments(packed.tensors) | {"sharing": packed.sharing.data_ptr()}
            kept.append(f"{core().cpu_kept_bytes(**strips, height=SIZE[1], width=SIZE[0]) / 1e6:.0f}")
        print(f"| {name} | {' | '.join(kept)} |")


def measure(ways: list[Way], images: list[np.ndarray]) -> None:
    """Run the ways on every frame, one after the other."""
    for number, image in enumerate(images):
        for way in ways:
            if way.most is None or number <= way.most:
                begin = time.process_time()
                way.run(image)
                way.taken.append(time.process_time() - begin)


def print_rows(clip: str, ways: list[Way]) -> None:
    """Rows of the table."""
    slow = {way.name: way.seconds for way in ways}
    shares: dict[str, tuple[float, float]] = {}  # interpolated and computed
    for way in ways:
        if isinstance(way.run, Reused):
            pixels, renewed, few = np.sum(way.run.counts[1:], 0)
            shares[way.name] = few / pixels, renewed / pixels
    shares["plan"] = shares["plan, reuse"][0], 1.0
    for way in ways:
        interpolated, computed = shares.get(way.name, (0.0, 1.0))
        numbers = f"{interpolated:.0%} | {computed:.0%} | {1000 * way.seconds:.0f} | {1 / way.seconds:.2f}"
        times = (f"{slow[peer] / way.seconds:.2f}" for peer in PEERS if peer in slow)
        print(f"| {clip} | {way.name} | {numbers} | {' | '.join(times)} |", flush=True)


def in_ncnn(model: torch.nn.Module, white: float) -> Run:
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

    def run(pixels: np.ndarray) -> np.ndarray:
        planes = to_planes(pixels, white)  # Mat does not hold it
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(planes[0]))
        return np.array(extractor.extract("out0")[1])

    return run


def check(peer: Run, pytorch: Callable[[np.ndarray], torch.Tensor], pixels: np.ndarray, white: float) -> None:
    """Print how far ncnn's picture of a frame is from PyTorch's."""
    error = np.mean(((peer(pixels) - pytorch(pixels)[0].numpy()) / white) ** 2)
    print(f"ncnn's picture to PyTorch's: {-10 * np.log10(error):.0f} dB")
    assert error < 1e-8


def coded(clip: Clip, count: int, path: Path) -> list[np.ndarray]:
    """The frames uint8 ``[H, W, 3]`` after x264 has coded them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=clip.options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for pixels in clip.made(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return [shot.pixels for shot in frames(path, read_shape(path))]


if __name__ == "__main__":
    main()
