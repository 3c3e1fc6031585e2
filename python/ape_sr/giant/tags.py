"""What a result carries of a TIFF file besides its pixels: texts, and where on a map it lies."""

from __future__ import annotations

from typing import Any

from tifffile import TiffPage

from ape_sr.pictures.exif import TEXTS

SCALE, TIE_POINTS, TRANSFORMATION = 33550, 33922, 34264
KEYS, KEY_NUMBERS, KEY_TEXTS = 34735, 34736, 34737
METADATA, NO_DATA = 42112, 42113  # of GDAL
RASTER_TYPE, POINT = 1025, 2  # a key, and its value where coordinates are those of a pixel's middle
ASCII, SHORT, DOUBLE = 2, 3, 12

Tag = tuple[int, int, int, Any, bool]  # as tifffile takes them: code, dtype, count, value, of the first page alone


def carried_tags(page: TiffPage, scale: int) -> list[Tag]:
    """Tags of the result that is `scale` times as large as a page."""
    tags: list[Tag] = []
    for code in (*TEXTS, METADATA, NO_DATA, KEY_TEXTS):
        value = page.tags.valueof(code)
        if isinstance(value, str):
            tags.append((code, ASCII, 0, value.encode("ascii", "replace").decode(), True))
    keys = _numbers(page, KEYS)
    if keys:
        tags.append((KEYS, SHORT, len(keys), tuple(map(int, keys)), True))
    shift = (scale - 1) / 2 if _is_of_points([int(key) for key in keys]) else 0.0
    numbers = {
        KEY_NUMBERS: _numbers(page, KEY_NUMBERS),
        SCALE: _scaled(_numbers(page, SCALE), scale),
        TIE_POINTS: _tied(_numbers(page, TIE_POINTS), scale, shift),
        TRANSFORMATION: _transformed(_numbers(page, TRANSFORMATION), scale, shift),
    }
    tags += [(code, DOUBLE, len(values), tuple(values), True) for code, values in numbers.items() if values]
    return tags


def _numbers(page: TiffPage, code: int) -> list[float]:
    value = page.tags.valueof(code, ())
    return list(value) if isinstance(value, tuple) else [value] if isinstance(value, (int, float)) else []


def _is_of_points(keys: list[int]) -> bool:
    entries = [keys[i : i + 4] for i in range(4, len(keys) - 3, 4)]
    return any(entry[0] == RASTER_TYPE and entry[1] == 0 and entry[3] == POINT for entry in entries)


def _scaled(values: list[float], scale: int) -> list[float]:
    """Sides of a pixel on the map; the third, its height, is no side."""
    return [value / scale for value in values[:2]] + values[2:]


def _tied(values: list[float], scale: int, shift: float) -> list[float]:
    """Points of the image, and those of the map, which stay."""
    tied = list(values)
    for i in range(0, len(values) - 5, 6):
        tied[i : i + 2] = [scale * place + shift for place in values[i : i + 2]]
    return tied


def _transformed(values: list[float], scale: int, shift: float) -> list[float]:
    """The matrix by which a point of the image becomes one of the map."""
    if len(values) != 16:
        return []
    matrix = list(values)
    for row in range(0, 16, 4):
        across, down = (value / scale for value in values[row : row + 2])
        matrix[row : row + 2] = [across, down]
        matrix[row + 3] = values[row + 3] - shift * (across + down)
    return matrix
