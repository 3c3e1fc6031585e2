"""Frames that follow each other: what did not change is not computed again, and every picture is what it is alone."""

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from support import DEVICE, ISAS, spread_network, test_patches
from test_images import NETWORKS
from test_rrdb import BasicSR

from ape_kernels import APEForward, Wish, ops, pack, progress
from ape_kernels.backends import cpu
from ape_kernels.backends.protocol import Depths
from ape_kernels.geometry import cells_of
from ape_kernels.reuse import FrameReuse
from ape_kernels.run import runner
from ape_kernels.run.images import run_again, run_image
from ape_kernels.run.levels import Levels, run_levels
from ape_sr.models import RCAN, SRVGGNetCompact

on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="only the cpu backend keeps a part of a picture")
CELL, RING, TILE = 24, 4, 72
FAMILIES = {
    "edsr x4": NETWORKS["edsr x4"],
    "edsr x3, exit after the head": NETWORKS["edsr x3, exit after the head"],
    "vdsr x2": NETWORKS["vdsr x2"],
    "ecbsr x4": NETWORKS["ecbsr x4"],
    "rrdb x4, which upsamples twice": NETWORKS["rrdb x4"],
    "rrdb x2, folded": BasicSR(scale=2),
    "compact x4": SRVGGNetCompact(4, 4, 16).eval().requires_grad_(False),
}
PACKED = {}


def packed_of(name, dtype=torch.float32):
    if (name, dtype) not in PACKED:
        PACKED[name, dtype] = pack(FAMILIES[name], Wish("cpu", dtype, images=True, patch_size=CELL))
    return PACKED[name, dtype]


