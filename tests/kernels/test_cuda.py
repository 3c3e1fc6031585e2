"""The cuda backend against the torch oracle.

Without a GPU its kernel is executed on the CPU (csrc/cuda/exec.h). With APE_TEST_DEVICE=cuda the same cases go through
the real launcher.
"""

import math
from dataclasses import replace

import pytest
import torch
from cuda_host import HostLauncher, build
from families import randomise
from programs import mixed_program, random
from support import DEVICE, assert_exits_agree, assert_pictures_close, spread_network, test_patches
from table_faults import FAULTS, malformed
from test_compact import Compact

from ape_kernels import APEForward, to_program
from ape_kernels.backends import BackendUnavailable, cuda, get_backend
from ape_kernels.backends.cuda import launch
from ape_kernels.backends.protocol import Exits, PatchResults
from ape_kernels.collapse import CollapsedTail
from ape_kernels.policy import exit_boundary
from ape_kernels.program import Activation, Buffer, Conv, Module, PatchProgram, Reconstruct, Stage
from ape_kernels.table import Column, Opcode
from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet

OPS = torch.ops.ape_kernels
DTYPES = [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}  # of the value range, one pixel's worst
BAND = {torch.float32: 1e-5, torch.float16: 1e-2}  # of a prediction
SIZES = [(1, 1), (3, 29), (20, 17)]
FAMILIES = {
    "edsr": lambda: spread_network(4, 4, 16, 1),
    "edsr-24ch-x3": lambda: spread_network(3, 4, 24, 2),
    "edsr-7ch-range-255": lambda: spread_network(2, 2, 7, 1, res_scale=0.3, rgb_range=255.0),
    "edsr-32ch": lambda: spread_network(2, 2, 32, 1, res_scale=0.3),
    "edsr-48ch": lambda: spread_network(2, 2, 48, 1, res_scale=0.3),
    "edsr-60ch": lambda: spread_network(2, 2, 60, 2),
    "edsr-96ch": lambda: randomise(EDSR(2, 2, 96, 1)),
    "rcan": lambda: randomise(RCAN(2, 2, 2, 20, 5, exit_interval=1)),
    "rcan-32ch": lambda: randomise(RCAN(2, 2, 2, 32, 5, exit_interval=1)),
    "vdsr": lambda: randomise(VDSR(2, n_resblocks=6, exit_interval=2, n_feats=24), 1.4),
    "ecbsr-16ch": lambda: randomise(ECBSR(2, 4, 16, exit_interval=2), 0.5),
    "ecbsr": lambda: randomise(ECBSR(2, 4, 8, exit_interval=2), 0.7),
    "compact": lambda: Compact(3),
    "rrdb": lambda: randomise(RRDBNet(4, 2, 20, 8, exit_interval=1)),
}


ON_GPU = DEVICE.type == "cuda"
# channels, padded, that run in pairs where a block has this much shared memory, in KB
FUSED = {227: (16, 32, 48, 64, 96), 163: (16, 32, 48, 64, 96), 99: (16, 32, 64)}
PARTS = [None] if ON_GPU else list(FUSED)  # a GPU has what it has
PART_IDS = lambda kb: "this GPU" if kb is None else f"{kb}KB"  # noqa: E731


@pytest.fixture
def host(monkeypatch):
    """The backend as on a GPU, its kernel on the CPU; None on a GPU."""
    if ON_GPU:
        if reason := cuda.unavailable():
            pytest.fail(f"cuda: {reason}")
        return None
    return install(monkeypatch, HostLauncher(build()))


def network(family: str) -> torch.nn.Module:
    return FAMILIES[family]().to(DEVICE)


def on_device(*values: int) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


def install(monkeypatch, launcher: HostLauncher) -> HostLauncher:
    monkeypatch.setattr(launch, "launcher", lambda: launcher)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    return launcher


