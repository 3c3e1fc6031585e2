"""The correctness contract (every backend against the literal forward)."""

import math
import os
import subprocess
import sys
import threading
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import literal_forward, picture_at_exit
from support import DEVICE, assert_exits_agree, assert_pictures_close, bitwise, spread_network, test_patches

from ape_kernels import APEForward, to_program
from ape_kernels.backends.torch import interpreter as oracle
from ape_kernels.check import check_program
from ape_kernels.policy import exit_boundary

NETWORKS = {
    "x4-16ch-4exits": dict(scale=4, blocks=4, feats=16, exit_interval=1),
    "x3-24ch-2exits": dict(scale=3, blocks=4, feats=24, exit_interval=2),
    "x2-40ch-3exits": dict(scale=2, blocks=3, feats=40, exit_interval=1),
    "x2-7ch-scaled": dict(scale=2, blocks=2, feats=7, exit_interval=1, res_scale=0.3, rgb_range=255.0),
    "x1-8ch": dict(scale=1, blocks=2, feats=8, exit_interval=1),
}


@cache
def wrapped_once(backend: str) -> APEForward:
    """For tests of many examples: wrapping costs more than running."""
    return APEForward(spread_network(), backend=backend)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8, 1.0], ids=lambda t: f"threshold={t}")
def test_equals_the_literal_forward(backend, name, threshold):
    model = spread_network(**NETWORKS[name])
    patches = test_patches(24) * model.rgb_range
    fast = APEForward(model, threshold, backend=backend)
    sr, exit_index, capacity = fast.forward_patches(patches)
    boundary = exit_boundary(threshold)
    _, _, predictions = literal_forward(model, patches, boundary)
    assert_exits_agree(exit_index, predictions, boundary)
    for i, prediction in enumerate(predictions):
        left_here = exit_index == i
        assert_pictures_close(sr[left_here], picture_at_exit(model, patches[left_here], i))
        torch.testing.assert_close(capacity[left_here], (1 - prediction)[left_here], atol=1e-4, rtol=0)
    if threshold == 0:
        assert (exit_index == len(predictions) - 1).all()


def test_the_spread_network_leaves_at_every_exit(backend):
    """Guards the other tests: they would prove little if all patches left together."""
    fast = APEForward(spread_network(), backend=backend)
    seen = set()
    for fast.threshold in (0.2, 0.5):
        exits = set(fast.forward_patches(test_patches(24))[1].tolist())
        assert len(exits) >= 3
        seen |= exits
    assert seen == {0, 1, 2, 3}


def test_literal_pictures_agree_with_the_authors_loop():
    model, patches = spread_network(), test_patches(8)
    sr, exit_index, _ = literal_forward(model, patches, 0.5)
    for patch, exit_ in enumerate(exit_index.tolist()):
        expected = picture_at_exit(model, patches[patch : patch + 1], exit_ if exit_ >= 0 else 3)
        assert_pictures_close(sr[patch : patch + 1], expected, 1e-6)


@given(
    schedule=st.lists(st.integers(0, 3), min_size=0, max_size=9),
    height=st.integers(1, 14),
    width=st.integers(1, 30),
)
def test_forced_exits_of_any_count_and_size(schedule, height, width):
    patches = test_patches(len(schedule), height, width)
    exit_at = torch.tensor(schedule, dtype=torch.int64, device=DEVICE)
    for backend in ("torch", "cpu") if DEVICE.type == "cpu" else ("torch",):
        fast = wrapped_once(backend)
        sr, exit_index, _ = fast.forward_patches(patches, exit_at)
        assert torch.equal(exit_index, exit_at)
        for i in set(schedule):
            assert_pictures_close(sr[exit_at == i], picture_at_exit(fast.model, patches[exit_at == i], i), 2e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 129], ids=lambda n: f"{n}patches")
