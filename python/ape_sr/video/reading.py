"""Reading a video: what it is, and its frames with their times."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ape_sr.errors import UserError
from ape_sr.video.colours import Colours, colours_of, to_rgb


class Shape(NamedTuple):
    """What all frames of a video share. width, height: in pixels, as shown. aspect: of a pixel.

    rate: frames per second, on average. time_base: seconds per unit of the frames' times. frames: how many there are,
    as far as the file says it; None where it does not.
    """

    width: int
    height: int
    aspect: Fraction
    rate: Fraction
    time_base: Fraction
    frames: int | None
    colours: Colours

    @property
    def step(self) -> int:
        """From one frame to the next, on average, in units of the time base."""
        return max(1, round(1 / (self.rate * self.time_base)))


class Shot(NamedTuple):
    """A frame. pixels: uint8 or uint16 ``[H, W, 3]``. time: when it is shown, in units of the video's `time_base`."""

    pixels: np.ndarray
    time: int


@contextmanager
def opened(path: Path) -> Generator[InputContainer]:
    """The file, to be read. UserError if it cannot be opened as a video."""
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a video: {reason(error)}") from None
    with container:
        yield container


def reason(error: Exception) -> str:
    """What FFmpeg or the system says."""
    return str(getattr(error, "strerror", None) or error)


def read_shape(path: Path) -> Shape:
    """UserError if there is no video in the file, or one that cannot be upscaled frame by frame."""
    with opened(path) as container:
        stream = _stream(path, container)
        try:
            frame = next(container.decode(stream), None)
        except FFmpegError as error:
            raise UserError(f"{path}: damaged in its first frame: {reason(error)}") from None
        if frame is None:
            raise UserError(f"{path}: expected frames, the video stream has none")
        if frame.interlaced_frame:
            raise UserError(f"{path}: expected whole frames, got interlaced ones; deinterlace it first")
        aspect = stream.sample_aspect_ratio or Fraction(1)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        width, height = frame.width, frame.height
        if _quarter_turns(path, frame.rotation) % 2:
            width, height, aspect = height, width, 1 / aspect
        assert stream.time_base is not None
        count = stream.frames
        if not count and container.duration is not None:
            count = round(container.duration / av.time_base * rate)
        return Shape(width, height, aspect, rate, stream.time_base, count or None, colours_of(frame))


def frames(path: Path, shape: Shape, skip: int = 0) -> Generator[Shot]:
    """The frames but for the first so many, which are decoded and passed over.

    Times rise: a frame without a time, or with one that does not come after the frame before, follows that one.
    UserError where the file is damaged, or a frame has another size than the first.
    """
    with opened(path) as container:
        stream = _stream(path, container)
        stream.thread_type = "AUTO"
        decoded = container.decode(stream)
        reformatter = VideoReformatter()
        last: int | None = None
        while True:
            try:
                frame = next(decoded, None)
                if frame is None:
                    return
                time = frame.pts
                if last is not None and (time is None or time <= last):
                    time = last + (shape.step if time is None else 1)
                last = 0 if time is None else time
                if skip:
                    skip -= 1
                    continue
                turns = _quarter_turns(path, frame.rotation)
                colours = colours_of(frame)._replace(bits=shape.colours.bits)
                pixels = np.ascontiguousarray(np.rot90(to_rgb(frame, colours, reformatter), turns))
            except FFmpegError as error:
                where = 0.0 if last is None else float(last * shape.time_base)
                raise UserError(f"{path}: damaged after {where:.2f} s: {reason(error)}") from None
            if pixels.shape[:2] != (shape.height, shape.width):
                was, now = f"{shape.width}x{shape.height}", f"{pixels.shape[1]}x{pixels.shape[0]}"
                raise UserError(f"{path}: expected frames of one size, got {now} after {was}")
            yield Shot(pixels, last)


def _stream(path: Path, container: InputContainer) -> VideoStream:
    """The first stream of video that is no still picture, such as a cover."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise UserError(f"{path}: expected a video, got a file without one")


def _quarter_turns(path: Path, degrees: int) -> int:
    """Anticlockwise, that show a frame upright."""
    turns, rest = divmod(degrees, 90)
    if rest:
        raise UserError(f"{path}: expected frames turned by quarters, got {degrees} degrees")
    return turns % 4
