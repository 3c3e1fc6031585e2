"""Whole images on the triton backend against the torch backend, in the interpreter on the CPU and on a GPU."""

import pytest
import torch
from families import randomise
from support import DEVICE, assert_pictures_close, bitwise, spread_network, test_patches
from test_compact import Compact
from test_images import RING, depths_of
from test_rrdb import BasicSR
from torch.nn.functional import max_pool2d

from ape_kernels.backends.protocol import Depths, Picture
from ape_kernels.backends.torch.image import cell_pixels
from ape_kernels.packed import Packed, Wish, pack
from ape_kernels.run.images import run_image
from ape_kernels.table import Column
from ape_sr.models import ECBSR, RCAN, VDSR, RRDBNet

pytest.importorskip("triton", reason="triton is not installed")
from ape_kernels.backends import BackendUnavailable, choose_for_images, get_backend
from ape_kernels.backends.triton import image as launches
from ape_kernels.backends.triton import plan as plans

pytestmark = pytest.mark.no_cover  # of the interpreter, see pyproject.toml

NETWORKS = {
    "edsr-x2": lambda: spread_network(2, 2, 16),
    "edsr-x3-24ch-no-exits": lambda: spread_network(3, 1, 24, None, res_scale=0.3, rgb_range=255.0),
    "vdsr-x2": lambda: randomise(VDSR(2, 3, 8, 1), gain=1.7),
    "ecbsr-x2": lambda: randomise(ECBSR(2, 3, 8, 1), gain=0.6),
    "compact-x3": lambda: Compact(3, num_conv=2),
    "rrdb-x4": lambda: randomise(RRDBNet(4, 1, 8, 4, None)),
    "rrdb-x2-folded": lambda: BasicSR(scale=2),
}


@pytest.fixture(autouse=True)
def kept(monkeypatch) -> dict:
    """The latest call and its maps. These start as NaN, so whoever reads what was not written gives NaN."""
    kept = {}
    scratch = launches.Call.scratch

    def poisoned(call, arenas, make=None):
        kept["call"], kept["arena"] = call, scratch(call, arenas).fill_(torch.nan)
        return kept["arena"]

    monkeypatch.setattr(launches.Call, "scratch", poisoned)
    return kept


