"""The table of tones: what a network adds to flat colours.

A network may shift the colours of flat areas, by an amount that depends on the colour alone. Cells that it does not run
on are interpolated from the image with that shift added: enlarging before or after adding it makes no difference that
could be measured (0.01 dB), and the image has fewer pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

COARSE, FINE = 5, 9  # colours along each axis
SIDE = 48  # pixels of a flat area; its centre is hardly reached by the zeros around
TOLERANCE = 0.25 / 255  # of the range, root mean square: a coarse table that is as exact as this will do
NOTHING = 0.5 / 255  # shifts as small as this are left away: 54 dB, and the table costs time at each pixel
CHUNK = 32  # areas that are run at once


def measure_tones(run: Callable[[Tensor], Tensor], value_range: float, device: torch.device) -> Tensor | None:
    """What the network adds to colours on a grid, float32 ``[N, N, N, 3]``; None where it adds next to nothing.

    run: float32 ``[P, 3, h, w]`` to the pictures ``[P, 3, s * h, s * w]``. N is 5 if linear interpolation of that table
    tells, within a quarter of a level of 8 bits, the colours halfway between its own; else 9.
    """

    def shifts(axis: Tensor) -> Tensor:
        colours = torch.cartesian_prod(axis, axis, axis)
        answers = [_centre(run(_flat(part))) for part in colours.split(CHUNK)]
        return (torch.cat(answers) - colours).view(len(axis), len(axis), len(axis), 3)

    grid = torch.linspace(0, value_range, COARSE, dtype=torch.float32, device=device)
    coarse = shifts(grid)
    corners = coarse.unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1)
    between = shifts((grid[1:] + grid[:-1]) / 2) - corners.mean((-1, -2, -3))
    if between.square().mean().sqrt() <= TOLERANCE * value_range:
        nothing = coarse.square().mean().sqrt() <= NOTHING * value_range
        return None if nothing else coarse
    return shifts(torch.linspace(0, value_range, FINE, dtype=torch.float32, device=device))


def toned(image: Tensor, tones: Tensor, value_range: float) -> Tensor:
    """The image with the shift of `tones` added to every pixel, as linear between the table's colours along each axis.

    image: float32 ``[B, 3, H, W]``. tones: float32 ``[N, N, N, 3]``, N at least 2: ``tones[i, j, k]`` is what the
        network adds to a flat area of the colour ``(i, j, k) * value_range / (N - 1)``: its answer minus that colour.
    value_range: what white is. A colour outside 0 to value_range is shifted as the nearest one inside.
    """
    table = tones.permute(3, 0, 1, 2)[None].expand(len(image), -1, -1, -1, -1)
    # from -1 to 1, of the last axis first: blue, green, red
    place = image.permute(0, 2, 3, 1).flip(-1)[:, None] * (2 / value_range) - 1
    shift = grid_sample(table, place, mode="bilinear", padding_mode="border", align_corners=True)
    return image + shift[:, :, 0]


def _flat(colours: Tensor) -> Tensor:
    return colours[:, :, None, None].expand(-1, -1, SIDE, SIDE).contiguous()


def _centre(pictures: Tensor) -> Tensor:
    """Mean colours ``[P, 3]`` of what one low-resolution pixel at the centre became."""
    scale = pictures.shape[2] // SIDE
    middle = slice(SIDE // 2 * scale, (SIDE // 2 + 1) * scale)
    return pictures[:, :, middle, middle].mean((2, 3))
