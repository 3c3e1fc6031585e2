"""Networks, patches and comparisons shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from ape_sr.models import EDSR

DEVICE = torch.device(os.environ.get("APE_TEST_DEVICE", "cpu"))
ISAS = ("amx", "avx512bf16", "avx512", "avx2", "portable")  # of the cpu backend


def spread_network(
    scale: int = 4, blocks: int = 4, feats: int = 16, exit_interval: int | None = 1, *, seed: int = 0, **options: float
) -> EDSR:
    """An untrained EDSR in evaluation mode whose predictions differ from patch to patch and exit to exit."""
    torch.manual_seed(seed)
    model = EDSR(scale, blocks, feats, exit_interval, **options).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith("body") and name.endswith("weight"):
            parameter.mul_(2)  # blocks that matter: otherwise every exit shows the same picture
        if name.startswith("tail") and name.endswith("bias"):
            parameter.uniform_(-0.3, 0.3)  # so that zero padding inside the tail shows
    if exit_interval is not None:
        # least squares to scores that grow with contrast and depth, so that every exit is taken at a threshold of 0.5
        patches = test_patches(64, seed=2).cpu() * model.rgb_range
        contrast = patches.amax(dim=(1, 2, 3)) / model.rgb_range
        pooled = torch.stack([f.mean(dim=(2, 3)) for f in model.exit_features(patches)[1]])
        exits = len(pooled)
        wanted = 1.6 * contrast - 0.6 + 1.2 * torch.arange(exits)[:, None] / exits
        rows = torch.nn.functional.pad(pooled.flatten(0, 1), (0, 1), value=1.0).double()
        solution = torch.linalg.lstsq(rows, wanted.flatten()[:, None].double()).solution[:, 0].float()
        model.regressor[2].weight.copy_(solution[None, :-1])
        model.regressor[2].bias.copy_(solution[-1:])
    return model.to(DEVICE)


def test_patches(count: int, height: int = 12, width: int = 12, seed: int = 1) -> Tensor:
    """Random patches of differing contrast, so that they leave at different exits."""
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.rand(count, 3, 1, 1, generator=generator)
    return (torch.rand(count, 3, height, width, generator=generator) * contrast).to(DEVICE)


test_patches.__test__ = False  # type: ignore[attr-defined]


def bitwise(got: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether all tensors are equal bit by bit, NaN equal to NaN."""
    return all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(got, expected, strict=True))


def assert_pictures_close(sr: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance` of the value range (at least 1)."""
    assert sr.shape == expected.shape
    if not sr.numel():
        return
    expected = expected.detach()
    value_range = max(1.0, float(expected.max() - expected.min()))
    error = (sr - expected).abs()
    assert torch.isfinite(sr).all()
    assert error.max() <= tolerance * value_range, (
        f"{int((error > tolerance * value_range).sum())} pixels off, worst {error.max():.2e}"
    )


def assert_exits_agree(exit_index: Tensor, predictions: list[Tensor], boundary: float, band: float = 1e-4) -> int:
    """`exit_index` follows from `predictions` (``[N]`` per exit), except where one lies within `band` of the boundary.

    Returns how many patches were decided inside the band.
    """
    flips = 0
    for patch, got in enumerate(exit_index.tolist()):
        values = [float(p[patch]) for p in predictions]
        expected = next((i for i, v in enumerate(values) if v >= boundary), len(values) - 1)
        if got == expected:
            continue
        first = min(got, expected)
        assert abs(values[first] - boundary) <= band, (
            f"patch {patch}: left at {got}, predictions {values}, boundary {boundary}"
        )
        flips += 1
    return flips


@contextmanager
def torchvision_or_stand_in() -> Generator[None]:
    """Where torchvision is missing, or not built for this torch: the three names that spandrel imports of it, empty.

    They are for LaMa and RestoreFormer, which are not built here; whatever called one would fail.
    """
    parts = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    try:
        import torchvision.transforms.functional  # noqa: F401
    except (ImportError, RuntimeError):
        sys.modules.update({name: ModuleType(name) for name in parts})
        sys.modules[parts[-1]].__dict__.update(InterpolationMode=None, normalize=None, rotate=None)
        yield
        for name in parts:
            del sys.modules[name]
    else:
        yield