PAIRS = {"edsr": 4, "edsr-24ch-x3": 4, "edsr-32ch": 2, "edsr-60ch": 2, "rcan": 4, "vdsr": 2, "compact": 1}


@pytest.mark.parametrize("family", PAIRS)
def test_pairs_of_convolutions_are_found(family):
    """Also where there are too few channels for the fused pass: the kernel decides that."""
    table = cuda.pack(to_program(network(family)), DEVICE, torch.float16).table
    assert table[:, Column.FUSED].sum() == PAIRS[family]
    assert (table[table[:, Column.FUSED] == 1][:, Column.OPCODE] == Opcode.CONV).all()


def test_a_result_that_is_read_again_is_not_fused_away():
    program = to_program(spread_network(2, 2, 32, 1))
    hidden = program.stages[0].steps[0].dst
    tail = (Conv(hidden, 1, torch.zeros(3, 32, 1, 1, device=DEVICE)), *program.tail)
    for changed, pairs in ((program, 2), (replace(program, tail=tail), 0)):
        assert cuda.pack(changed, DEVICE, torch.float16).table[:, Column.FUSED].sum() == pairs


def schedule(model, count: int) -> torch.Tensor:
    return torch.arange(count, device=DEVICE) % len(to_program(model).stages)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_forced_exits_on_odd_sizes(host, family, dtype):
    model = network(family)
    fast, oracle = (APEForward(model, backend=name, dtype=d) for name, d in (("cuda", dtype), ("torch", torch.float32)))
    for size in SIZES:
        patches = test_patches(4, *size) * getattr(model, "rgb_range", 1.0)
        exit_at = schedule(model, 4)
        sr, exit_index, capacity = fast.forward_patches(patches, exit_at)
        expected, _, expected_capacity = oracle.forward_patches(patches, exit_at)
        assert_pictures_close(sr, expected, TOLERANCE[dtype])
        assert torch.equal(exit_index, exit_at)
        torch.testing.assert_close(capacity, expected_capacity, atol=BAND[dtype], rtol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_leaves_as_predicted(host, threshold, dtype):
    model, patches = spread_network(), test_patches(24)
    oracle = APEForward(model, backend="torch")
    every = [oracle.forward_patches(patches, torch.full((24,), i, device=DEVICE)) for i in range(4)]
    sr, exit_index, _ = APEForward(model, threshold, backend="cuda", dtype=dtype).forward_patches(patches)
    predictions = [1 - capacity for _, _, capacity in every]
    assert_exits_agree(exit_index, predictions, exit_boundary(threshold), BAND[dtype])
    expected = torch.stack([sr for sr, _, _ in every])[exit_index, torch.arange(24, device=DEVICE)]
    assert_pictures_close(sr, expected, TOLERANCE[dtype])
    assert len(set(exit_index.tolist())) >= 3


@pytest.mark.parametrize("count", [0, 1, 2, 129], ids=lambda n: f"{n}patches")
def test_counts(host, count):
    model, patches = spread_network(2, 2, 7, 1), test_patches(count, 3, 2)
    got = APEForward(model, 0.5, backend="cuda").forward_patches(patches)
    expected = APEForward(model, 0.5, backend="torch").forward_patches(patches)
    assert_pictures_close(got[0], expected[0])
    torch.testing.assert_close(got[2], expected[2], atol=1e-4, rtol=0)
    assert torch.equal(got[1], expected[1])
    assert (got[1].dtype, got[2].dtype) == (torch.int64, torch.float32)


@pytest.mark.skipif(ON_GPU, reason="chooses the order of warps on the CPU; test_gpu.py asks the same of a GPU")
def test_a_result_depends_on_the_patch_alone(host):
    """Not on the number of thread blocks, nor on the order in which warps and blocks run, nor on company."""
    fast, patches = APEForward(spread_network(), 0.5, backend="cuda", dtype=torch.float16), test_patches(7, 9, 18)
    expected = fast.forward_patches(patches)
    assert len(set(expected[1].tolist())) > 1
    for host.blocks, host.seed, host.chance in ((1, 0, 0), (7, 1, 0), (2, 2, 300), (5, 3, 40)):
        got = fast.forward_patches(patches)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    alone = fast.forward_patches(patches[3:4])
    assert all(torch.equal(a, b[3:4]) for a, b in zip(alone, expected, strict=True))


@pytest.mark.parametrize("channels", [16, 24, 48, 50, 60, 96, 112])
@pytest.mark.parametrize("shared_kb", PARTS, ids=PART_IDS)
def test_whole_numbers_come_out_exactly(host, channels, shared_kb):
    """Weights of 0 and +-1 on small whole numbers: every sum is a float16, so both paths give the oracle's bits."""
    if host:
        host.shared_kb = shared_kb
    model = EDSR(2, 1, channels, 1)
    generator = torch.Generator().manual_seed(channels)
    for parameter in model.eval().requires_grad_(False).parameters():
        signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1
        keep = torch.rand(parameter.shape, generator=generator) < 12 / max(12, math.prod(parameter.shape[1:]))
        parameter.copy_(signs * keep)
    program = to_program(model.to(DEVICE))
    fast = cuda.pack(program, DEVICE, torch.float16)
    oracle = get_backend("torch").pack(program, DEVICE, torch.float32)
    features = torch.randint(-4, 5, (2, channels, 10, 11), generator=generator).float().to(DEVICE)
    ids, exit_at = on_device(0, 1), on_device(0, 0)
    results = [
        OPS.run_stage(features, ids, packed, 0, math.inf, exit_at, name)
        for name, packed in (("cuda", fast), ("torch", oracle))
    ]
    assert results[1][0].abs().max() < 2048
    assert torch.equal(results[0][0], results[1][0])
    if host:
        assert any("pair.h" in site for site in host.sites) == (channels + -channels % 16 in FUSED[shared_kb])


def whole_numbers(channels: int, scale: int) -> PatchProgram:
    """A head, a convolution that scales and adds, and a 5x5 tail with its border classes, of small whole numbers."""
    generator = torch.Generator().manual_seed(channels + scale)

    def sparse(*shape: int, taps: int) -> torch.Tensor:
        signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
        return (signs * (torch.rand(shape, generator=generator) < taps / math.prod(shape[-3:]))).to(DEVICE)

    phases = 3 * scale**2
    tail = CollapsedTail(
        sparse(4, 4, phases, channels, 5, 5, taps=40), torch.randint(-4, 5, (4, 4, phases)).float().to(DEVICE)
    )
    body = Conv(1, 2, sparse(channels, channels, 3, 3, taps=12), None, Activation.RELU, scale=2.0, add=1)
    return PatchProgram(
        buffers=(Buffer(3), Buffer(channels), Buffer(channels)),
        head=(Conv(0, 1, sparse(channels, 3, 3, 3, taps=6), torch.ones(channels, device=DEVICE)),),
        stages=(Stage(1, 2, (body,)),),
        tail=(Reconstruct(2, tail, scale),),
    )


# channels, padded, whose convolutions run by whole rows from end to end where a block has this much shared memory
STREAMED = {227: (16, 32, 48, 64), 163: (16, 32, 48, 64), 99: (16, 32)}


@pytest.mark.parametrize("channels", [16, 24, 48, 64, 80])
@pytest.mark.parametrize("shared_kb", PARTS, ids=PART_IDS)
def test_rows_that_stream_come_out_exactly(host, channels, shared_kb):
    """Single convolutions and the tail, its border included: the oracle's bits at every scale and odd size."""
    if host:
        host.shared_kb = shared_kb
    for scale, sizes in ((4, ((1, 1), (2, 48), (9, 47), (17, 5), (3, 49))), (3, ((9, 10),)), (2, ((8, 33),))):
        program = whole_numbers(channels, scale)
        for height, width in sizes:
            patches = (test_patches(2, height, width) * 5 - 2).round()
            results = []
            for name, dtype in (("cuda", torch.float16), ("torch", torch.float32)):
                backend, out = get_backend(name), PatchResults.empty(patches, scale, 3)
                backend.run_patches(backend.pack(program, DEVICE, dtype), patches, Exits(math.inf), out)
                results.append(out.sr)
            got, expected = results
            whole = expected.round()  # PyTorch's convolutions on a GPU may transform, and then round
            assert whole.abs().max() > 4 and (whole - expected).abs().max() < 1e-2
            assert torch.equal(got, whole)
            if host:
                streams = width <= 48 and channels + -channels % 16 in STREAMED[shared_kb]
                assert any("conv.h" in site for site in host.sites) != streams
                host.sites.clear()


@pytest.mark.parametrize("channels", [*range(16, 257, 16), 1, 24, 50, 60, 100, 255])
def test_any_number_of_channels(host, channels):
    """One residual block, exit, closing convolution and 5x5 tail with its border."""
    model, patches = randomise(EDSR(2, 1, channels, 1)).to(DEVICE), test_patches(1, 3, 4)
    expected = APEForward(model, backend="torch").forward_patches(patches)
    for dtype in DTYPES if channels % 64 == 0 or channels % 16 else DTYPES[1:]:
        sr, _, capacity = APEForward(model, backend="cuda", dtype=dtype).forward_patches(patches)
        assert_pictures_close(sr, expected[0], TOLERANCE[dtype])
        torch.testing.assert_close(capacity, expected[2], atol=BAND[dtype], rtol=0)


@pytest.mark.parametrize("shared_kb", PARTS, ids=PART_IDS)
@pytest.mark.parametrize("family", ["ecbsr-16ch", "edsr-32ch", "edsr-48ch", "edsr-60ch", "rcan-32ch", "edsr-96ch"])
def test_fused_pairs(host, family, shared_kb):
    """Rows by eights and a rest; on devices with little shared memory and with more."""
    model = network(family)
    if host:
        host.shared_kb = shared_kb
    fast, oracle = (APEForward(model, backend=n, dtype=d) for n, d in (("cuda", torch.float16), ("torch", None)))
    for height, width in ((1, 1), (8, 5), (15, 17), (17, 48), (4, 49)):
        patches, exit_at = test_patches(3, height, width), schedule(model, 3)
        sr, _, capacity = fast.forward_patches(patches, exit_at)
        expected, _, expected_capacity = oracle.forward_patches(patches, exit_at)
        assert_pictures_close(sr, expected, TOLERANCE[torch.float16])
        torch.testing.assert_close(capacity, expected_capacity, atol=BAND[torch.float16], rtol=0)
        if host:
            fuses = width <= 48 and not (shared_kb == 99 and family in ("edsr-48ch", "edsr-96ch"))
            assert any("pair.h" in site for site in host.sites) == fuses
            host.sites.clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_48x48_64_channels(host, dtype):
    """The case the kernel is made for."""
    model = randomise(EDSR(4, 2, 64, 1)).to(DEVICE)
    patches = test_patches(2, 48, 48)[: 2 if dtype == torch.float16 else 1]
    exit_at = on_device(1, 0)[: len(patches)]
    sr, _, capacity = APEForward(model, backend="cuda", dtype=dtype).forward_patches(patches, exit_at)
    expected, _, expected_capacity = APEForward(model, backend="torch").forward_patches(patches, exit_at)
    assert_pictures_close(sr, expected, TOLERANCE[dtype])
    torch.testing.assert_close(capacity, expected_capacity, atol=BAND[dtype], rtol=0)


def test_half_precision_stays_within_a_hundredth_db(host):
    """Against a high-resolution picture of which the fp32 result is 30 dB away."""
    model, patches = spread_network(res_scale=0.1), test_patches(8)
    exact = APEForward(model, backend="torch").forward_patches(patches)[0]
    half = APEForward(model, backend="cuda", dtype=torch.float16).forward_patches(patches)[0]
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    truth = exact + noise * 10 ** (-30 / 20)
    psnr = lambda sr: -10 * math.log10((sr - truth).square().mean())  # noqa: E731
    assert not torch.equal(half, exact)
    assert psnr(half) > psnr(exact) - 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (2, 2), (19, 33)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_step(host, dtype, size):
    program, patches = mixed_program(), test_patches(2, *size)
    results = []
    for name, d in (("cuda", dtype), ("torch", torch.float32)):
        backend = get_backend(name)
        packed = backend.pack(program, DEVICE, d)
        out = PatchResults.empty(patches, 2, 3)
        backend.run_patches(packed, patches, Exits(0.5), out)
        results.append(out)
    (sr, _, capacity), (expected, _, expected_capacity) = results
    assert_pictures_close(sr, expected, TOLERANCE[dtype])
    torch.testing.assert_close(capacity, expected_capacity, atol=BAND[dtype], rtol=0)


def test_run_stage_chained_equals_run_patches(host):
    model, patches = spread_network(), test_patches(10)
    fast = APEForward(model, 0.5, backend="cuda")
    expected, expected_index, expected_capacity = fast.forward_patches(patches)
    packed = fast.packed
    features, ids = model.head(model.sub_mean(patches)), torch.arange(10, device=DEVICE)
    skip, done, exit_index = features, torch.empty_like(features), torch.full((10,), -1, device=DEVICE)
    capacity = torch.empty(10, device=DEVICE)
    for stage in range(4):
        active = torch.arange(len(ids), device=DEVICE)
        features, order, predicted, n_left = OPS.run_stage(
            features, active, packed.tensors, stage, exit_boundary(0.5), None, "cuda"
        )
        ids, left = ids[order], int(n_left)
        assert torch.equal(order[:left], order[:left].sort().values), "patches that leave keep their order"
        assert torch.equal(order[left:], order[left:].sort(descending=True).values), "those that stay are reversed"
        done[ids[:left]], exit_index[ids[:left]], capacity[ids[:left]] = features[:left], stage, predicted[:left]
        features, ids = features[left:], ids[left:]
    assert torch.equal(exit_index, expected_index)
    torch.testing.assert_close(capacity, expected_capacity, atol=1e-4, rtol=0)
    assert_pictures_close(model.reconstruct(skip + model.body[-1](done)), expected)


@pytest.mark.parametrize("family", ["edsr", "vdsr"])
def test_run_stage_takes_rows_in_any_order(host, family):
    """VDSR's stages run at twice the patch's resolution."""
    model = network(family)
    stage = 0
    packed = {name: APEForward(model, backend=name).packed for name in ("cuda", "torch")}
    program = to_program(model)
    channels, last = program.buffers[program.stages[stage].src].channels, len(program.stages) - 1
    features, active, exit_at = (
        random(6, channels, 10, 8) * 20,
        on_device(4, 1, 5),
        on_device(last, last, 0, 0, last, 0),
    )
    results = [
        OPS.run_stage(features, active, packed[name].tensors, stage, math.inf, exit_at, name)
        for name in ("cuda", "torch")
    ]
    assert results[0][1].tolist() == [5, 1, 4]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got.float(), expected.float(), atol=2e-4, rtol=1e-4)