def packed_of(name: str) -> tuple[Packed, Packed]:
    model = NETWORKS[name]().to(DEVICE)
    return pack(model, Wish("triton")), pack(model, Wish("torch"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_at_full_depth_and_by_a_plan(name):
    """13 x 21: cells cut off, tiles cut off, borders; each cell at another depth, interpolated ones among them."""
    fast, oracle = packed_of(name)
    image = test_patches(1, 13, 21)
    stages = len(fast.program.stages)
    exit_at = torch.tensor([[[stages - 1, -1, 0], [-1, -1, stages - 1]]], device=DEVICE)
    colours = image + 0.1
    for depths in (Depths(None, 8, RING), Depths(exit_at, 8, RING), Depths(exit_at, 8, 0)):
        expected = run_image(image, oracle, depths, colours)
        assert_pictures_close(run_image(image, fast, depths, colours), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (33, 17)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_size(size):
    fast, oracle = packed_of("edsr-x3-24ch-no-exits")
    image = test_patches(1, *size)
    exit_at = depths_of(image, torch.Generator().manual_seed(1), 1, 8)
    for depths in (Depths(None, 8, RING), Depths(exit_at, 8, RING)):
        expected = run_image(image, oracle, depths)
        assert_pictures_close(run_image(image, fast, depths), expected)


def test_half_precision():
    """Operands and maps in float16: what that rounds, and no more."""
    model = NETWORKS["edsr-x2"]().to(DEVICE)
    image = test_patches(1, 9, 17)
    depths = Depths(depths_of(image, torch.Generator().manual_seed(0), 2, 8), 8, RING)
    expected = run_image(image, pack(model, Wish("torch")), depths)
    got = run_image(image, pack(model, Wish("triton", torch.float16)), depths)
    assert_pictures_close(got, expected, 5e-3)


def test_images_do_not_depend_on_their_company():
    fast, _ = packed_of("edsr-x2")
    image = test_patches(2, 9, 17)
    exit_at = depths_of(image, torch.Generator().manual_seed(0), len(fast.program.stages), 8)
    exit_at[0] = -1
    both = run_image(image, fast, Depths(exit_at, 8, RING))
    for i in range(2):
        one = run_image(image[i : i + 1], fast, Depths(exit_at[i : i + 1], 8, RING))
        assert bitwise([one], [both[i : i + 1]])


def test_maps_of_more_elements_than_32_bits_count(monkeypatch):
    """The layout is the same, in 64 bits."""
    fast, _ = packed_of("edsr-x3-24ch-no-exits")
    image = test_patches(1, 9, 9)
    expected = run_image(image, fast, Depths(None, 8, RING))
    monkeypatch.setattr(plans, "MOST_IN_32_BITS", 100)
    plans.plan(fast.table, DEVICE).geometries.clear()
    assert plans.plan(fast.table, DEVICE).geometry(9, 9).buffers.dtype == torch.int64
    assert bitwise([run_image(image, fast, Depths(None, 8, RING))], [expected])


def test_what_no_cell_needs_is_not_computed(kept):
    """With one cell of twelve active: the hidden map ends with the ring, and the pixel that the next step reads."""
    fast, _ = packed_of("edsr-x2")
    exit_at = torch.full((1, 3, 4), -1, device=DEVICE)
    exit_at[0, 0, 0] = len(fast.program.stages) - 1
    run_image(test_patches(1, 48, 64), fast, Depths(exit_at, 16, RING))
    network = kept["call"].network
    hidden = network.rows[network.stage_rows[0] + 1][Column.DST]
    origin, stride, channels, _ = kept["call"].geometry.buffers[hidden].tolist()
    pixels = kept["arena"][origin : origin + 48 * stride].view(48, stride)[:, : 64 * channels].view(48, 64, channels)
    last = pixels.isfinite().any(2).nonzero().amax(0)
    assert last.tolist() == [16 + RING, 16 + RING]


@pytest.mark.parametrize("radius, ring", [(0, 0), (1, 0), (2, 4)])
def test_a_convolution_takes_the_pixels_that_run_and_no_others(radius, ring):
    """The list that it takes them from, for each stage, against a plain mask."""
    fast, _ = packed_of("edsr-x2")
    image = test_patches(2, 21, 37)
    depths = Depths(depths_of(image, torch.Generator().manual_seed(4), 2, 8), 8, ring)
    picture = Picture(torch.empty(2, 3, 42, 74, device=DEVICE), image, 2)
    pixels, ends = launches._Run(fast.tensors, image, depths, picture)._list(1, radius, ring)
    for stage in range(2):
        active = cell_pixels(depths.exit_at >= stage, 8, image).float()
        active = max_pool2d(active, 2 * (ring + radius) + 1, 1, ring + radius) > 0
        for i in range(2):
            listed = pixels[i, : ends[i, 2 - stage - 1, -1]]
            assert torch.equal(listed.sort().values, active[i].flatten().nonzero().flatten().int())


def test_choice_for_images():
    program = packed_of("edsr-x2")[1].program
    gated = pack(randomise(RCAN(2, 1, 1, 8, 2, 1)).to(DEVICE), Wish("torch")).program
    assert choose_for_images("triton", program, DEVICE, torch.float32, 48) == "triton"
    if DEVICE.type == "cpu":
        assert choose_for_images("auto", program, DEVICE, torch.float32, 48) in ("cpu", "torch")
    assert "attention" in get_backend("triton").supports_images(gated, DEVICE, torch.float32)
    with pytest.raises(BackendUnavailable, match="torch: channel attention averages over the whole patch"):
        choose_for_images("triton", gated, DEVICE, torch.float32, 48)
