"""Whole images on shared feature maps: the picture is the model's own, and cells stop where they are told to."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import DEVICE, assert_pictures_close, spread_network, test_patches
from torch.nn.functional import interpolate, max_pool2d

from ape_kernels import ops
from ape_kernels.backends.protocol import Depths
from ape_kernels.geometry import cells_of
from ape_kernels.packed import Wish, pack
from ape_kernels.run import images
from ape_kernels.run.images import run_image
from ape_sr.models import ECBSR, VDSR, RRDBNet

RING = 4
BACKENDS = ["torch", "cpu"] if DEVICE.type == "cpu" else ["torch", "triton", "cuda"]


def networks():
    def made(model, gain=1.0):
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.data.copy_(torch.randn(parameter.shape) * gain / max(1, parameter[0].numel()) ** 0.5)
        return model.eval().requires_grad_(False).to(DEVICE)

    return {
        "edsr x4": spread_network(4, 4, 16, 1),
        "edsr x2, no exits": spread_network(2, 2, 24, None),
        "edsr x3, exit after the head": spread_network(3, 2, 16, 1, head_exit=True),
        "vdsr x2": made(VDSR(2, 6, 16, 2), 1.4),
        "ecbsr x4": made(ECBSR(4, 4, 16, 2)),
        "rrdb x4": made(RRDBNet(4, 2, 16, 8, 1)),
    }


NETWORKS = networks()


def depths_of(image, generator, stages, cell, lowest=-1):
    shape = (len(image), *cells_of(*image.shape[2:], cell))
    return torch.randint(lowest, stages, shape, generator=generator).to(DEVICE)


def pixels(cells, cell, image, factor=1):
    mask = cells[:, None].repeat_interleave(cell, 2).repeat_interleave(cell, 3)[..., : image.shape[2], : image.shape[3]]
    return mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def literal_edsr(model, image, exit_at, cell, ring=RING):
    """An EDSR block by block: where a cell has left, its features stay as they are."""
    x = skip = model.head(model.sub_mean(image))
    interval = getattr(model, "exit_interval", len(model.body))
    for i, block in enumerate(model.body[:-1]):
        active = pixels(exit_at >= i // interval, cell, image)
        if i < interval:
            active = max_pool2d(active.float(), 2 * ring + 1, 1, ring) > 0
        x = torch.where(active, block(x), x)
    picture = model.add_mean(model.tail(skip + model.body[-1](x)))
    bicubic = interpolate(image, scale_factor=model.scale, mode="bicubic")
    return torch.where(pixels(exit_at >= 0, cell, image, model.scale), picture, bicubic)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (48, 48), (61, 130)], ids=str)
def test_full_depth_is_the_model(name, size, backend):
    model, image = NETWORKS[name], test_patches(2, *size)
    packed = pack(model, Wish(backend))
    sr = run_image(image, packed, Depths(None, 48, RING))
    assert_pictures_close(sr, model(image))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", [8, 16, 48])
@pytest.mark.parametrize("name", ["edsr x4", "edsr x2, no exits"])
def test_cells_that_left_keep_their_features(name, cell, backend):
    model, image = NETWORKS[name], test_patches(2, 75, 110)
    packed = pack(model, Wish(backend))
    for seed in range(4):
        exit_at = depths_of(image, torch.Generator().manual_seed(seed), len(packed.program.stages), cell)
        if seed == 3:
            exit_at[0] = -1
        sr = run_image(image, packed, Depths(exit_at, cell, RING))
        assert_pictures_close(sr, literal_edsr(model, image, exit_at, cell))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_and_colours_may_be_strided(backend):
    model, image = NETWORKS["edsr x4"], test_patches(2, 30, 45)
    packed = pack(model, Wish(backend))
    exit_at = depths_of(image, torch.Generator().manual_seed(0), len(packed.program.stages), 8)
    strided = exit_at.transpose(1, 2).contiguous().transpose(1, 2)
    colours = image + 0.1
    expected = run_image(image, packed, Depths(exit_at, 8, RING), colours)
    strided_colours = colours.to(memory_format=torch.channels_last)
    assert torch.equal(run_image(image, packed, Depths(strided, 8, RING), strided_colours), expected)


@pytest.mark.parametrize("name", ["edsr x4", "vdsr x2", "rrdb x4"])
def test_cpu_threads_and_batch_change_nothing(name):
    """Bit for bit: tiles hand on the same rows and columns whoever runs them, and images of a batch do not meet."""
    model, images = NETWORKS[name], test_patches(3, 90, 150)
    packed = pack(model, Wish("cpu"))
    exit_at = depths_of(images, torch.Generator().manual_seed(0), len(packed.program.stages), 16)
    for depths in (Depths(None, 16, RING), Depths(exit_at, 16, RING)):
        pictures = []
        for threads in (1, 2, 5):
            own = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                pictures.append(run_image(images, packed, depths))
            finally:
                torch.set_num_threads(own)
        assert all(torch.equal(picture, pictures[0]) for picture in pictures)
        for i in range(3):
            at = None if depths.exit_at is None else exit_at[i : i + 1]
            alone = run_image(images[i : i + 1].contiguous(), packed, depths._replace(exit_at=at))
            assert torch.equal(alone[0], pictures[0][i])


@given(
    height=st.integers(1, 170),
    width=st.integers(1, 170),
    cell=st.integers(1, 50),
    ring=st.integers(0, 9),
    name=st.sampled_from(sorted(NETWORKS)),
    seed=st.integers(0, 1000),
)
def test_cpu_equals_the_plain_form(height, width, cell, ring, name, seed):
    """Any size, plan and family, with interpolated cells in colours of their own."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, height, width, generator=generator)
    exit_at = depths_of(image, generator, len(pack_once(name, "cpu").program.stages), cell)
    colours = image + 0.1
    pictures = [run_image(image, pack_once(name, b), Depths(exit_at, cell, ring), colours) for b in ("cpu", "torch")]
    assert_pictures_close(*pictures)