def test_rows_outside_the_features_come_back_as_nan(host):
    """They cannot be refused without waiting for the device; on a CPU the operation refuses them."""
    packed = APEForward(spread_network(), backend="cuda").packed
    given = torch.rand(2, 16, 4, 4, device=DEVICE), on_device(1, 2, -1)
    features, ids, capacity, _ = get_backend("cuda").run_stage(packed.tensors, 0, *given, Exits(math.inf))
    assert ids.tolist() == [-1, 2, 1], "all stay, in reverse order"
    assert features[2].isfinite().all()
    assert features[:2].isnan().all()
    assert capacity.isnan().tolist() == [True, True, False]


CUDA_FAULTS = {
    **FAULTS,
    "overlapping-buffers": (Opcode.BUFFER, Column.ARENA_OFFSET, 16, "a buffer lies after the one before"),
}


@pytest.mark.parametrize("fault", CUDA_FAULTS)
def test_malformed_tables_are_refused(host, fault):
    packed = cuda.pack(mixed_program(), DEVICE, torch.float16)
    table, message = malformed(packed.table, *CUDA_FAULTS[fault])
    with pytest.raises(ValueError, match=message):
        OPS.run_patches(test_patches(1), [table, packed.weights], 0.5, None, 2, 3, "cuda")


