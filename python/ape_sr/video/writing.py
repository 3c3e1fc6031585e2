"""Writing a video: pictures into a segment, and segments with what else the source holds into one file."""

from __future__ import annotations

import heapq
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av import Packet
from av.codec.context import Flags
from av.container import OutputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.video.codecs import CODECS, FORMATS
from ape_sr.video.colours import BT709, FULL, LIMITED, RGB, Colours, from_rgb
from ape_sr.video.copies import add_copies, copied_packets
from ape_sr.video.reading import Shape, opened, reason, url

SEGMENT = "nut"  # keeps the times between frames; Matroska rounds them to milliseconds
BEGIN = "begin"  # metadata of a segment: the time of its first frame, as NUT begins at 0


class Encoding(NamedTuple):
    """How pictures are encoded. codec: a name of CODECS. crf: from 0 to 51, of a codec that loses something.

    source: of the frames. scale: sides of a picture divided by those of a frame.
    """

    codec: str
    crf: int | None
    source: Shape
    scale: int

    @property
    def colours(self) -> Colours:
        """Of the encoded video."""
        colours = self.source.colours
        if self.codec == "ffv1":
            return colours._replace(matrix=RGB, range=FULL)
        return colours._replace(matrix=BT709 if colours.matrix == RGB else colours.matrix, range=LIMITED)

    @property
    def pixel_format(self) -> str:
        """Chroma is halved: even of a network of scale 2 it then has the frames' own resolution."""
        deep = self.source.colours.bits > 8
        if self.codec == "ffv1":
            return "gbrp16le" if deep else "bgr0"
        odd = self.source.width * self.scale % 2 or self.source.height * self.scale % 2
        name = "yuv444p" if odd else "yuv420p"
        return f"{name}10le" if deep else name

    def add_to(self, container: OutputContainer) -> VideoStream:
        """A stream that encodes so."""
        codec = CODECS[self.codec]
        options = {} if codec.crf is None else {"crf": str(codec.crf if self.crf is None else self.crf)}
        if codec.encoder == "libx265":
            options["x265-params"] = "log-level=error"
        stream = container.add_stream(codec.encoder, rate=self.source.rate, options=options)
        assert isinstance(stream, VideoStream)
        context, colours = stream.codec_context, self.colours
        context.width, context.height = self.source.width * self.scale, self.source.height * self.scale
        context.pix_fmt = self.pixel_format
        context.time_base = self.source.time_base
        context.sample_aspect_ratio = self.source.aspect
        context.colorspace, context.color_range = colours.matrix, colours.range
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        context.flags |= Flags.global_header  # every format in which segments are joined wants it
        return stream


