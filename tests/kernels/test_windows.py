"""Windows of images are the whole image's own pixels, bit for bit."""

import pytest
import torch
from families import randomise
from hypothesis import given
from hypothesis import strategies as st
from support import DEVICE

from ape_kernels import Wish, pack
from ape_kernels.backends.protocol import Depths
from ape_kernels.run.images import run_image
from ape_kernels.run.windows import Window, Windows
from ape_sr.models import EDSR, VDSR, SRVGGNetCompact

on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="tiles are the cpu backend's")
CELL, RING = 24, 4
NETWORKS = {
    "edsr x4": lambda: EDSR(4, 3, 16, 1),
    "edsr x3": lambda: EDSR(3, 2, 16, 1),
    "deep edsr x2": lambda: EDSR(2, 12, 16, 3),
    "vdsr x2": lambda: VDSR(2, 6, 16, 2),
    "compact x4": lambda: SRVGGNetCompact(4, 4, 16),
}
PACKED = {}


def packed_of(name):
    if name not in PACKED:
        PACKED[name] = pack(randomise(NETWORKS[name]()), Wish("cpu", images=True))
    return PACKED[name]


@on_cpu
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    sides=st.tuples(st.integers(60, 620), st.integers(60, 420)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.integers(1, 90),
    planned=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_window_is_the_whole_image_bit_for_bit(name, sides, place, size, planned, seed):
    packed, generator = packed_of(name), torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, *sides, generator=generator)
    stages, scale = len(packed.program.stages), packed.shape.scale
    exit_at = None
    if planned:
        exit_at = torch.randint(-1, stages, (1, *(-(-side // CELL) for side in sides)), generator=generator)
    whole = run_image(image, packed, Depths(exit_at, CELL, RING))
    windows = Windows.of(packed, CELL if planned else 1, RING)
    assert windows.exact
    top, left = (int(share * (side - 1)) for share, side in zip(place, sides, strict=True))
    wanted = Window(top, left, min(size, sides[0] - top), min(size, sides[1] - left))
    window = windows.around(wanted, sides)
    assert window.top <= wanted.top and wanted.bottom <= window.bottom <= sides[0]
    part = image[:, :, window.top : window.bottom, window.left : window.right].contiguous()
    if exit_at is not None:
        exit_at = exit_at[
            :, window.top // CELL : -(-window.bottom // CELL), window.left // CELL : -(-window.right // CELL)
        ]
    got = run_image(part, packed, Depths(exit_at, CELL, RING))
    to, at = wanted.scaled(scale), window.scaled(scale)
    assert torch.equal(
        got[:, :, to.top - at.top : to.bottom - at.top, to.left - at.left : to.right - at.left],
        whole[:, :, to.top : to.bottom, to.left : to.right],
    )
