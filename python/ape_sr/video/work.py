"""A video from file to file."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.pipeline import AHEAD, HELD_BYTES
from ape_sr.video.beside import WriteBehind, read_ahead
from ape_sr.video.enlarge import Enlarger
from ape_sr.video.reading import Mark, frames
from ape_sr.video.segments import LENGTH, Segments
from ape_sr.video.writing import Encoding, SegmentWriter, join


def upscale_video(
    source: Path,
    output: Path,
    encoding: Encoding,
    enlarger: Enlarger,
    segments: Segments,
    progress: Callable[[int], object],
) -> int:
    """Upscale what is missing and write the output; returns the number of frames that this took.

    segments: of this output, held. progress: called with the number of frames that are done, those of finished segments
    included.

    Raises UserError for a damaged source, and for an output that cannot be written. Whatever ends it, segments that
    were finished stay, and nothing else.
    """
    first = number = segments.frames
    progress(number)
    shape = encoding.source
    picture_bytes = shape.width * shape.height * encoding.scale**2 * 3 * (2 if shape.colours.bits > 8 else 1)
    waiting = max(1, min(AHEAD, HELD_BYTES // picture_bytes))
    writer: SegmentWriter | None = None
    open_writers: list[SegmentWriter] = []
    marks: list[Mark] = []
    try:
        with (
            closing(frames(source, shape, number, _last_marks(segments))) as shots,
            closing(read_ahead(shots, AHEAD)) as ahead,
            WriteBehind(waiting) as behind,
        ):
            for shot in ahead:
                if writer is None:
                    writer = SegmentWriter(segments.path(number // LENGTH), encoding)
                    marks = []
                    open_writers = [*(other for other in open_writers if not other.is_finished), writer]
                    if enlarger.tolerance:  # so that it does not matter where an interruption was
                        enlarger.reset()
                behind(writer.write, enlarger(shot.pixels), shot.time)
                marks.append(shot.mark)
                number += 1
                progress(number)
                if number % LENGTH == 0:
                    behind(_finish, writer, marks, segments.marks_path(number // LENGTH - 1))
                    writer = None
            if writer is not None:
                behind(_finish, writer, marks, segments.marks_path(number // LENGTH))
    except BaseException:
        for writer in open_writers:
            writer.discard()
        raise
    if not segments.finished:
        raise UserError(f"{source}: expected frames, the video stream has none")
    join(segments.finished, source, shape, output)
    segments.remove()
    return number - first


def _finish(writer: SegmentWriter, marks: list[Mark], path: Path) -> None:
    """Finish a segment; what it was made of is written before."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(marks))
    writer.finish()


def _last_marks(segments: Segments) -> list[Mark]:
    """Of the frames of the last finished segment; none where they are not known."""
    with suppress(OSError, ValueError, TypeError):
        if segments.finished:
            return [Mark(*mark) for mark in json.loads(segments.marks_path(len(segments.finished) - 1).read_text())]
    return []
