"""The triton backend against the torch backend: in the interpreter on the CPU, as it is on a GPU.

The interpreter takes milliseconds per operation of a tile, so networks and patches are small.
"""

import math
from functools import cache

import pytest
import torch
from families import randomise, spread_regressor
from support import DEVICE, assert_pictures_close, bitwise, spread_network, test_patches
from test_compact import Compact

from ape_kernels import APEForward, PatchGrid, to_program
from ape_kernels.backends import BackendUnavailable, get_backend
from ape_kernels.backends.triton import config as configurations
from ape_kernels.collapse import CollapsedTail
from ape_kernels.program import Buffer, Conv, Exit, PatchProgram, Reconstruct, Stage
from ape_kernels.run.patches import merge, split
from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet, SwinIR

pytest.importorskip("triton", reason="triton is not installed")
from ape_kernels.backends.triton import launch as launches

pytestmark = pytest.mark.no_cover  # of the interpreter, see pyproject.toml


def _exits(model):
    """`model` with predictions that differ from patch to patch and exit to exit."""
    patches = test_patches(64, seed=2).cpu()
    spread_regressor(model, model.exit_features(patches)[1], patches)
    return model.to(DEVICE)


NETWORKS = {
    "edsr-x2": lambda: spread_network(2, 2, 16),
    "edsr-x3-24ch-scaled": lambda: spread_network(3, 1, 24, 1, res_scale=0.3, rgb_range=255.0),
    "rcan-x2": lambda: _exits(randomise(RCAN(2, 2, 1, 8, 2, 1))),
    "vdsr-x2": lambda: _exits(randomise(VDSR(2, 4, 8, 1), gain=1.7)),
    "ecbsr-x2": lambda: _exits(randomise(ECBSR(2, 4, 8, 1), gain=0.6)),
    "compact-x3": lambda: Compact(3, num_conv=2),
    "rrdb-x4": lambda: randomise(RRDBNet(4, 1, 8, 4, None)).to(DEVICE),
}
EDGES = ("edsr-x2", "vdsr-x2")  # with and without border classes


@cache
def network(name: str) -> torch.nn.Module:
    return NETWORKS[name]()


def light() -> torch.nn.Module:
    """Four exits and no border classes: cheap in the interpreter."""
    return network("ecbsr-x2")


def pair(model, threshold: float = 0.0, dtype: torch.dtype | None = None) -> tuple[APEForward, APEForward]:
    return (
        APEForward(model, threshold, backend="triton", dtype=dtype),
        APEForward(model, threshold, backend="torch", dtype=dtype),
    )


@pytest.mark.parametrize(
    "name, size",
    [*((name, (5, 7)) for name in NETWORKS), *((name, size) for name in EDGES for size in ((1, 1), (2, 19)))],
    ids=lambda v: v if isinstance(v, str) else f"{v[0]}x{v[1]}",
)
def test_every_exit_of_every_network(name, size):
    model = network(name)
    fast, oracle = pair(model)
    value_range = getattr(model, "rgb_range", 1.0)
    stages = len(to_program(model).stages)
    patches = test_patches(stages, *size) * value_range
    exit_at = torch.arange(stages, device=DEVICE)
    sr, exit_index, capacity = fast.forward_patches(patches, exit_at)
    expected, _, expected_capacity = oracle.forward_patches(patches, exit_at)
    assert torch.equal(exit_index, exit_at)
    assert_pictures_close(sr, expected)
    torch.testing.assert_close(capacity, expected_capacity, atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8, 1.0], ids=lambda t: f"threshold={t}")
def test_leaves_as_predicted(threshold):
    fast, oracle = pair(light(), threshold)
    patches = test_patches(6, 8, 6)
    sr, exit_index, capacity = fast.forward_patches(patches)
    expected, expected_index, expected_capacity = oracle.forward_patches(patches)
    assert torch.equal(exit_index, expected_index)
    assert threshold not in (0.2, 0.5) or len(set(exit_index.tolist())) > 1
    assert_pictures_close(sr, expected)
    torch.testing.assert_close(capacity, expected_capacity, atol=1e-4, rtol=0)


