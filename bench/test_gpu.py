"""GPU backends against what a user would run instead: full depth, and with exits; end to end on an image.

    bash bench/gpu.sh                        all of it, with tests first
    pytest bench/test_gpu.py -k "16x64"      some

Rows of a group are measured in turns with CUDA events (the replay of those samples is what pytest-benchmark times).
Beside each time stands its floor: the program's FLOPs over the matrix product's speed, or its bytes over the copy's,
whichever is longer, both measured in the same run.
"""

from __future__ import annotations

import statistics
from functools import cache

import pytest
import torch
from gpu_peers import PEERS, RUN_EXITS, ceilings, milliseconds_in_turns
from interleave import CLOCK, Samples, replay
from networks import make
from peers import NEVER, Unavailable, authors_on_a_picture
from torch import Tensor, nn

from ape_kernels import APEForward
from ape_kernels.backends import BackendUnavailable
from ape_kernels.policy import exit_boundary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
ROUNDS = 7
OURS = ("ape_kernels torch", "ape_kernels triton", "ape_kernels cuda")
# network, patches, share of the body's FLOPs that the exits leave
CASES = [
    *(("EDSR 16x64 x4", count, share) for count in (100, 500, 2000) for share in (1.0, 0.75, 0.5, 0.25)),
    ("EDSR 32x256 x4", 100, 1.0),
    ("EDSR 32x256 x4", 100, 0.5),
    ("RCAN 2x20x64 x4", 500, 1.0),
    ("RCAN 2x20x64 x4", 500, 0.5),
]


@cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    """On the GPU, predictions spread so that a threshold moves the exits; and patches to fit thresholds on."""
    from families import spread_regressor

    model, _ = make(name)
    contrast = torch.rand(64, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    patches = torch.rand(64, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * contrast
    model, patches = model.cuda(), patches.cuda()
    spread_regressor(model, model.exit_features(patches)[1], patches)
    return model, patches


def threshold_for(name: str, share: float) -> float:
    """The threshold that leaves this share of the body's FLOPs on the patches of `network`."""
    if share == 1.0:
        return 0.0
    model, patches = network(name)
    fast = APEForward(model, backend="torch")
    body = [fast.program.body_flops_to_stage(stage) for stage in range(len(fast.program.stages))]
    low, high = 0.0, 1.0
    for _ in range(20):
        fast.threshold = (low + high) / 2
        exits = fast.forward_patches(patches)[1].tolist()
        left = statistics.mean(body[i] for i in exits) / body[-1]
        low, high = (low, fast.threshold) if left < share else (fast.threshold, high)
    return high


def _wrapped(row: str, model: nn.Module, threshold: float) -> APEForward:
    fast = APEForward(model, threshold, backend=row.split()[1], dtype=torch.float16)
    try:
        fast.forward_patches(torch.rand(1, 3, 48, 48, device="cuda"))
    except BackendUnavailable as reason:
        raise Unavailable(str(reason)) from None
    return fast


@cache
def group(name: str, count: int, share: float) -> tuple[dict[str, list[float]], dict[str, str], dict[str, float]]:
    """Milliseconds of the rows that can run, the reasons of those that cannot, and what belongs to the group."""
    model, base = network(name)
    threshold = threshold_for(name, share)
    patches = base.repeat(-(-count // len(base)), 1, 1, 1)[:count]
    oracle = APEForward(model, threshold, backend="torch", dtype=torch.float32)
    expected, exits, _ = oracle.forward_patches(patches[:64])
    span = float(expected.max() - expected.min())
    program, pixels = oracle.program, 48 * 48
    flops = statistics.mean(program.flops_to_stage(i) for i in exits.tolist()) * pixels * count
    moved = patches.numel() * 4 + count * expected[0].numel() * 4
    speed, bandwidth = ceilings()
    facts = {"floor_ms": 1e3 * max(flops / speed, moved / bandwidth), "tflops": flops / 1e12, "threshold": threshold}
    runs, reasons = {}, {}
    for row in (*PEERS, *OURS):
        try:
            if row in OURS:
                fast = _wrapped(row, model, threshold)
                run = lambda patches, fast=fast: fast.forward_patches(patches)[0]  # noqa: E731
            elif share < 1 and row not in RUN_EXITS:
                raise Unavailable("has no exits")
            else:
                run = PEERS[row](model, patches, exit_boundary(threshold) if share < 1 else NEVER)
        except Unavailable as reason:
            reasons[row] = f"{row}: {reason}"
            continue
        error = (run(patches)[:64] - expected).abs()
        assert float(error.median()) <= 0.01 * span, f"{row} computes another picture: {float(error.max()):.1e}"
        runs[row] = lambda run=run: run(patches)
    return milliseconds_in_turns(runs, ROUNDS), reasons, facts


@pytest.mark.parametrize("row", [*PEERS, *OURS])
@pytest.mark.parametrize("name, count, share", CASES, ids=lambda v: str(v))
@pytest.mark.benchmark(timer=CLOCK)
def test_patches(benchmark, name, count, share, row):
    samples, reasons, facts = group(name, count, share)
    if row in reasons:
        pytest.skip(reasons[row])
    _replay(benchmark, f"gpu {name}, {count} patches, {share:.0%} of the body", row, samples[row], facts)


@cache
def image_group() -> tuple[dict[str, list[float]], dict[str, str]]:
    """A 960x540 image to 3840x2160, decisions, compaction and merge included, half the body left by the exits."""
    model, base = network("EDSR 16x64 x4")
    threshold = threshold_for("EDSR 16x64 x4", 0.5)
    tile = torch.cat(list(base[:20]), dim=2)
    image = torch.cat([tile] * 12, dim=1)[None, :, :540, :960].contiguous()
    runs, reasons = {}, {}
    for row in OURS:
        try:
            fast = _wrapped(row, model, threshold)
        except Unavailable as reason:
            reasons[row] = f"{row}: {reason}"
            continue
        runs[row] = lambda fast=fast: fast(image)
    authors = authors_on_a_picture(model, 4, exit_boundary(threshold))
    runs["authors"] = lambda: authors(image)
    return milliseconds_in_turns(runs, ROUNDS), reasons


@pytest.mark.parametrize("row", ["authors", *OURS])
@pytest.mark.benchmark(timer=CLOCK)
def test_image(benchmark, row):
    samples, reasons = image_group()
    if row in reasons:
        pytest.skip(reasons[row])
    _replay(benchmark, "gpu EDSR 16x64 x4, image 960x540, 50% of the body", row, samples[row], {})


SWITCH = (1, 8, 16, 33, 66, 100, 132, 200)


@cache
def switch_group(count: int) -> dict[str, list[float]]:
    """The triton backend's two ways to run few patches, at full depth."""
    from ape_kernels.backends.triton import run as launches

    model, base = network("EDSR 16x64 x4")
    patches = base.repeat(4, 1, 1, 1)[:count]
    fast = _wrapped("ape_kernels triton", model, 0.0)

    def run(spread_below: float) -> Tensor:
        kept, launches.SPREAD_BELOW = launches.SPREAD_BELOW, spread_below
        try:
            return fast.forward_patches(patches)[0]
        finally:
            launches.SPREAD_BELOW = kept

    runs = {"persistent": lambda: run(0.0), "spread": lambda: run(float("inf"))}
    return milliseconds_in_turns(runs, ROUNDS)


@pytest.mark.parametrize("row", ["persistent", "spread"])
@pytest.mark.parametrize("count", SWITCH)
@pytest.mark.benchmark(timer=CLOCK)
def test_where_spreading_stops_paying(benchmark, count, row):
    _replay(benchmark, f"gpu triton, {count} patches: a worker a patch or spread", row, switch_group(count)[row], {})


def _replay(benchmark, name: str, row: str, samples: list[float], facts: dict[str, float]) -> None:
    taken = Samples(seconds=[sample / 1e3 for sample in samples])
    replay(benchmark, name, row, taken, 1, {"device": torch.cuda.get_device_name(), **facts})