def test_counts(backend, count):
    sr, exit_index, capacity = APEForward(spread_network(), 0.5, backend=backend).forward_patches(
        test_patches(count, 5, 6)
    )
    assert sr.shape == (count, 3, 20, 24)
    assert exit_index.shape == capacity.shape == (count,)
    assert exit_index.dtype == torch.int64
    assert capacity.dtype == torch.float32


def test_a_network_without_exits_runs_whole(backend):
    model = spread_network(exit_interval=None)
    patches = test_patches(3)
    sr, exit_index, capacity = APEForward(model, backend=backend).forward_patches(patches)
    assert_pictures_close(sr, model(patches))
    assert (exit_index == 0).all()
    assert capacity.isnan().all()


def test_saturated_predictions_do_not_exit_at_threshold_zero(backend):
    model = spread_network()
    model.regressor[2].bias.fill_(100.0)
    assert model.regressor(torch.rand(1, 16, 4, 4, device=DEVICE)).item() == 1.0
    _, exit_index, _ = APEForward(model, 0.0, backend=backend).forward_patches(test_patches(3))
    assert (exit_index == 3).all()


def test_run_stage_chained_equals_run_patches(backend):
    model, patches = spread_network(), test_patches(10)
    fast = APEForward(model, 0.5, backend=backend)
    expected, expected_index, _ = fast.forward_patches(patches)
    packed = fast.packed
    skip = model.head(model.sub_mean(patches))
    features, ids = skip, torch.arange(10, device=DEVICE)
    active = ids
    done = torch.empty_like(skip)
    exit_index = torch.full((10,), -1, device=DEVICE)
    for stage in range(4):
        features, order, _, n_left = torch.ops.ape_kernels.run_stage(
            features, active, packed.tensors, stage, exit_boundary(0.5), None, backend
        )
        assert features.shape[0] == order.shape[0] == len(active)
        ids, left = ids[order], int(n_left)
        assert torch.equal(order[:left], order[:left].sort().values), "patches that leave keep their order"
        assert torch.equal(order[left:], order[left:].sort(descending=True).values), "those that stay are reversed"
        done[ids[:left]] = features[:left]
        exit_index[ids[:left]] = stage
        features, ids = features[left:], ids[left:]
        active = torch.arange(len(ids), device=DEVICE)
    assert torch.equal(exit_index, expected_index)
    assert_pictures_close(model.reconstruct(skip + model.body[-1](done)), expected)


def test_run_stage_takes_any_subset_of_rows(backend):
    model = spread_network()
    packed = APEForward(model, backend=backend).packed
    features = model.head(model.sub_mean(test_patches(6)))
    run = lambda active: torch.ops.ape_kernels.run_stage(  # noqa: E731
        features, torch.tensor(active, device=DEVICE), packed.tensors, 0, math.inf, None, backend
    )
    out, ids, _, n_left = run([4, 1])
    assert ids.tolist() == [1, 4], "those that stay are in reverse order"
    assert int(n_left) == 0
    everything, all_ids = run([0, 1, 2, 3, 4, 5])[:2]
    assert_pictures_close(out, everything[all_ids.argsort()][[1, 4]], 1e-6)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the cpu backend; test_gpu.py asks the same of the others")
class TestNativeBitwise:
    """A patch's result depends on the patch alone: not on company, thread count or run."""

    def test_alone_or_among_others(self):
        fast = APEForward(spread_network(), 0.5, backend="cpu")
        patches = test_patches(9)
        together = fast.forward_patches(patches)
        for i in range(9):
            alone = fast.forward_patches(patches[i : i + 1])
            assert bitwise(alone, [part[i : i + 1] for part in together])

    def test_whatever_the_thread_count(self):
        fast, patches = APEForward(spread_network(), 0.5, backend="cpu"), test_patches(9)
        threads, results = torch.get_num_threads(), []
        try:
            for n in (1, 2, 3, 64):
                torch.set_num_threads(n)
                results.append(fast.forward_patches(patches))
        finally:
            torch.set_num_threads(threads)
        assert all(bitwise(results[0], other) for other in results[1:])


