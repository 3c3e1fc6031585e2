"""What arguments can say. Without FFmpeg and PyTorch, so that the help of the command needs neither."""

from __future__ import annotations

from typing import NamedTuple

FORMATS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov"}  # suffix -> format of FFmpeg


class Codec(NamedTuple):
    """encoder: its name in FFmpeg. crf: of good pictures; None where nothing is lost."""

    encoder: str
    crf: int | None


CODECS = {"h264": Codec("libx264", 16), "h265": Codec("libx265", 18), "ffv1": Codec("ffv1", None)}
WORST_CRF = 51
LEVELS = 255  # of 8 bits, in which tolerances are given
