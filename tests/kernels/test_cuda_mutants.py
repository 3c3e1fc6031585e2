"""Mistakes planted in the cuda backend's kernel are noticed when it is executed on the CPU.

Every barrier and every wait for asynchronous copies is left out once; slots are made too few, prefetches too early.
Each runs in a process of its own: some crash.
"""

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from cuda_host import HostLauncher, build
from families import randomise
from support import spread_network, test_patches
from test_cuda import install

from ape_kernels import APEForward
from ape_kernels.backends.protocol import Depths
from ape_kernels.packed import Wish, pack
from ape_kernels.run.images import run_image
from ape_sr.models import RCAN

SECONDS = 20  # a mistake may also hang


def problems() -> list[Callable[[], tuple[torch.Tensor, ...]]]:
    """Runs that reach every barrier of the kernel; several tiles, channels and patches."""
    rcan = APEForward(randomise(RCAN(2, 2, 1, 32, 5, exit_interval=1)), backend="cuda", dtype=torch.float16)
    edsr = APEForward(spread_network(2, 2, 16, 1), 0.5, backend="cuda", dtype=torch.float32)
    packed = edsr.packed
    stage = (torch.arange(3), packed.tensors, 0, 0.5, None, "cuda")
    features = test_patches(16, 5, 6).reshape(3, 16, 5, 6)
    packed = pack(spread_network(2, 6, 16, 2), Wish("cuda", torch.float16))
    depths = Depths(torch.tensor([[[2, 0, 1], [0, -1, 0], [1, 1, 0], [-1, 1, 2]]]), 16, 4)
    return [
        lambda: (run_image(test_patches(1, 60, 33), packed, depths),),
        lambda: rcan.forward_patches(test_patches(2, 18, 19)),
        lambda: edsr.forward_patches(test_patches(3, 5, 6)),
        lambda: torch.ops.ape_kernels.run_stage(features, *stage),
    ]


def notices(problem: Callable[[], tuple[torch.Tensor, ...]], expected: tuple[torch.Tensor, ...]) -> bool:
    """Whether the run fails, hangs, crashes or gives anything but `expected`."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            same = all(torch.equal(a, b) for a, b in zip(problem(), expected, strict=True))
            os._exit(0 if same else 1)
        except BaseException:
            os._exit(2)
    return os.waitpid(child, 0)[1] != 0


@contextmanager
def one_thread():
    """A forked child has no others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unnoticed(host: HostLauncher, fault: str, runs: list, results: list) -> bool:
    """Whether three schedules of every run give the expected result in spite of the fault."""
    host.fault = fault
    for host.seed, host.chance in ((0, 0), (1, 300), (2, 30)):
        if any(notices(run, result) for run, result in zip(runs, results, strict=True)):
            return False
    return True


def test_every_barrier_and_every_wait_is_needed(monkeypatch):
    host = install(monkeypatch, HostLauncher(build()))
    runs = problems()
    results = [run() for run in runs]
    assert {site.split(".")[0] for site in host.sites} >= {
        "sync conv",
        "wait conv",
        "sync pair",
        "wait pair",
        "sync stream",
        "wait stream",
        "sync worker",
        "sync window",
    }
    with one_thread():
        assert [site for site in sorted(host.sites) if unnoticed(host, site, runs, results)] == []


MISTAKES = {
    "wait-too-lax": ("conv.h", "wait<E::kStages - 2>", "wait<E::kStages - 1>"),
    "one-weight-slot-too-few": (
        "conv.h",
        "weight_slots() + E::kStages * slot",
        "weight_slots() + (E::kStages - 1) * slot",
    ),
    "rings-one-row-short": ("pair.h", "kRing = ROWS + 2", "kRing = ROWS + 1"),
    "stage-fetched-too-early": ("pair.h", "i < S::kStages - 1; ++i", "i < S::kStages; ++i"),
    "one-stage-too-few": ("pair.h", "slot == (S::kStages - 1)", "slot == (S::kStages - 2)"),
    "pair-wait-too-lax": ("pair.h", "wait<S::kStages - 2>", "wait<S::kStages - 1>"),
    "row-fetched-too-early": (
        "pair.h",
        "if (makes_y && step + 1 < steps()) expect_row",
        "if (step + 1 < steps()) expect_row",
    ),
    "row-fetched-too-long": ("pair.h", "if (ky == 1) coming.pixels = 0", "if (ky == 2) coming.pixels = 0"),
    "stream-ring-one-row-short": ("stream.h", "2 * kWarps + K - 1;", "2 * kWarps + K - 2;"),
    "stream-one-stage-of-weights": ("stream.h", "2 * weights() + stage_bytes() - stage", "stage"),
    "stream-side-not-zero": ("stream.h", "column : width + column", "column : width + column + 1"),
    "stream-fetches-too-few-rows": ("stream.h", "row < height + kReach ? width", "row < height ? width"),
    "window-margin-too-narrow": ("image.h", "args.fused ? 2 :", "args.fused ? 1 :"),
    "pair-over-its-own-input": ("image.h", "args.fused && dst == in.src", "false"),
    "carried-too-rarely": ("image.h", "args.carry_stage == stage", "args.carry_stage >= 0"),
    "carried-without-the-ring": ("image.h", "args.carry_stage == 0 ? int32_t(request.ring)", "false ? 0"),
    "halo-one-row-short": ("conv.h", "y >= 0 && y < to.height", "y >= 0 && y < to.height - 1"),
}


@dataclass(frozen=True)
class Planting:
    """The kernel built quickly, the runs, and what they give without a mistake."""

    host: HostLauncher
    runs: list[Callable[[], tuple[torch.Tensor, ...]]]
    results: list[tuple[torch.Tensor, ...]]

    def assert_noticed(self, edit: tuple[str, str, str]) -> None:
        """A run fails with the mistake planted."""
        self.host.library = build((edit,), quick=True)
        assert not unnoticed(self.host, "", self.runs, self.results)


@pytest.fixture(scope="module")
def planting():
    """The kernel is right as it is."""
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        host = install(patch, HostLauncher(build(quick=True)))
        runs = problems()
        results = [run() for run in runs]
        assert unnoticed(host, "", runs, results)
        yield Planting(host, runs, results)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(planting, mistake):
    planting.assert_noticed(MISTAKES[mistake])
