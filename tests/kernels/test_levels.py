"""Pictures as whole numbers and strip by strip are those that are whole; a run tells how far it is, and can stop."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from support import DEVICE, spread_network, test_patches
from test_images import NETWORKS
from test_rrdb import BasicSR

from ape_kernels import APEForward
from ape_kernels.backends.protocol import Depths
from ape_kernels.geometry import cells_of
from ape_kernels.packed import Wish, pack
from ape_kernels.run import images, patches
from ape_kernels.run.images import run_image
from ape_kernels.run.levels import Levels, run_levels

FOLDED = {"rrdb x2, folded": BasicSR(scale=2), "rrdb x1, folded": BasicSR(scale=1)}
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
CELL = 16

on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="the cpu backend runs on the CPU")


def photo(height, width, dtype=np.uint8, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


def planes(image, value_range):
    factor = np.float32(value_range / np.iinfo(image.dtype).max)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) * factor)[None]


def rounded(sr, value_range, dtype):
    peak = np.iinfo(dtype).max
    levels = sr[0].numpy() * np.float32(peak / value_range)
    return np.rint(levels).clip(0, peak).astype(dtype).transpose(1, 2, 0)


def some_depths(packed, height, width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, *cells_of(height, width, CELL))
    return torch.randint(-1, len(packed.program.stages), shape, generator=generator)


BAD_ARRAYS = {
    "image-dtype": (np.zeros((4, 5, 3), np.float32), None, "image: expected uint8 or uint16 [H, W, 3]"),
    "image-channels": (np.zeros((4, 5, 1), np.uint8), None, "image: expected uint8 or uint16 [H, W, 3]"),
    "out-size": (photo(4, 5), np.zeros((16, 19, 3), np.uint8), "out: expected uint8 [16, 20, '3 or 1']"),
    "out-dtype": (photo(4, 5), np.zeros((16, 20, 3), np.uint16), "got uint16 [16, 20, 3]"),
    "out-order": (photo(4, 5), np.zeros((3, 16, 20), np.uint8).transpose(1, 2, 0), "side by side"),
}


@on_cpu
class TestWholeNumbers:
    @pytest.mark.parametrize("name", [*NETWORKS, *FOLDED])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("planned", ["no", "yes", "in other colours"])
    def test_are_the_floats_rounded(self, name, dtype, planned):
        """Exactly: a plan and interpolation, folded pixels, sides that nothing divides."""
        packed, value_range = pack({**NETWORKS, **FOLDED}[name], Wish("cpu", images=True, patch_size=CELL)), 3.0
        image = photo(35, 101, dtype)
        colours = 0.7 * planes(image, value_range) if planned == "in other colours" else None
        depths = Depths(None if planned == "no" else some_depths(packed, *image.shape[:2]), CELL, 4)
        scale = packed.shape.scale
        out = np.zeros((35 * scale, 101 * scale, 3), dtype)
        run_levels(Levels(image, out, value_range), packed, depths, colours, None)
        expected = run_image(planes(image, value_range), packed, depths, colours)
        assert np.array_equal(out, rounded(expected, value_range, dtype))
        assert 0 < out.min() + 1 <= out.max()

    def test_grey_is_the_luma(self):
        packed, image = pack(NETWORKS["edsr x4"], Wish("cpu", images=True)), photo(20, 31)
        out = np.zeros((80, 124, 1), np.uint8)
        run_levels(Levels(image, out, 1.0), packed, Depths(None, 48, 4), None)
        sr = run_image(planes(image, 1.0), packed, Depths(None, 48, 4))[0].numpy()
        luma = np.tensordot(LUMA, sr * np.float32(255), 1)
        assert (np.abs(out[..., 0] - luma.clip(0, 255)) <= 0.5001).all()

    def test_into_a_part_of_an_array(self):
        """Such as the colours beside transparency; nothing else is touched."""
        packed, image = pack(NETWORKS["edsr x4"], Wish("cpu", images=True)), photo(20, 31)
        whole, plain = np.full((82, 130, 4), 7, np.uint8), np.zeros((80, 124, 3), np.uint8)
        for out in (whole[1:-1, 2:126, :3], plain):
            run_levels(Levels(image, out, 1.0), packed, Depths(None, 48, 4), None)
        assert np.array_equal(whole[1:-1, 2:126, :3], plain)
        whole[1:-1, 2:126, :3] = 7
        assert (whole == 7).all()

    @pytest.mark.parametrize("case", BAD_ARRAYS)
    def test_other_arrays_are_refused(self, case):
        image, out, message = BAD_ARRAYS[case]
        packed = pack(NETWORKS["edsr x4"], Wish("cpu", images=True))
        out = np.zeros((16, 20, 3), np.uint8) if out is None else out
        with pytest.raises(ValueError) as raised:
            run_levels(Levels(image, out, 1.0), packed, Depths(None, 48, 4), None)
        assert message in str(raised.value)


class TestStrips:
    """Strips of pictures that are never whole."""

    def joined(self, fast, image):
        strips, heights = [], []

        def put(first, strip):
            heights.append(first)
            strips.append(strip.clone())

        sr, report = fast.runner().run(image, report=True, put=put)
        assert sr.numel() == 0 and report.flops > 0
        assert heights == [sum(s.shape[1] for s in strips[:i]) for i in range(len(strips))]
        return torch.cat(strips, 1)[None], len(strips)

    @pytest.mark.parametrize("name", ["edsr x4", "rrdb x4", *FOLDED])
    def test_on_shared_maps(self, name, monkeypatch):
        monkeypatch.setitem(images.BAND_BYTES, DEVICE.type, 1)
        fast = APEForward({**NETWORKS, **FOLDED}[name], backend="torch", context="model", cell=16)
        image = test_patches(1, 121, 30)
        strips, count = self.joined(fast, image)
        assert torch.equal(strips, fast(image)) and count > 2

    @pytest.mark.parametrize("scale", [4, 2])
    def test_on_patches(self, scale, backend, monkeypatch):
        monkeypatch.setitem(patches.CHUNK_BYTES, DEVICE.type, 1)
        fast = APEForward(BasicSR(scale=scale), backend=backend, context="patch", patch_size=12)
        image = test_patches(1, 201, 30)
        strips, count = self.joined(fast, image)
        assert torch.equal(strips, fast(image)) and count > 2


class Listener:
    def __init__(self, stop_at=None):
        self.shares, self.stop_at, self.threads = [], stop_at, set()

    def __call__(self, share):
        self.shares.append(share)
        self.threads.add(threading.get_ident())
        if self.stop_at is not None and share >= self.stop_at:
            raise InterruptedError


class TestProgress:
    @pytest.mark.parametrize("context", ["model", "patch"])
    def test_is_told(self, context, backend):
        fast, image = APEForward(spread_network(2), backend=backend, context=context), test_patches(2, 150, 130)
        told = Listener()
        assert torch.equal(fast(image, progress=told), fast(image))
        assert told.shares == sorted(told.shares) and told.shares[-1] == 1 and 0 <= told.shares[0] <= 1
        assert told.threads == {threading.get_ident()}

    @on_cpu
    def test_comes_while_native_code_runs_and_ends_it(self):
        fast, image = APEForward(spread_network(4, 16, 64, None), backend="cpu"), test_patches(1, 700, 700)
        started = time.perf_counter()
        told = Listener(stop_at=0.05)
        with pytest.raises(InterruptedError):
            fast(image, progress=told)
        stopped = time.perf_counter() - started
        assert 0.05 <= told.shares[-1] < 0.7
        started = time.perf_counter()
        fast(image)
        assert stopped < 0.7 * (time.perf_counter() - started)

    @on_cpu
    def test_an_interruption_ends_it(self):
        fast, image = APEForward(spread_network(4, 16, 64, None), backend="cpu"), test_patches(1, 700, 700)
        shares = []

        def told(share):
            first = share > 0 and not any(shares)
            shares.append(share)
            if first:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            fast(image, progress=told)
        assert shares[-1] < 0.9

    def test_bands_and_patches_stop_too(self, monkeypatch):
        monkeypatch.setitem(patches.CHUNK_BYTES, DEVICE.type, 1)
        monkeypatch.setitem(images.BAND_BYTES, DEVICE.type, 1)
        for context in ("model", "patch"):
            fast = APEForward(spread_network(2), backend="torch", context=context, patch_size=12, cell=12)
            told = Listener(stop_at=0.3)
            with pytest.raises(InterruptedError):
                fast(test_patches(1, 200, 30), progress=told)
            assert told.shares[-1] < 0.9
