"""bfloat16 on the cpu backend: exact where nothing is rounded, close where it is, on every instruction set."""

import math

import pytest
import torch
from support import ISAS, spread_network, test_patches

from ape_kernels import APEForward
from ape_kernels.backends import cpu, get_backend
from ape_kernels.collapse import CollapsedTail
from ape_kernels.native import core
from ape_kernels.program import (
    Activation,
    Buffer,
    ChannelAttention,
    Conv,
    Exit,
    Interpolation,
    PatchProgram,
    Reconstruct,
    Stage,
    Upsample,
)
from ape_sr.models import EDSR


@pytest.fixture
def isa(isa, monkeypatch):
    """The instruction set, with bf16 convolutions even where they are not the fastest."""
    monkeypatch.setattr(cpu, "FAST_BF16", ISAS)
    return isa


def sparse_integers(out_channels: int, in_channels: int, kernel: int, seed: int) -> torch.Tensor:
    """A weight of 1 and one of -1 for each output channel, so that small integers stay small."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(out_channels, in_channels * kernel * kernel)
    at = torch.rand(weight.shape, generator=generator).topk(2, dim=1).indices
    weight.scatter_(1, at, torch.tensor([1.0, -1.0]).expand(out_channels, 2))
    return weight.view(out_channels, in_channels, kernel, kernel)


def integer_program(kernel: int, classes: int) -> PatchProgram:
    """All a bf16 convolution does: several sources of odd widths, activations, skips, scale, resolutions."""
    tail = torch.stack([sparse_integers(3 * 4, 40, 5, 20 + i) for i in range(classes**2)])
    tail = CollapsedTail(
        tail.view(classes, classes, 12, 40, 5, 5), torch.arange(12.0 * classes**2).view(classes, classes, 12) % 5
    )
    dense = sparse_integers(40, 17 + 35, kernel, 3)
    twice = Buffer(40, 2)
    return PatchProgram(
        buffers=(Buffer(3), Buffer(17), Buffer(35), Buffer(40), Buffer(40), twice, twice),
        head=(
            Conv(0, 1, sparse_integers(17, 3, 3, 1), torch.ones(17)),
            Conv(1, 2, sparse_integers(35, 17, kernel, 2), activation=Activation.RELU),
            Conv((1, 2), 3, dense, activation=Activation.PRELU, slope=torch.full((40,), 2.0)),
        ),
        stages=(
            Stage(
                3,
                3,
                (
                    Conv(3, 4, sparse_integers(40, 40, 1, 4), torch.full((40,), -3.0), add=3),
                    Conv(4, 3, sparse_integers(40, 40, kernel, 5), scale=0.5, add=3),
                ),
            ),
        ),
        tail=(
            Upsample(3, 5, Interpolation.NEAREST),
            Conv(5, 6, sparse_integers(40, 40, 3, 6), scale=0.03125),
            Reconstruct(6, tail, 2),
        ),
    )


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("classes", [1, 4], ids=["one-kernel", "border-classes"])
def test_integers_come_out_exactly(isa, kernel, classes):
    """The numbers are so small that bf16 holds them all: rounding changes nothing, a wrong layout everything."""
    program = integer_program(kernel, classes)
    torch_packed = get_backend("torch").pack(program, torch.device("cpu"), torch.float32)
    packed = get_backend("cpu").pack(program, torch.device("cpu"), torch.bfloat16)
    for height, width in ((9, 7), (1, 1), (2, 33), (21, 48), (1, 20)):
        patches = torch.randint(0, 4, (2, 3, height, width), generator=torch.Generator().manual_seed(9)).float()
        run = lambda packed, name, pixels=patches: torch.ops.ape_kernels.run_patches(  # noqa: E731
            pixels, packed, math.inf, None, program.upscale, program.out_channels, name
        )
        assert torch.equal(run(packed, "cpu")[0], run(torch_packed, "torch")[0])


@pytest.mark.parametrize("height", [140, 133], ids=["whole-bands", "a-rest"])
def test_maps_larger_than_the_cache_come_out_exactly(isa, height):
    """They go through several convolutions in bands of rows, each behind the one before by its kernel's reach."""
    chain = (
        Conv(1, 2, sparse_integers(64, 64, 3, 2), torch.ones(64), activation=Activation.RELU),
        Conv(2, 3, sparse_integers(64, 64, 5, 3), add=1),
        Conv(3, 2, sparse_integers(64, 64, 1, 4)),
        Conv(2, 1, sparse_integers(64, 64, 3, 5), add=1),
        Exit(1, torch.full((64,), 1 / 64), torch.zeros(1)),
    )
    program = PatchProgram(
        buffers=(Buffer(3), Buffer(64), Buffer(64), Buffer(64)),
        head=(Conv(0, 1, sparse_integers(64, 3, 3, 1)),),
        stages=(Stage(1, 1, chain),),
        tail=(Reconstruct(1, CollapsedTail(sparse_integers(3, 64, 3, 6)[None, None], torch.zeros(1, 1, 3)), 1),),
    )
    patches = torch.randint(0, 4, (1, 3, height, 120), generator=torch.Generator().manual_seed(9)).float()
    pictures = []
    for name, dtype in (("cpu", torch.bfloat16), ("torch", torch.float32)):
        packed = get_backend(name).pack(program, torch.device("cpu"), dtype)
        pictures.append(torch.ops.ape_kernels.run_patches(patches, packed, math.inf, None, 1, 3, name))
    assert torch.equal(pictures[0][0], pictures[1][0])
    torch.testing.assert_close(pictures[0][2], pictures[1][2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("feats", [16, 24, 64], ids=lambda c: f"{c}ch")
def test_close_to_float32(isa, feats):
    """Costs less than 0.01 dB of a picture that is 30 dB from the truth."""
    assert core().cpu_isa() == isa
    model = spread_network(2, 3, feats, 1)
    patches = test_patches(6, 19, 22)
    exact = APEForward(model, 0.5, backend="cpu").forward_patches(patches)
    half = APEForward(model, 0.5, backend="cpu", dtype=torch.bfloat16).forward_patches(patches, exact[1])
    error = (half[0] - exact[0]).square().mean()
    assert 0 < 10 * math.log10(1 + error / 10 ** (-30 / 10)) < 0.01
    torch.testing.assert_close(half[2], exact[2], atol=0.02, rtol=0)


def test_channel_attention_and_wide_networks(isa):
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape, scale=1.0: torch.randn(shape, generator=generator) * scale  # noqa: E731
    tail = CollapsedTail(normal(1, 1, 48, 80, 5, 5, scale=0.02), normal(1, 1, 48))
    program = PatchProgram(
        buffers=(Buffer(3), Buffer(80), Buffer(80)),
        head=(Conv(0, 1, normal(80, 3, 3, 3, scale=0.3)),),
        stages=(
            Stage(
                1,
                1,
                (
                    Conv(1, 2, normal(80, 80, 3, 3, scale=0.04), normal(80), activation=Activation.RELU),
                    ChannelAttention(2, 1, normal(5, 80), normal(5), normal(80, 5), normal(80), scale=0.5, add=1),
                ),
            ),
        ),
        tail=(Reconstruct(1, tail, 4),),
    )
    patches = test_patches(3, 13, 18)
    pictures = []
    for dtype in (torch.float32, torch.bfloat16):
        packed = get_backend("cpu").pack(program, torch.device("cpu"), dtype)
        assert packed.weights.dtype == torch.float32
        pictures.append(torch.ops.ape_kernels.run_patches(patches, packed, math.inf, None, 4, 3, "cpu")[0])
    error = (pictures[1] - pictures[0]).square().mean().sqrt() / pictures[0].std()
    assert 1e-6 < error < 5e-3


def test_a_patch_depends_on_itself_alone(isa):
    model = spread_network(2, 3, 24, 1)
    fast, patches = APEForward(model, 0.5, backend="cpu", dtype=torch.bfloat16), test_patches(7)
    together = fast.forward_patches(patches)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = fast.forward_patches(patches)
    finally:
        torch.set_num_threads(threads)
    for i in range(7):
        alone = fast.forward_patches(patches[i : i + 1])
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))


