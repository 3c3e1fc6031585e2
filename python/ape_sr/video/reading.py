"""Reading a video: what it is, and its frames with their times."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ape_sr.errors import UserError
from ape_sr.video.colours import Colours, colours_of, to_rgb

PICTURE = "_pipe", "image2"  # how names of FFmpeg's formats of still pictures end
REORDERED = 16  # frames, at most, that are decoded before one that is shown earlier


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


class Mark(NamedTuple):
    """By which a frame is known again. time: when it is shown, in units of the video's `time_base`."""

    time: int
    digest: str


class Shot(NamedTuple):
    """A frame. pixels: uint8 or uint16 ``[H, W, 3]``."""

    pixels: np.ndarray
    mark: Mark

    @property
    def time(self) -> int:
        """When it is shown, in units of the video's `time_base`."""
        return self.mark.time


@contextmanager
def opened(path: Path) -> Generator[InputContainer]:
    """The file, to be read. UserError if it cannot be opened as a video."""
    try:
        path.stat()  # FFmpeg takes some names for patterns
        container = av.open(url(path))
    except (FFmpegError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a video: {reason(error)}") from None
    with container:
        yield container


def url(path: Path) -> str:
    """By which FFmpeg opens a file whatever its name."""
    return f"file:{path.absolute()}"


def reason(error: Exception) -> str:
    """What FFmpeg or the system says."""
    return str(getattr(error, "strerror", None) or error)


def read_shape(path: Path) -> Shape:
    """UserError if there is no video in the file, or one that cannot be upscaled frame by frame."""
    with opened(path) as container:
        stream = _stream(path, container)
        if container.format.name.endswith(PICTURE):
            raise UserError(f"{path}: expected a video, got a picture; `ape-sr upscale` is for these")
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


def frames(path: Path, shape: Shape, skip: int = 0, last: Sequence[Mark] = ()) -> Generator[Shot]:
    """The frames but for the first `skip`.

    Times rise: a frame without a time, or with one that does not come after the frame before, follows that one.

    last: marks of the last frames of those, without gaps. Decoding then begins at a keyframe before these, if frames of
    the same marks come from there: what follows them is what it would be else. If not, all are decoded.

    UserError where the file is damaged, or a frame has another size than the first.
    """
    if last:
        with opened(path) as container:
            decoded = _sought(path, container, shape, last)
            if decoded is not None:
                yield from _shots(path, shape, decoded, last[-1].time)
                return
    with opened(path) as container:
        yield from _shots(path, shape, _decoded(path, container), None, skip)


def _decoded(path: Path, container: InputContainer) -> Iterator[VideoFrame]:
    stream = _stream(path, container)
    stream.thread_type = "AUTO"
    return container.decode(stream)


def _sought(path: Path, container: InputContainer, shape: Shape, last: Sequence[Mark]) -> Iterator[VideoFrame] | None:
    """The frames that follow those of the marks, from a keyframe on; None where that is not exact."""
    reformatter = VideoReformatter()
    found: list[Mark] = []
    before: int | None = None
    try:
        container.seek(last[0].time - REORDERED * shape.step, stream=_stream(path, container))
        decoded = dropwhile(lambda frame: not frame.key_frame, _decoded(path, container))
        for frame in decoded:
            if frame.pts is None or (before is not None and frame.pts <= before) or frame.is_corrupt:
                return None
            before = frame.pts
            if before >= last[0].time:
                found.append(_mark(before, _pixels(path, frame, shape, reformatter)))
            if before >= last[-1].time:
                return decoded if found == list(last) else None
    except (FFmpegError, UserError):
        pass
    return None


def _shots(path: Path, shape: Shape, decoded: Iterator[VideoFrame], last: int | None, skip: int = 0) -> Generator[Shot]:
    """What is left of the frames. last: the time of the one before; None if there is none."""
    reformatter = VideoReformatter()
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
            pixels = _pixels(path, frame, shape, reformatter)
        except FFmpegError as error:
            where = 0.0 if last is None else float(last * shape.time_base)
            raise UserError(f"{path}: damaged after {where:.2f} s: {reason(error)}") from None
        if pixels.shape[:2] != (shape.height, shape.width):
            was, now = f"{shape.width}x{shape.height}", f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise UserError(f"{path}: expected frames of one size, got {now} after {was}")
        yield Shot(pixels, _mark(last, pixels))


def _pixels(path: Path, frame: VideoFrame, shape: Shape, by: VideoReformatter) -> np.ndarray:
    """As `Shot` has them."""
    turns = _quarter_turns(path, frame.rotation)
    colours = colours_of(frame)._replace(bits=shape.colours.bits)
    return np.ascontiguousarray(np.rot90(to_rgb(frame, colours, by), turns))


def _mark(time: int, pixels: np.ndarray) -> Mark:
    return Mark(time, hashlib.blake2b(pixels.data, digest_size=16).hexdigest())


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