def tiny_program() -> PatchProgram:
    """Three convolutions, an exit after each of two stages, and a 1x1 tail."""
    weight = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))  # noqa: E731
    exit_step = Exit(1, weight(4), weight(1))
    return PatchProgram(
        buffers=(Buffer(3), Buffer(4), Buffer(4)),
        head=(Conv(0, 1, weight(4, 3, 1, 1)),),
        stages=(
            Stage(1, 1, (exit_step,)),
            Stage(1, 1, (Conv(1, 2, weight(4, 4, 3, 3), weight(4)), Conv(2, 1, weight(4, 4, 1, 1)), exit_step)),
        ),
        tail=(Reconstruct(1, CollapsedTail(weight(1, 1, 4, 4, 1, 1), weight(1, 1, 4)), 2),),
    )


@pytest.mark.parametrize("count", [0, 1, 2, 129], ids=lambda n: f"{n}patches")
def test_counts(count):
    patches = test_patches(count, 1, 2)
    results = []
    for name in ("triton", "torch"):
        packed = get_backend(name).pack(tiny_program(), DEVICE, torch.float32)
        results.append(torch.ops.ape_kernels.run_patches(patches, packed, 0.1, None, 2, 1, name))
    (sr, exit_index, _), (expected, expected_index, _) = results
    assert torch.equal(exit_index, expected_index)
    assert count < 129 or set(exit_index.tolist()) == {0, 1}
    assert_pictures_close(sr, expected)


def test_a_whole_patch_of_64_channels():
    """Tiles of the shipped sizes, nine per map."""
    fast, oracle = pair(randomise(EDSR(2, 1, 64, 1)).to(DEVICE))
    patches = test_patches(1, 48, 48)
    assert_pictures_close(fast.forward_patches(patches)[0], oracle.forward_patches(patches)[0])


@pytest.mark.parametrize("name", ["rcan-x2", "vdsr-x2"])
def test_spread_over_the_chip_gives_the_same_bits(name, monkeypatch):
    fast = APEForward(network(name), 0.5, backend="triton")
    patches = test_patches(2, 17, 18)  # two tiles
    kept = fast.forward_patches(patches)
    monkeypatch.setattr(launches, "SPREAD_BELOW", math.inf)
    monkeypatch.setattr(launches.Call, "persistent", None)
    assert bitwise(fast.forward_patches(patches), kept)
    forced = torch.tensor([1, 0], device=DEVICE)
    _, exit_index, _ = fast.forward_patches(patches, forced)
    assert torch.equal(exit_index, forced)


