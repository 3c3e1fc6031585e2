"""Whole images on the cuda backend against the torch backend, its kernel on the CPU and on a GPU.

On the CPU the execution layer also checks that no window reads, or writes, what another one writes in the same launch.
"""

import pytest
import torch
from cuda_host import HostLauncher
from families import randomise
from support import DEVICE, assert_pictures_close, bitwise, spread_network, test_patches
from test_cuda import ON_GPU, PART_IDS, PARTS, host, install  # noqa: F401
from test_compact import Compact
from test_images import RING, depths_of
from test_rrdb import BasicSR

from ape_kernels import to_program
from ape_kernels.backends import cuda, get_backend
from ape_kernels.backends.cuda import image as images
from ape_kernels.backends.protocol import Depths
from ape_kernels.images import Tones, run_image
from ape_kernels.packed import Wish, pack
from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet

pytestmark = pytest.mark.usefixtures("host")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}
DTYPES = list(TOLERANCE)
NETWORKS = {
    "edsr-16ch": lambda: spread_network(2, 4, 16, 1),
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
    empty = images._empty_maps
    monkeypatch.setattr(images, "_empty_maps", lambda *given: empty(*given).fill_(torch.nan))


def both(model, image, depths, dtype, tones=Tones()):
    """The picture, and the oracle's."""
    model = model.to(DEVICE)
    run = lambda name, dtype: run_image(image, pack(model, Wish(name, dtype)), depths, tones)  # noqa: E731
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
    """51 x 70: windows cut off at the right and below, the seams between four of them."""
    model, image = NETWORKS[name](), test_patches(1, 51, 70)
    tones = Tones(torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(2)).to(DEVICE), 0.7)
    for depths in plans(image, len(to_program(model.to(DEVICE)).stages), 8):
        assert_pictures_close(*both(model, image, depths, dtype, tones), TOLERANCE[dtype])