@cache
def pack_once(name, backend):
    return pack(NETWORKS[name], Wish(backend))


def test_bf16_is_close_to_full_precision():
    model, image = NETWORKS["edsr x4"], test_patches(1, 90, 150)
    sr = run_image(image, pack(model, Wish("cpu", torch.bfloat16)), Depths(None, 48, RING))
    error = (sr.clamp(0, 1) - model(image).clamp(0, 1)).square().mean()
    assert -10 * error.log10() > 55


@pytest.mark.parametrize("name", ["edsr x4", "vdsr x2", "rrdb x4"])
@pytest.mark.parametrize("ring", [0, RING, 9])
def test_bands_of_a_large_image_are_the_image(name, ring, monkeypatch):
    """A backend that holds whole maps takes an image in bands; what lies around them is enough, also for wide rings."""
    image, packed = test_patches(2, 150, 20), pack_once(name, "torch")
    exit_at = depths_of(image, torch.Generator().manual_seed(1), len(packed.program.stages), 6)
    run, calls = ops.run_image, []
    monkeypatch.setattr(ops, "run_image", lambda *args: calls.append(run(*args)))
    for depths in (Depths(None, 6, ring), Depths(exit_at, 6, ring)):
        whole = run_image(image, packed, depths)
        assert len(calls) == 1
        with monkeypatch.context() as little_memory:
            little_memory.setattr(images, "BAND_BYTES", {image.device.type: 1})
            assert_pictures_close(run_image(image, packed, depths), whole, 1e-5)
        assert len(calls) > 2
        calls.clear()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            dict(sharing=torch.zeros(3, 2, dtype=torch.int32)),
            r"sharing: expected int32 \[\d+, 2\]",
        ),
        (dict(ring=-1), "ring: expected at least 0 pixels, got -1"),
        (dict(cell=0), "cell: expected a multiple of 1, got 0"),
        (
            dict(colours=torch.zeros(1, 3, 9, 8)),
            r"colours: expected float32 \[1, 3, 9, 9\] on cpu",
        ),
        (dict(colours=torch.zeros(1, 3, 9, 9).half()), r"colours: expected float32 .*, got torch.float16"),
        (dict(exit_at=torch.zeros(1, 1, 1, dtype=torch.int64)), r"exit_at: expected int64 \[1, 2, 2\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_native_code_would_read_outside_of_is_refused(fault, message):
    packed = pack_once("edsr x4", "torch")
    given = dict(sharing=packed.sharing, exit_at=None, cell=6, ring=RING, colours=None) | fault
    packed = replace(packed, sharing=given["sharing"])
    with pytest.raises(ValueError, match=message):
        depths = Depths(given["exit_at"], given["cell"], given["ring"])
        run_image(test_patches(1, 9, 9), packed, depths, given["colours"])
