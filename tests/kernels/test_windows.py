"""Windows of images are the whole image's own pixels, bit for bit, and frames that follow each other are reused."""

import copy
from dataclasses import replace

import pytest
import torch
from families import randomise
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from support import DEVICE, test_patches

from ape_kernels import APEForward, Wish, pack
from ape_kernels.backends.protocol import Depths
from ape_kernels.reuse import FrameReuse
from ape_kernels.run.images import run_image
from ape_kernels.run.windows import Window, Windows
from ape_sr.models import EDSR, RCAN, VDSR, SRVGGNetCompact

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


def frames(count=5, sides=(230, 700)):
    """A small square of noise that moves over a still photograph."""
    still = torch.from_numpy(data.rocket()[:, :, :].copy()).permute(2, 0, 1)[None].float() / 255
    still = torch.cat([still, still.flip(3)], 3)[:, :, : sides[0], : sides[1]].contiguous()
    square = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    for i in range(count):
        frame = still.clone()
        frame[:, :, 100:120, 30 + 9 * i : 50 + 9 * i] = square
        yield frame.to(DEVICE)


@pytest.mark.parametrize("settings", [dict(fidelity=None), dict(fidelity=45.0), dict(budget=0.5)], ids=str)
def test_frames_are_what_they_are_alone(fitted_model, settings):
    fast = APEForward(fitted_model, **settings)
    reuse = FrameReuse(fast)
    shares = []
    for frame in (*frames(), *frames(2)):
        assert torch.equal(reuse(frame), fast(frame))
        shares.append(reuse.last.renewed / reuse.last.cells)
    assert shares[0] == 1
    if DEVICE.type == "cpu" and "budget" not in settings:  # a budget plans the picture as a whole
        assert 0 < max(shares[1:5]) < 0.7
    again = reuse(frame)
    assert reuse.last.renewed == 0 and torch.equal(again, fast(frame))
    again.zero_()
    assert torch.equal(reuse(frame), fast(frame))


def test_what_was_shown_is_forgotten_when_it_does_not_count_any_more(fitted_model):
    fast = APEForward(fitted_model, fidelity=45.0)
    reuse = FrameReuse(fast)
    frame = next(frames(1))
    reuse(frame)
    smaller = frame[:, :, :100, :150].contiguous()
    assert torch.equal(reuse(smaller), fast(smaller)) and reuse.last.renewed == reuse.last.cells
    fast.fidelity = None
    assert torch.equal(reuse(smaller), fast(smaller)) and reuse.last.renewed == reuse.last.cells
    model = copy.deepcopy(fitted_model)
    reuse = FrameReuse(APEForward(model, fidelity=30.0))
    reuse(smaller)
    brighter = torch.full((3, 3, 3, 3), 0.1, device=DEVICE)
    model.exit_fit = replace(model.exit_fit, tones=brighter)
    assert torch.equal(reuse(smaller), reuse.fast(smaller)), "the same plan, in the tones of another fit"
    reuse.reset()
    assert reuse.last is None
    reuse(smaller)
    assert reuse.last.renewed == reuse.last.cells


def test_noise_below_the_tolerance_is_no_change(fitted_model):
    fast = APEForward(fitted_model, fidelity=None)
    reuse = FrameReuse(fast, tolerance=2 / 255)
    frame = next(frames(1))
    first = reuse(frame)
    for i in range(3):  # a drift: it counts from when a cell was computed last
        picture = reuse(frame + (i + 1) * 0.9 / 255)
        if i < 2:
            assert torch.equal(picture, first) and reuse.last.renewed == 0
    assert reuse.last.renewed == reuse.last.cells


def test_refusals(fitted_model):
    with pytest.raises(ValueError, match="fast: expected one that runs images on shared feature maps"):
        FrameReuse(APEForward(RCAN(2, 2, 1, 8, 4, None).eval()))
    with pytest.raises(ValueError, match="tolerance: expected a share of the range from 0 to 1, got -1"):
        FrameReuse(APEForward(fitted_model), -1)
    with pytest.raises(ValueError, match=r"image: expected one, \[1, C, H, W\], got \[2, 3, 8, 8\]"):
        FrameReuse(APEForward(fitted_model))(test_patches(2, 8, 8))