# PyTorch's two ways to say so; after the second torch.get_float32_matmul_precision() raises.
ALLOW_TF32 = (
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
)


def test_float32_is_not_tf32_within_the_torch_backend(monkeypatch):
    """cuDNN's default is TF32, 1e-3 of the range off; what the user has set is put back, and "high" is respected."""
    model, patches = spread_network(), test_patches(2)
    fast = APEForward(model, backend="torch")
    settings, seen = torch.backends.cudnn, []
    inner = oracle.conv2d
    monkeypatch.setattr(
        oracle, "conv2d", lambda *a, **k: (seen.append(settings.conv.fp32_precision), inner(*a, **k))[1]
    )
    allowed = settings.allow_tf32
    try:
        for before in (True, False):
            settings.allow_tf32 = before
            seen.clear()
            fast.forward_patches(patches)
            assert seen
            assert "tf32" not in seen
            assert settings.allow_tf32 == before
        settings.allow_tf32 = True
        for allow in ALLOW_TF32:
            allow()
            seen.clear()
            fast.forward_patches(patches)
            assert set(seen) == {"tf32"}
            torch.set_float32_matmul_precision("highest")
    finally:
        settings.allow_tf32 = allowed


@pytest.mark.parametrize("allow", [lambda: None, *ALLOW_TF32], ids=["as it comes", "high", "newer switch"])
def test_a_network_is_recognised_in_float32_and_not_in_tf32(monkeypatch, allow):
    """On a GPU Real-ESRGAN's own forward in TF32, which is PyTorch's default, is off by 5e-3 and was refused."""
    model, settings, seen = spread_network(), torch.backends.cudnn, []
    program, inner = to_program(model), torch.nn.Conv2d.forward
    monkeypatch.setattr(
        torch.nn.Conv2d, "forward", lambda *a: (seen.append(settings.conv.fp32_precision), inner(*a))[1]
    )
    allowed = settings.allow_tf32
    try:
        settings.allow_tf32 = True
        allow()
        check_program(model, program)
        assert seen
        assert "tf32" not in seen
        assert settings.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
        settings.allow_tf32 = allowed


def test_from_run_to_run(backend):
    fast, patches = APEForward(spread_network(), 0.5, backend=backend), test_patches(9)
    first, second = fast.forward_patches(patches), fast.forward_patches(patches)
    assert bitwise(first, second)


def test_two_threads_calling_one_module(backend):
    model = spread_network()
    patches = test_patches(6)
    expected = APEForward(model, 0.5, backend=backend).forward_patches(patches)
    fast = APEForward(model, 0.5, backend=backend)  # both threads find the weights unpacked
    failures = []

    def call() -> None:
        for _ in range(5):
            got = fast.forward_patches(patches)
            if not all(torch.allclose(a.float(), b.float(), atol=1e-6) for a, b in zip(got, expected, strict=True)):
                failures.append(got)

    workers = [threading.Thread(target=call) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_within_a_hundredth_db(dtype):
    """Against a high-resolution picture of which the fp32 result is 30 dB away."""
    model = spread_network(res_scale=0.1)
    patches = test_patches(8)
    exact = APEForward(model, backend="torch").forward_patches(patches)[0]
    half = APEForward(model, backend="torch", dtype=dtype).forward_patches(patches)[0]
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    truth = exact + noise * 10 ** (-30 / 20)
    psnr = lambda sr: -10 * math.log10((sr - truth).square().mean())  # noqa: E731
    assert not torch.equal(half, exact)
    assert psnr(half) > psnr(exact) - 0.01


def test_a_cpu_does_not_wait_for_triton():
    """Importing its kernels takes 0.1 s."""
    script = (
        "import sys; from ape_kernels import APEForward; from ape_sr.models import EDSR; "
        "fast = APEForward(EDSR(2, 1, 4, None).eval()); assert fast.packed_for_images.backend == fast.packed.backend; "
        "assert 'ape_kernels.backends.triton' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "APE_BACKEND"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
