"""Small videos, and what is in a video file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

import ape_sr
from ape_sr.cli import main
from ape_sr.video.reading import frames as frames_of
from ape_sr.video.reading import read_shape

LOSSLESS = ("--codec", "ffv1")
TICKS = 12800  # per second: the unit of times in what `write_video` writes
SUBTITLES = "1\n00:00:00,040 --> 00:00:00,400\nHello\n\n2\n00:00:00,500 --> 00:00:00,900\n<i>World</i>\n"


def moving_object(count: int, height: int = 96, width: int = 128, seed: int = 0) -> list[np.ndarray]:
    """Frames uint8 ``[H, W, 3]``: a square that moves by 3 pixels per frame over ground that stands still."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    ground = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    frames = []
    for number in range(count):
        left = 3 * number % (width - 16)
        frame = ground.copy()
        frame[12:28, left : left + 16] = (250, 40, 30)
        frames.append(frame)
    return frames


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    times: Callable[[int], int] = lambda number: 512 * number,
    *,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
    sound: str | None = None,
    subtitles: Path | None = None,
    set_up: Callable[[av.video.stream.VideoStream], object] = lambda stream: None,
) -> None:
    """Write frames uint8 ``[H, W, 3]``; times: of each by its number, in units of 1 / TICKS seconds.

    sound: a codec. subtitles: a file whose stream goes in. set_up: called with the stream of the pictures.
    """
    frames = list(frames)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = pixel_format
        video.codec_context.time_base = Fraction(1, TICKS)
        set_up(video)
        audio = container.add_stream(sound, rate=48000) if sound else None
        opened = None if subtitles is None else av.open(str(subtitles))
        text = None if opened is None else container.add_stream_from_template(opened.streams[0], opaque=True)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.dtype == np.uint8 else "rgb48le")
            frame.pts, frame.time_base = times(number), Fraction(1, TICKS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            for number in range(times(len(frames)) * 48000 // TICKS // 1024):
                wave = np.sin(np.arange(number * 1024, (number + 1) * 1024) * 0.05).astype(np.float32)
                sounds = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
                sounds.sample_rate, sounds.pts = 48000, number * 1024
                container.mux(audio.encode(sounds))
            container.mux(audio.encode(None))
        if opened is not None:
            for packet in opened.demux():
                if packet.size:
                    packet.stream = text
                    container.mux(packet)
            opened.close()


class Held(NamedTuple):
    """What is in a file. frames: uint8 ``[H, W, 3]``. times: of the frames, in seconds.

    sounds, texts: packets of the other streams, each with its time in seconds.
    """

    frames: list[np.ndarray]
    times: list[Fraction]
    sounds: list[tuple[float, bytes]]
    texts: list[tuple[float, bytes]]


def read_video(path: Path) -> Held:
    """Decode the pictures as FFmpeg does by itself, and take the packets of the rest."""
    held = Held([], [], [], [])
    with av.open(f"file:{path}") as container:
        for frame in container.decode(video=0):
            assert frame.pts is not None and frame.time_base is not None
            held.frames.append(frame.to_ndarray(format="rgb24"))
            held.times.append(frame.pts * frame.time_base)
    with av.open(f"file:{path}") as container:
        for packet in container.demux():
            if packet.size and packet.stream.type in ("audio", "subtitle"):
                kept = held.sounds if packet.stream.type == "audio" else held.texts
                kept.append((round(float(packet.pts * packet.time_base), 3), bytes(packet)))
    return held


def run(source: Path, output: Path, weights: Path, *options: object) -> int:
    return main(["video", "-i", str(source), "-o", str(output), "-n", str(weights), *map(str, options)])


def alone(source: Path, weights: Path, **options: object) -> list[np.ndarray]:
    """Every frame upscaled by itself."""
    upscaler = ape_sr.load(weights, **options)
    return [upscaler.upscale(shot.pixels) for shot in frames_of(source, read_shape(source))]


def assert_same(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(got) == len(expected)
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert np.array_equal(one, other), f"frame {number}"


def left_beside(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir() if path.name.startswith("."))


def options(of_codec: dict[str, str]):
    """Sets options of the codec."""
    return lambda stream: stream.options.update(of_codec)
