"""The operation `upscale` works through an image in bands: the same picture, in bounded memory."""

import json
import subprocess
import sys

import pytest
import torch
from support import spread_network, test_patches

from ape_kernels import APEForward, PatchGrid, Wish, pack
from ape_kernels.backends.protocol import Exits
from ape_kernels.run import patches as images

GEOMETRIES = [(8, 2, "linear"), (8, 7, "linear"), (8, 0, "average"), (12, 5, "average")]


@pytest.mark.parametrize("patch_size, overlap, blend", GEOMETRIES)
def test_bands_change_nothing(backend, monkeypatch, patch_size, overlap, blend):
    fast = APEForward(
        spread_network(2, 1, 4, 1), 0.5, backend=backend, patch_size=patch_size, overlap=overlap, blend=blend
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a band holds a few patches for every thread
    try:
        for batch, height, width in ((1, 50, 37), (2, 9, 61), (3, 5, 5), (1, 61, 9)):
            image = test_patches(batch, height, width)
            whole, report = fast(image, return_report=True)
            for chunk in (1, 40_000):
                monkeypatch.setitem(images.CHUNK_BYTES, image.device.type, chunk)
                banded, banded_report = fast(image, return_report=True)
                torch.testing.assert_close(banded, whole, atol=0 if backend == "cpu" else 1e-5, rtol=0)
                assert torch.equal(banded_report.exit_index, report.exit_index)
            monkeypatch.undo()
    finally:
        torch.set_num_threads(threads)


def test_depths_of_a_picture_reach_its_patches_band_by_band(backend, monkeypatch):
    packed = pack(spread_network(2, 3, 4, 1), Wish(backend))
    image, cut = test_patches(2, 30, 21), images.Cut(8, 2, "linear")
    grid = PatchGrid(30, 21, 8, 2, 2)
    exit_at = torch.arange(2 * grid.shape[0] * grid.shape[1], device=image.device).view(2, *grid.shape) % 3
    patches = images.split(PatchGrid(30, 21, 8, 2), image)
    expected = images.merge(grid, images.run_patches(patches, packed, Exits(0.0, exit_at.flatten())).sr, 2)
    for chunk in (1 << 30, 1):
        monkeypatch.setitem(images.CHUNK_BYTES, image.device.type, chunk)
        results = images.run_images(image, packed, cut, Exits(0.0, exit_at))
        assert torch.equal(results.exit_index, exit_at)
        torch.testing.assert_close(results.sr, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"exit_at: expected int64 \[2, 5, 4\] on cpu, got torch.int64 \[2, 4, 5\]"):
        images.run_images(image, packed, cut, Exits(0.0, exit_at.transpose(1, 2)))


PEAK = """
import json, resource, sys, torch
from ape_kernels import APEForward
from ape_sr.models import EDSR
torch.set_num_threads(2)
fast = APEForward(EDSR(4, 1, 4, 1).eval(), 0.0, backend="cpu")
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
fast(torch.rand(1, 3, 60, 60))
image = torch.rand(1, 3, *map(int, sys.argv[1:]))
before = rss()
picture = fast(image)
print(json.dumps({"grown": rss() - before, "before": before, "picture": picture.nbytes / 2**20}))
"""


def test_memory_beyond_the_picture_is_bounded():
    """8000 x 6000 pixels, 549 MiB: split, run and merge at once would need as much again, and more."""
    done = subprocess.run([sys.executable, "-c", PEAK, "1500", "2000"], check=True, capture_output=True, text=True)
    peak = json.loads(done.stdout)
    assert peak["picture"] == pytest.approx(549.3, abs=0.1)
    assert peak["grown"] < peak["picture"] + 200, peak