SIZES_REFUSED = {
    "count": ({"count": 2**31}, r"count: expected 0 to \d+, got 2147483648"),
    "blocks": ({"blocks": 2**31 - 1}, r"blocks: expected 0 to \d+, got 2147483647"),
    "no-pixels": ({"height": 0}, r"height: expected 1 to \d+, got 0"),
    "cells": ({"height": 40000, "width": 40000}, r"height \* width: expected 1 to \d+, got 1600000000"),
    "groups": ({"height": 20000, "width": 20000}, r"height \* width: expected 1 to \d+, got 400000000"),
    "weights": ({"weights": 8}, r"weights: expected memory aligned to 16 bytes"),
    "scratch": ({"scratch": 8}, r"scratch: expected memory aligned to 16 bytes"),
}


@pytest.mark.parametrize("case", SIZES_REFUSED)
def test_what_cannot_be_counted_or_addressed_is_refused(host, case):
    """Before anything runs: the pointers lead nowhere."""
    changed, message = SIZES_REFUSED[case]
    packed = APEForward(spread_network(2), backend="cuda", dtype=torch.float16).packed
    none = dict.fromkeys(("input", "active", "exit_at", "output", "exit_index", "capacity", "leaves", "queue"), 0)
    sizes = {"count": 1, "blocks": 1, "height": 8, "width": 8, "weights": 0, "scratch": 0, **changed}
    with pytest.raises(ValueError, match=message):
        launch.launcher().cuda_run_worker(
            table=packed.table.data_ptr(), table_rows=len(packed.table), weight_count=len(packed.weights), element=1,
            stage=launch.WHOLE, input_rows=1, boundary=0.5, stream=0, **none, **sizes,
        )  # fmt: skip


