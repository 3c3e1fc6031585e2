"""Colours of video frames to RGB and back, by the same matrix both ways."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

# Of libswscale: bicubic chroma at full resolution, rounded exactly, and the same on every machine.
SWSCALE = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000

UNSPECIFIED = 2  # in all tags but the range, where it is 0
RGB, BT709, BT601 = 0, 1, 6
LIMITED, FULL = 1, 2
HD = 720  # rows from which players take BT.709 where a file does not say


class Colours(NamedTuple):
    """What the numbers of a video mean, as ITU-T H.273 numbers them. bits: per channel."""

    matrix: int
    range: int
    primaries: int
    transfer: int
    bits: int

    @property
    def rgb(self) -> str:
        """The pixel format of RGB that loses nothing."""
        return "rgb24" if self.bits == 8 else "rgb48le"


def colours_of(frame: VideoFrame) -> Colours:
    """What a decoded frame says; where it says nothing, what players take for its size."""
    matrix, span = int(frame.colorspace), int(frame.color_range)
    if frame.format.is_rgb:
        matrix, span = RGB, FULL
    elif matrix in (RGB, UNSPECIFIED):
        matrix = BT709 if frame.height >= HD else BT601
    if span not in (LIMITED, FULL):
        span = FULL if frame.format.name.startswith("yuvj") else LIMITED
    bits = max(component.bits for component in frame.format.components)
    return Colours(matrix, span, int(frame.color_primaries), int(frame.color_trc), 8 if bits <= 8 else 16)


def to_rgb(frame: VideoFrame, colours: Colours, by: VideoReformatter) -> np.ndarray:
    """uint8 or uint16 ``[H, W, 3]``, as `colours` says."""
    frame.colorspace, frame.color_range = colours.matrix, colours.range
    return by.reformat(frame, format=colours.rgb, interpolation=SWSCALE).to_ndarray()


def from_rgb(picture: np.ndarray, colours: Colours, pixel_format: str, by: VideoReformatter) -> VideoFrame:
    """A frame in a pixel format, of uint8 or uint16 ``[H, W, 3]``."""
    frame = VideoFrame.from_ndarray(picture, format=colours.rgb)
    frame.colorspace, frame.color_range = colours.matrix, colours.range
    return by.reformat(frame, format=pixel_format, interpolation=SWSCALE)