def test_few_patches_are_spread_and_many_are_not(monkeypatch):
    calls = []
    for name in ("spread", "persistent"):
        monkeypatch.setattr(launches.Call, name, lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(launches.Call, "workers", lambda *_: 8)
    fast = APEForward(light(), backend="triton")
    for count in (1, 5, 6, 9):
        fast.forward_patches(test_patches(count, 2, 2))
    assert calls == ["spread", "spread", "persistent", "persistent"]


def test_a_patch_alone_gives_the_same_bits():
    fast = APEForward(light(), 0.5, backend="triton")
    patches = test_patches(4, 5, 6)
    together = fast.forward_patches(patches)
    for i in range(4):
        assert bitwise(fast.forward_patches(patches[i : i + 1]), [part[i : i + 1] for part in together])


@pytest.mark.parametrize("forced", [False, True], ids=["predicted", "forced"])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_run_stage(stage, forced):
    fast, oracle = pair(light())
    program = to_program(light())
    channels = program.buffers[program.stages[stage].src].channels
    features = torch.rand(5, channels, 6, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    active = torch.tensor([4, 0, 3, 1], device=DEVICE)
    exit_at = torch.tensor([0, 2, 0, 1, 3], device=DEVICE) if forced else None

    def run(wrapped: APEForward, boundary: float) -> tuple[torch.Tensor, ...]:
        packed = wrapped.packed
        return torch.ops.ape_kernels.run_stage(
            features, active, packed.tensors, stage, boundary, exit_at, wrapped.backend
        )

    boundary = float(1 - run(oracle, 0.0)[2].median()) - 1e-3  # so that some leave and some stay
    results = run(oracle, boundary), run(fast, boundary)
    (expected, expected_ids, expected_capacity, expected_left), (out, ids, capacity, left) = results
    assert torch.equal(ids, expected_ids)
    assert torch.equal(left, expected_left)
    assert stage == 3 or 0 < int(left) < 4
    assert_pictures_close(out, expected)
    torch.testing.assert_close(capacity, expected_capacity, atol=1e-4, rtol=0)


def test_run_stage_of_no_patch_and_of_no_such_stage():
    packed = APEForward(light(), backend="triton").packed
    features, none = torch.rand(2, 8, 4, 4, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    run = lambda stage: torch.ops.ape_kernels.run_stage(  # noqa: E731
        features, none, packed.tensors, stage, 0.5, None, "triton"
    )
    out, ids, _, left = run(0)
    assert out.shape == (0, 8, 4, 4)
    assert not len(ids)
    assert left.tolist() == [0]
    with pytest.raises(ValueError, match="stage: expected 0 to 3, got 4"):
        run(4)


def test_float16_stays_within_a_hundredth_db():
    """Against a high-resolution picture of which the fp32 result is 30 dB away."""
    fast, oracle = pair(network("edsr-x2"), dtype=torch.float16)
    patches = test_patches(2, 9, 9)
    exact = oracle.model(patches)
    half = fast.forward_patches(patches)[0]
    truth = exact + torch.randn(exact.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE) * 10 ** (-30 / 20)
    psnr = lambda sr: -10 * math.log10((sr - truth).square().mean())  # noqa: E731
    assert not torch.equal(half, oracle.forward_patches(patches)[0].float())
    assert psnr(half) > psnr(exact) - 0.01


@pytest.mark.parametrize("blend", ["linear", "average"])
@pytest.mark.parametrize("overlap", [0, 3], ids=lambda o: f"overlap={o}")
def test_split_and_merge(overlap, blend):
    grid = PatchGrid(13, 19, 8, overlap, 2, blend)
    image = torch.rand(2, 1, 13, 19, device=DEVICE)
    patches = split(grid, image, "triton")
    assert torch.equal(patches, split(grid, image, "torch"))
    sr = torch.rand(len(patches), 1, 16, 16, device=DEVICE)
    torch.testing.assert_close(merge(grid, sr, 2, "triton"), merge(grid, sr, 2, "torch"), atol=1e-6, rtol=0)


def test_whole_images():
    fast, oracle = pair(light(), 0.5)
    fast.patch_size = oracle.patch_size = 8
    fast.overlap = oracle.overlap = 2
    image = torch.rand(1, 3, 11, 9, device=DEVICE)
    assert_pictures_close(fast(image), oracle(image))


def test_what_it_cannot_run_is_refused_with_the_reason():
    with pytest.raises(BackendUnavailable, match="triton cannot run: has no kernels for"):
        swinir = SwinIR(2, depths=(1,), embed_dim=8, num_heads=(2,), window_size=4).eval().to(DEVICE)
        APEForward(swinir, backend="triton")(torch.rand(1, 3, 8, 8, device=DEVICE))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="GPUs compute in bfloat16")
def test_the_interpreter_refuses_bfloat16():
    with pytest.raises(BackendUnavailable, match=r"triton cannot run: .* not in the interpreter"):
        APEForward(light(), backend="triton", dtype=torch.bfloat16)(torch.rand(1, 3, 8, 8))


def test_autotune_takes_the_fastest_and_asks_once(monkeypatch):
    monkeypatch.setattr(configurations, "_TUNED", {})
    tried = []

    def seconds(config):
        tried.append(config)
        return math.inf if config.pipeline == 4 else abs(config.bm - 128) + config.warps

    choose = lambda timer=seconds: configurations.choose(64, torch.float16, (9, 0), timer)  # noqa: E731
    assert choose() == configurations.shipped(64, torch.float16, (9, 0))
    assert not tried
    monkeypatch.setenv("APE_TRITON_AUTOTUNE", "1")
    assert choose(None) == configurations.shipped(64, torch.float16, (9, 0)), "what cannot be timed decides nothing"
    best = choose()
    assert (best.bm, best.warps) == (128, 4)
    count = len(tried)
    assert choose() == best
    assert len(tried) == count == len(set(tried))
