"""What a video file holds besides its pictures: sound and subtitles, copied into the output."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple, cast

from av import Packet
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext

from ape_sr.errors import UserError
from ape_sr.video.codecs import FORMATS
from ape_sr.video.reading import reason

KINDS = ("audio", "subtitle")
TEXT = {"matroska": "subrip", "mp4": "mov_text", "mov": "mov_text"}  # format -> its codec for subtitles of text


class Copy(NamedTuple):
    """A stream of the output, of one of the source. is_text: whether its subtitles are written in `TEXT`'s codec."""

    source: Stream
    output: Stream
    is_text: bool


def add_copies(original: InputContainer, container: OutputContainer) -> list[Copy]:
    """Streams for all sound and subtitles. UserError for one that the output's format cannot hold."""
    return [_add_copy(stream, original, container) for stream in original.streams if stream.type in KINDS]


def copied_packets(original: InputContainer, copies: list[Copy]) -> Generator[Packet]:
    """The packets of these streams, in the order of the file. UserError for subtitles that cannot be read."""
    by_index = {copy.source.index: copy for copy in copies}
    if not copies:
        return
    for packet in original.demux([copy.source for copy in copies]):
        if packet.dts is None:
            continue
        copy = by_index[packet.stream_index]
        if copy.is_text:
            converted = _converted(packet, copy)
            if converted is None:
                continue
            packet = converted
        packet.stream = copy.output
        yield packet


def _add_copy(stream: Stream, original: InputContainer, container: OutputContainer) -> Copy:
    is_text = False
    try:
        output = container.add_stream_from_template(stream, opaque=True)
    except (ValueError, FFmpegError):
        context: Any = stream.codec_context  # None for codecs that FFmpeg does not know
        if stream.type != "subtitle" or context is None or not context.codec.text_sub:
            name, form = getattr(context, "name", "of an unknown codec"), container.format.name
            suffix = next(suffix for suffix, other in FORMATS.items() if other == form)
            others = ", ".join(other for other in FORMATS if other != suffix)
            raise UserError(
                f"output: {suffix} cannot hold the {stream.type} stream {stream.index} of {Path(original.name).name} "
                f"({name}); try {others}"
            ) from None
        is_text = True
        output = container.add_stream(TEXT[container.format.name])
        stream.codec_context.open(strict=False)
        # the styles, without which some encoders do not begin
        _subtitles(output).subtitle_header = _subtitles(stream).subtitle_header
        output.time_base = stream.time_base
    output.metadata.update(stream.metadata)
    output.disposition = stream.disposition
    return Copy(stream, output, is_text)


def _converted(packet: Packet, copy: Copy) -> Packet | None:
    """In the codec of the output; None for one that shows nothing."""
    try:
        shown = _subtitles(copy.source).decode2(packet)
        if shown is None:
            return None
        converted = _subtitles(copy.output).encode_subtitle(shown)
    except FFmpegError as error:
        raise UserError(f"input: the subtitles of stream {copy.source.index} are damaged: {reason(error)}") from None
    converted.time_base, converted.pts, converted.dts = packet.time_base, packet.pts, packet.dts
    converted.duration = packet.duration
    return converted


def _subtitles(stream: Stream) -> SubtitleCodecContext:
    return cast(SubtitleCodecContext, stream.codec_context)