def keep(packed, height, width):
    fold = packed.shape.fold
    kept = ops.keep(packed.tensors, packed.sharing, (-(-height // fold), -(-width // fold)), packed.backend)
    assert kept is not None
    return kept


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@st.composite
def changes(draw):
    """What becomes of an image: a rectangle of other pixels, where as shares of its sides; cells that run otherwise."""
    place = tuple(draw(st.floats(0, 1)) for _ in range(2))
    sides = tuple(draw(st.sampled_from((0, 1, 3, 30, 1000))) for _ in range(2))
    channels = draw(st.sampled_from((slice(None), slice(0, 1), slice(2, 3))))
    return place, sides, channels, draw(st.booleans())


STILL = (0, 0), (0, 0), slice(None), False


@on_cpu
class TestEachPictureIsTheWholeRun:
    @given(
        name=st.sampled_from(sorted(FAMILIES)),
        dtype=st.sampled_from((torch.float32, torch.bfloat16)),
        sides=st.tuples(st.integers(1, 250), st.integers(1, 330)),
        planned=st.booleans(),
        toned=st.booleans(),
        steps=st.lists(changes(), min_size=2, max_size=4),
        threads=st.integers(1, 2),
        seed=st.integers(0, 1000),
    )
    def test_whatever_changes(self, name, dtype, sides, planned, toned, steps, threads, seed):
        packed, generator = packed_of(name, dtype), torch.Generator().manual_seed(seed)
        stages, before = len(packed.program.stages), torch.get_num_threads()
        image, picture, kept = torch.rand(1, 3, *sides, generator=generator), None, keep(packed, *sides)
        some = torch.randint(-1, stages, (1, *cells_of(*sides, CELL)), generator=generator)
        torch.set_num_threads(threads)
        try:
            for place, size, channels, other_plan in [STILL, *steps]:
                top, left = (int(share * side) for share, side in zip(place, sides, strict=True))
                image = image.clone()
                part = image[:, channels, top : top + size[0], left : left + size[1]]
                part.copy_(torch.rand(part.shape, generator=generator))
                if other_plan:
                    cell = int(torch.randint(some.numel(), (1,), generator=generator))
                    some = some.clone()
                    some.view(-1)[cell] = int(torch.randint(-1, stages, (1,), generator=generator))
                depths = Depths(some if planned else None, CELL, RING)
                colours = 0.7 * image if toned else None
                picture = run_again(image, packed, depths, colours, kept, picture)
                scale = packed.shape.scale
                seen = picture[:, :, : sides[0] * scale, : sides[1] * scale]
                assert torch.equal(seen, run_image(image, packed, depths, colours))
                assert 0 <= kept.renewed <= 1
        finally:
            torch.set_num_threads(before)

    @given(
        name=st.sampled_from(sorted(FAMILIES)),
        dtype=st.sampled_from((np.uint8, np.uint16)),
        sides=st.tuples(st.integers(1, 250), st.integers(1, 330)),
        planned=st.booleans(),
        steps=st.lists(changes(), min_size=2, max_size=4),
        seed=st.integers(0, 1000),
    )
    def test_in_whole_numbers(self, name, dtype, sides, planned, steps, seed):
        packed, generator = packed_of(name), np.random.default_rng(seed)
        stages, peak = len(packed.program.stages), np.iinfo(dtype).max
        image = generator.integers(0, peak, (*sides, 3), dtype)
        made, alone = (np.zeros((*(side * packed.shape.scale for side in sides), 3), dtype) for _ in range(2))
        kept = keep(packed, *sides)
        cells = torch.from_numpy(generator.integers(-1, stages, (1, *cells_of(*sides, CELL))))
        for place, size, channels, _ in [STILL, *steps]:
            top, left = (int(share * side) for share, side in zip(place, sides, strict=True))
            part = image[top : top + size[0], left : left + size[1], channels]
            part[...] = generator.integers(0, peak, part.shape, dtype)
            depths = Depths(cells if planned else None, CELL, RING)
            run_levels(Levels(image, made, 1.0), packed, depths, kept=kept)
            run_levels(Levels(image, alone, 1.0), packed, depths)
            assert np.array_equal(made, alone)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_on_every_instruction_set(self, isa, dtype, monkeypatch):
        monkeypatch.setattr(cpu, "FAST_BF16", ISAS)
        packed = pack(FAMILIES["edsr x4"], Wish("cpu", dtype, images=True))
        first, picture, kept = torch.rand(1, 3, 150, 190), None, keep(packed, 150, 190)
        second = first.clone()
        second[:, :, 70:80, 60:75] = 0
        for image in (first, second, second):
            picture = run_again(image, packed, Depths(None, CELL, RING), None, kept, picture)
            assert torch.equal(picture, run_image(image, packed, Depths(None, CELL, RING)))
        assert kept.renewed == 0

    def test_after_another_instruction_set(self, monkeypatch):
        """Its last bits are others."""
        packed, image, picture = packed_of("edsr x4"), torch.rand(1, 3, 80, 90), None
        kept = keep(packed, 80, 90)
        for isa in (None, "portable"):
            if isa is not None:
                monkeypatch.setenv("APE_CPU_ISA", isa)
            picture = run_again(image, packed, Depths(None, CELL, RING), None, kept, picture)
            assert kept.renewed == 1
            assert torch.equal(picture, run_image(image, packed, Depths(None, CELL, RING)))


@on_cpu
class TestWhatIsComputed:
    SIDES = (290, 434)

    def renewed(self, change, name="edsr x4", exit_at=None, then=None):
        """Pixels of the image for which the picture is computed again after a change of it, and those that differ."""
        packed = packed_of(name)
        image = torch.rand(1, 3, *self.SIDES, generator=torch.Generator().manual_seed(0))
        kept = keep(packed, *self.SIDES)
        picture = run_again(image, packed, Depths(exit_at, CELL, RING), None, kept, None)
        assert kept.renewed == 1
        before, image = picture.clone(), image.clone()
        change(image)
        run_again(image, packed, Depths(exit_at if then is None else then, CELL, RING), None, kept, picture)
        differ = (picture != before).any(1).double().mean()
        return (share * self.SIDES[0] * self.SIDES[1] for share in (kept.renewed, float(differ)))

    def test_nothing_if_nothing_changed(self):
        assert [*self.renewed(lambda image: None)] == [0, 0]

    @pytest.mark.parametrize("name", ["edsr x4", "compact x4", "rrdb x4, which upsamples twice"])
    def test_the_last_tile_for_the_last_pixel(self, name):
        def change(image):
            image[..., -1, -1] += 0.1

        renewed, differ = self.renewed(change, name)
        assert 0 < differ <= renewed <= TILE**2

    def test_the_first_tile_for_the_first_pixel(self):
        def change(image):
            image[..., 0, 0] += 0.1

        renewed, differ = self.renewed(change)
        assert 0 < differ <= renewed <= TILE**2

    def test_those_below_and_to_the_right_for_a_change_at_the_border_of_tiles(self):
        def change(image):
            image[..., 2 * TILE - 2, 3 * TILE + TILE // 2] += 0.1

        renewed, differ = self.renewed(change)
        assert 0 < differ <= renewed
        assert TILE**2 < renewed <= 6 * TILE**2

    def test_as_far_as_another_plan_reaches(self):
        stages = len(packed_of("edsr x4").program.stages)
        exit_at = torch.full((1, *cells_of(*self.SIDES, CELL)), stages - 1)
        then = exit_at.clone()
        then[0, 6, 6] = 0
        renewed, differ = self.renewed(lambda image: None, exit_at=exit_at, then=then)
        assert 0 < differ <= renewed <= 9 * TILE**2

    def test_interpolated_cells_whose_pixels_changed(self):
        """And the network's tiles elsewhere are left alone."""
        exit_at = torch.full((1, *cells_of(*self.SIDES, CELL)), 1)
        exit_at[:, :, :6] = -1

        def change(image):
            image[..., 30, 30] += 0.1

        renewed, differ = self.renewed(change, exit_at=exit_at)
        assert 0 < differ <= renewed <= TILE**2


@on_cpu
def test_after_an_interruption_nothing_that_is_kept_counts(two_threads, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 1e-4)
    packed = packed_of("edsr x4")
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 255, (250, 330, 3), np.uint8) for _ in range(2))
    out, alone = (np.zeros((1000, 1320, 3), np.uint8) for _ in range(2))
    kept = keep(packed, 250, 330)
    run_levels(Levels(first, out, 1.0), packed, Depths(None, CELL, RING), kept=kept)

    def stop(share):
        if 0 < share < 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_levels(Levels(second, out, 1.0), packed, Depths(None, CELL, RING), progress=stop, kept=kept)
    run_levels(Levels(first, out, 1.0), packed, Depths(None, CELL, RING), kept=kept)
    run_levels(Levels(first, alone, 1.0), packed, Depths(None, CELL, RING))
    assert kept.renewed == 1
    assert np.array_equal(out, alone)


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
        shares.append(reuse.last.renewed / reuse.last.pixels)
    assert shares[0] == 1
    if DEVICE.type == "cpu" and "budget" not in settings:  # a budget plans the picture as a whole
        assert 0 < max(shares[1:5]) < 0.4
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
    assert torch.equal(reuse(smaller), fast(smaller)) and reuse.last.renewed == reuse.last.pixels
    fast.fidelity = None
    assert torch.equal(reuse(smaller), fast(smaller)) and reuse.last.renewed == reuse.last.pixels
    model = copy.deepcopy(fitted_model)
    reuse = FrameReuse(APEForward(model, fidelity=30.0))
    reuse(smaller)
    brighter = torch.full((3, 3, 3, 3), 0.1, device=DEVICE)
    model.exit_fit = replace(model.exit_fit, tones=brighter)
    assert torch.equal(reuse(smaller), reuse.fast(smaller)), "the same plan, in the tones of another fit"
    reuse.reset()
    assert reuse.last is None
    reuse(smaller)
    assert reuse.last.renewed == reuse.last.pixels


def test_other_weights_begin_anew():
    model = spread_network(2, 2, 16, None)
    reuse = FrameReuse(APEForward(model))
    frame = next(frames(1))
    reuse(frame)
    model.head[0].weight.mul_(1.5)
    assert torch.equal(reuse(frame), reuse.fast(frame))
    assert reuse.last.renewed == reuse.last.pixels


def test_whole_numbers_are_the_floats_rounded(fitted_model):
    fast = APEForward(fitted_model, fidelity=45.0)
    reuse = FrameReuse(fast)

    def planes(image):
        return torch.from_numpy(image).permute(2, 0, 1)[None].contiguous().float() * np.float32(1 / 255)

    for frame in frames(3):
        image = (255 * frame[0]).round().byte().permute(1, 2, 0).cpu().numpy().copy()
        out = np.zeros((2 * image.shape[0], 2 * image.shape[1], 3), np.uint8)
        if not reuse.run_levels(Levels(image, out, 1.0), planes):
            assert DEVICE.type != "cpu" and reuse.last is None and not out.any()
            return
        picture = (255 * fast(planes(image))[0]).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        assert np.array_equal(out, picture)
    assert 0 < reuse.last.renewed < 0.4 * reuse.last.pixels
    assert 0 < reuse.last.interpolated < reuse.last.pixels


@on_cpu
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_whole_numbers_within_the_tolerance_are_taken_as_they_were(fitted_model, dtype):
    fast, unit = APEForward(fitted_model, fidelity=None), np.iinfo(dtype).max // 255
    reuse, alone = FrameReuse(fast, 2.0001 / 255), FrameReuse(fast)
    first = np.full((40, 50, 3), 100 * unit, dtype)
    second, steadied = first + dtype(2 * unit), first.copy()
    second[7, 9], second[20, 30, 1] = 90 * unit, 103 * unit
    steadied[7, 9], steadied[20, 30] = second[7, 9], second[20, 30]
    made, expected = (np.zeros((80, 100, 3), dtype) for _ in range(2))
    for image in (first, second):
        assert reuse.run_levels(Levels(image, made, 1.0), lambda _: pytest.fail("there is no plan"))
    alone.run_levels(Levels(steadied, expected, 1.0), lambda _: pytest.fail("there is no plan"))
    assert np.array_equal(made, expected)


@on_cpu
def test_whole_or_not_at_all_where_memory_does_not_suffice(fitted_model, monkeypatch):
    monkeypatch.setattr(cpu, "KEPT_BYTES", 1)
    fast = APEForward(fitted_model, fidelity=45.0)
    reuse = FrameReuse(fast)
    for number, frame in enumerate((*frames(2), *list(frames(2))[1:])):
        assert torch.equal(reuse(frame), fast(frame))
        assert reuse.last.renewed == (reuse.last.pixels if number < 2 else 0)
    reuse(frame + 0.01)
    assert torch.equal(reuse(frame), fast(frame))


@on_cpu
def test_after_a_failure_the_next_picture_is_computed_whole(fitted_model, monkeypatch):
    fast = APEForward(fitted_model, fidelity=None)
    reuse, shots = FrameReuse(fast), list(frames(2))
    reuse(shots[0])

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(runner, "run_again", fail)
        reuse(shots[1])
    assert torch.equal(reuse(shots[1]), fast(shots[1]))
    assert reuse.last.renewed == reuse.last.pixels


def test_threads_take_turns(fitted_model):
    fast = APEForward(fitted_model, fidelity=45.0)
    reuse, shots, wrong = FrameReuse(fast), list(frames(4)), []

    def show(shot):
        expected = fast(shot)
        for _ in range(4):
            if not torch.equal(reuse(shot), expected):
                wrong.append(shot)

    threads = [threading.Thread(target=show, args=(shot,)) for shot in shots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_noise_below_the_tolerance_is_no_change(fitted_model):
    fast = APEForward(fitted_model, fidelity=None)
    reuse = FrameReuse(fast, tolerance=2 / 255)
    frame = next(frames(1))
    first = reuse(frame)
    for i in range(3):  # a drift: it counts from the pixel that was taken last
        picture = reuse(frame + (i + 1) * 0.9 / 255)
        if i < 2:
            assert torch.equal(picture, first) and reuse.last.renewed == 0
    assert reuse.last.renewed == reuse.last.pixels
    still, other = frame + 2.7 / 255, frame + 2.7 / 255
    other[..., 10, 20] += 2.5 / 255
    still[..., 10, 20] = other[..., 10, 20]
    other += 1 / 255 * torch.rand_like(other)
    other[..., 10, 20] = still[..., 10, 20]
    assert torch.equal(reuse(other), fast(still)), "pixels that count as unchanged are taken as they were"


def test_refusals(fitted_model):
    with pytest.raises(ValueError, match="fast: expected one that runs images on shared feature maps"):
        FrameReuse(APEForward(RCAN(2, 2, 1, 8, 4, None).eval()))
    with pytest.raises(ValueError, match="tolerance: expected a share of the range from 0 to 1, got -1"):
        FrameReuse(APEForward(fitted_model), -1)
    with pytest.raises(ValueError, match=r"image: expected one, \[1, C, H, W\], got \[2, 3, 8, 8\]"):
        FrameReuse(APEForward(fitted_model))(test_patches(2, 8, 8))