class SegmentWriter:
    """Encodes pictures into a file that appears whole or not at all. is_finished: whether it is there."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.is_finished = False
        self._path, self._encoding = path, encoding
        self._stack = ExitStack()
        self._reformatter = VideoReformatter()
        self._out: tuple[OutputContainer, VideoStream] | None = None

    def write(self, picture: np.ndarray, time: int) -> None:
        """uint8 or uint16 ``[H, W, 3]``; see `Shot` for the time."""
        container, stream = self._opened(time)
        frame = from_rgb(picture, self._encoding.colours, self._encoding.pixel_format, self._reformatter)
        frame.pts, frame.time_base = time, self._encoding.source.time_base
        with writes(self._path):
            container.mux(stream.encode(frame))

    def finish(self) -> None:
        """After the last picture."""
        assert self._out is not None
        container, stream = self._out
        with writes(self._path):
            container.mux(stream.encode(None))
            self._stack.close()
        self.is_finished = True

    def discard(self) -> None:
        """Remove what was written, unless it is finished."""
        stop = RuntimeError()
        self._stack.__exit__(type(stop), stop, None)

    def _opened(self, time: int) -> tuple[OutputContainer, VideoStream]:
        if self._out is None:
            temporary = self._stack.enter_context(atomic_path(self._path))
            with writes(self._path):
                container = self._stack.enter_context(av.open(url(temporary), "w", format=SEGMENT))
                container.metadata[BEGIN] = str(time)
                self._out = container, self._encoding.add_to(container)
        return self._out


@contextmanager
def writes(path: Path) -> Generator[None]:
    """What FFmpeg says against writing is a UserError."""
    try:
        yield
    except FFmpegError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from None


def check_output(source: Path, output: Path, encoding: Encoding) -> None:
    """UserError if the output's suffix is of no known format, or of one that cannot hold a stream of the source.

    UserError as well if the codec does not encode pictures of this size, and for subtitles that are to be converted and
    are damaged: all that would be found when much is computed.
    """
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"output: expected a name ending in {', '.join(FORMATS)}, got {output.name}")
    with opened(source) as original, av.open(os.devnull, "w", format=_format(output)) as trial:
        video = encoding.add_to(trial).codec_context
        try:
            video.open()
        except FFmpegError:
            raise UserError(f"codec: {encoding.codec} encodes no pictures of {video.width}x{video.height}") from None
        for _ in copied_packets(original, [copy for copy in add_copies(original, trial) if copy.is_text]):
            pass


def join(segments: Sequence[Path], source: Path, shape: Shape, output: Path) -> None:
    """One file of the segments' pictures and the source's sound, subtitles, chapters and metadata.

    Nothing is encoded again. The output appears whole or not at all.
    """
    shown = [time for segment in segments for time in _shown(segment, shape)]
    decoded = _decode_times(shown, shape.step)
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(output))
        original = stack.enter_context(opened(source))
        first = stack.enter_context(opened(segments[0]))
        with writes(output):
            form = _format(output)
            # of MP4 and MOV: the unit in which the first frame's time stands, milliseconds else
            options = {} if form == "matroska" else {"movie_timescale": str(shape.time_base.denominator)}
            container = stack.enter_context(av.open(url(temporary), "w", format=form, options=options))
            video = container.add_stream_from_template(first.streams.video[0], opaque=True)
            video.time_base = shape.time_base
            video.codec_context.sample_aspect_ratio = shape.aspect
            copies = add_copies(original, container)
            container.metadata.update(original.metadata)
            container.set_chapters(original.chapters())
            packets = (packet for segment in segments for packet in _packets(segment))
            pictures = _timed(packets, shown, decoded, shape, video)
            for packet in heapq.merge(pictures, copied_packets(original, copies), key=_seconds):
                container.mux(packet)
            container.close()


def _format(output: Path) -> str:
    return FORMATS[output.suffix.lower()]


def _packets(segment: Path) -> Generator[Packet]:
    with opened(segment) as container:
        yield from (packet for packet in container.demux(video=0) if packet.size)


def _shown(segment: Path, shape: Shape) -> list[int]:
    """When the frame of each packet is shown, in units of the video's time base."""
    with opened(segment) as container:
        begin, unit = int(container.metadata[BEGIN]), container.streams.video[0].time_base
    assert unit is not None
    times = [packet.pts for packet in _packets(segment) if packet.pts is not None]
    return [begin + round((time - min(times)) * unit / shape.time_base) for time in times]


def _decode_times(shown: Sequence[int], step: int) -> list[int]:
    """When packets are decoded, of the times their pictures are shown: as late as keeps them rising."""
    ordered = sorted(shown)
    places = {time: place for place, time in enumerate(ordered)}
    delay = max(number - places[time] for number, time in enumerate(shown))
    return [ordered[0] - step * early for early in range(delay, 0, -1)] + ordered[: len(ordered) - delay]


def _timed(
    packets: Iterable[Packet], shown: Sequence[int], decoded: Sequence[int], shape: Shape, stream: Stream
) -> Generator[Packet]:
    """The packets with their times. The duration counts for the last alone."""
    for packet, pts, dts in zip(packets, shown, decoded, strict=True):
        packet.time_base, packet.pts, packet.dts = shape.time_base, pts, dts
        packet.duration = shape.step
        packet.stream = stream
        yield packet


def _seconds(packet: Packet) -> Fraction:
    """When a packet is decoded."""
    assert packet.dts is not None and packet.time_base is not None
    return packet.dts * packet.time_base
