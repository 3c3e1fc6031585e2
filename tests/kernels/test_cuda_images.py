"""Whole images on the cuda backend against the torch backend, its kernel on the CPU and on a GPU.

On the CPU the execution layer also checks that no window reads, or writes, what another one writes in the same launch.
"""

from dataclasses import replace

import pytest
import torch
from families import randomise
from support import DEVICE, assert_pictures_close, bitwise, spread_network, test_patches
from test_compact import Compact
from test_cuda import PART_IDS, PARTS, host  # noqa: F401
from test_images import RING, depths_of
from test_rrdb import BasicSR

from ape_kernels import to_program
from ape_kernels.backends import get_backend
from ape_kernels.backends.cuda import image as images
from ape_kernels.backends.protocol import Depths
from ape_kernels.packed import Wish, pack
from ape_kernels.program import Buffer
from ape_kernels.run.images import run_image
from ape_kernels.table import Column
from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet

pytestmark = pytest.mark.usefixtures("host")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}
DTYPES = list(TOLERANCE)
NETWORKS = {
    "edsr-16ch": lambda: spread_network(2, 4, 16, 1),
    "edsr-stages-of-two": lambda: spread_network(2, 6, 16, 2),
    "edsr-24ch-no-exits": lambda: spread_network(3, 2, 24, None, res_scale=0.3, rgb_range=255.0),
    "edsr-head-exit": lambda: spread_network(3, 2, 16, 1, head_exit=True),
    "edsr-80ch": lambda: randomise(EDSR(2, 1, 80, 1)),  # too many for pairs and whole rows
    "vdsr": lambda: randomise(VDSR(2, 3, 16, 1), 1.7),
    "ecbsr": lambda: randomise(ECBSR(2, 3, 8, 1), 0.6),
    "compact": lambda: Compact(3, num_conv=2),
    "rrdb": lambda: randomise(RRDBNet(4, 1, 8, 4, None)),
    "rrdb-folded": lambda: BasicSR(scale=2),
}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Maps start as NaN, so whoever reads what was not written gives NaN."""
    empty = images.empty_maps
    monkeypatch.setattr(images, "empty_maps", lambda *given: empty(*given).fill_(torch.nan))


def both(model, image, depths, dtype, colours=None):
    """The picture, and the oracle's."""
    model = model.to(DEVICE)
    run = lambda name, dtype: run_image(image, pack(model, Wish(name, dtype)), depths, colours)  # noqa: E731
    return run("cuda", dtype), run("torch", torch.float32)


def plans(image, stages, cell, seeds=(0,)):
    """Full depth, and cells at random depths, some interpolated, with a ring and without one."""
    yield Depths(None, cell, RING)
    for seed in seeds:
        exit_at = depths_of(image, torch.Generator().manual_seed(seed), stages, cell)
        yield from (Depths(exit_at, cell, ring) for ring in (RING, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_at_full_depth_and_by_plans(name, dtype):
    """Windows cut off at the right and below, and the seams between them; maps of twice the size and more have them."""
    model, image = NETWORKS[name](), test_patches(1, *((13, 21) if "rrdb" in name else (51, 70)))
    colours = image + 0.1
    for depths in plans(image, len(to_program(model.to(DEVICE)).stages), 8):
        assert_pictures_close(*both(model, image, depths, dtype, colours), TOLERANCE[dtype])


@pytest.mark.parametrize("kb", PARTS, ids=PART_IDS)
@pytest.mark.parametrize("channels", [16, 32, 48, 64, 96])
def test_the_pairs_of_every_part(host, channels, kb):  # noqa: F811
    """With the rows of windows that other steps fill, and pixels of a window that keep what they have."""
    if host:
        host.shared_kb = kb
    model, image = spread_network(2, 2, channels, 1, res_scale=0.3), test_patches(1, 50, 49)
    exit_at = torch.tensor([[[1, 0], [-1, 1]]], device=DEVICE)
    for depths in (Depths(None, 48, RING), Depths(exit_at, 48, RING)):
        assert_pictures_close(*both(model, image, depths, torch.float16), TOLERANCE[torch.float16])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (2, 3), (44, 48), (45, 46), (92, 90)], ids=str)
def test_any_size(size, dtype):
    """Up to one window, just more than one, and two cores and a bit."""
    model, image = NETWORKS["edsr-16ch"](), test_patches(1, *size)
    for depths in plans(image, 4, 8):
        assert_pictures_close(*both(model, image, depths, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", [3, 16, 48])
def test_cells_of_any_size(cell, dtype):
    """Many in a window, and windows with parts of a few."""
    model, image = NETWORKS["edsr-16ch"](), test_patches(2, 60, 95)
    for depths in plans(image, 4, cell, seeds=(1, 2)):
        assert_pictures_close(*both(model, image, depths, dtype), TOLERANCE[dtype])


def test_images_do_not_depend_on_their_company_nor_on_the_order_of_windows(host):  # noqa: F811
    packed = pack(NETWORKS["edsr-16ch"]().to(DEVICE), Wish("cuda", torch.float16))
    image = test_patches(2, 60, 95)
    exit_at = depths_of(image, torch.Generator().manual_seed(0), 4, 8)
    exit_at[0] = -1
    pictures = run_image(image, packed, Depths(exit_at, 8, RING))
    for i in range(2):
        if host:
            host.seed, host.chance = i + 1, 200
            host.blocks = 132  # so many that windows are lower, and the border is in several blocks
        one = run_image(image[i : i + 1], packed, Depths(exit_at[i : i + 1], 8, RING))
        assert bitwise([one], [pictures[i : i + 1]])


def test_what_no_cell_needs_is_not_computed(monkeypatch):
    """With one cell of twelve active: the hidden map ends with the ring, and the pixel that the next step reads."""
    kept = []
    empty = images.empty_maps
    monkeypatch.setattr(images, "empty_maps", lambda *given: kept.append(empty(*given)) or kept[-1])
    exit_at = torch.full((1, 3, 4), -1, device=DEVICE)
    exit_at[0, 0, 0] = 3
    packed = pack(NETWORKS["edsr-16ch"]().to(DEVICE), Wish("cuda", torch.float32))
    run_image(test_patches(1, 48, 64), packed, Depths(exit_at, 16, RING))
    maps = kept[0].view(-1, 2, 48, 64, 8)  # every buffer has 16 channels, padded
    hidden = next(row[Column.DST] for row in packed.table.tolist() if row[Column.FUSED])
    last = maps[hidden].isfinite().all(3).all(0).nonzero().amax(0)
    assert last.tolist() == [16 + RING, 16 + RING]


def test_choice_for_images():
    edsr, rcan = (to_program(model) for model in (NETWORKS["edsr-16ch"](), RCAN(2, 1, 1, 8, 2, 1)))
    supports = get_backend("cuda").supports_images
    assert supports(edsr, DEVICE, torch.float16) is None
    assert "attention" in supports(rcan, DEVICE, torch.float16)
    many = replace(edsr, buffers=(*edsr.buffers, *[Buffer(1)] * 16))
    assert supports(many, DEVICE, torch.float16) == "runs images with up to 16 feature maps, not 21"


def test_a_malformed_table_is_refused():
    packed = pack(NETWORKS["edsr-16ch"]().to(DEVICE), Wish("cuda", torch.float16))
    packed.table[-1, Column.KERNEL] = 7
    with pytest.raises(ValueError, match=r"table: row \d+: kernel: expected 1, 3 or 5"):
        run_image(test_patches(1, 8, 8), packed, Depths(None, 8, RING))