def test_run_stage_chained_equals_run_patches(isa):
    """Features handed from stage to stage are floats, whatever the convolutions read."""
    model = spread_network(2, 2, 24, 1)
    fast = APEForward(model, 0.0, backend="cpu", dtype=torch.bfloat16)
    packed, patches = fast.packed, test_patches(3)
    head = model.head(model.sub_mean(patches))
    out, ids, *_ = torch.ops.ape_kernels.run_stage(head, torch.arange(3), packed.tensors, 0, math.inf, None, "cpu")
    expected = (head + model.body[0].body(head))[ids]
    assert (out - expected).abs().max() < 0.02 * expected.abs().max()
    assert not torch.equal(out, expected)


def test_few_channels_stay_float32(isa):
    """Pixels enter exactly: at rgb_range 255 bf16 would round them by up to half a level."""
    model = EDSR(2, 1, 16, 1, rgb_range=255.0).eval().requires_grad_(False)
    rows = APEForward(model, backend="cpu", dtype=torch.bfloat16).packed.table
    convs = rows[rows[:, 0] == 3]
    assert [int(mode) >> 1 for mode in convs[:, 14]] == [0, 0, 2, 2, 2]


def test_an_instruction_set_that_gains_nothing_computes_in_float32(monkeypatch):
    monkeypatch.setenv("APE_CPU_ISA", "portable")
    model, patches = spread_network(), test_patches(2)
    half = APEForward(model, backend="cpu", dtype=torch.bfloat16).forward_patches(patches)[0]
    assert torch.equal(half, APEForward(model, backend="cpu").forward_patches(patches)[0])


def test_what_was_packed_for_one_instruction_set_runs_on_all(monkeypatch):
    monkeypatch.setattr(cpu, "FAST_BF16", ISAS)
    fast, pictures = APEForward(spread_network(), backend="cpu", dtype=torch.bfloat16), []
    for isa in core().cpu_isas():
        monkeypatch.setenv("APE_CPU_ISA", isa)
        pictures.append(fast.forward_patches(test_patches(2))[0])
    assert all((picture - pictures[0]).abs().max() < 0.02 for picture in pictures)