def test_unknown_stage_is_named(host):
    packed, features = (
        APEForward(spread_network(), backend="cuda").packed,
        torch.rand(1, 16, 4, 4).to(DEVICE),
    )
    with pytest.raises(ValueError, match="stage: expected 0 to 3, got 4"):
        OPS.run_stage(features, on_device(0), packed.tensors, 4, 0.5, None, "cuda")


def test_what_cannot_run_is_said(host):
    with pytest.raises(BackendUnavailable, match=r"cuda cannot run: .*float32.*float16, not torch.bfloat16"):
        APEForward(spread_network(), backend="cuda", dtype=torch.bfloat16).forward_patches(test_patches(1))
    module = PatchProgram((Buffer(3),), (Module(0, 0, torch.nn.Tanh()),), (), ())
    assert cuda.supports(module, DEVICE, torch.float32) == "has no kernels for Tanh"
    assert cuda.supports(module, torch.device("meta"), torch.float32) == "runs on CUDA devices, not on meta"


def test_changed_weights_are_packed_anew(host):
    model, patches = spread_network(), test_patches(2)
    fast = APEForward(model, backend="cuda")
    before = fast.forward_patches(patches)[0]
    model.body[0].body[0].weight.mul_(0.5)
    after = fast.forward_patches(patches)[0]
    assert not torch.equal(before, after)
    assert_pictures_close(after, model(patches))
