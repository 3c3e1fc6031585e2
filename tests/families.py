"""Checks for every network family: its program equals its own forward at every exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from support import assert_exits_agree, assert_pictures_close, test_patches
from torch import Tensor, nn

from ape_kernels import APEForward, NotRecognised
from ape_kernels.policy import exit_boundary


def randomise(model: nn.Module, gain: float = 1.0, seed: int = 0) -> nn.Module:
    """`model` in evaluation mode, all weights and vectors drawn anew: gaussian, `gain` over the root of the fan-in."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.eval().requires_grad_(False).parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)
    return model


def spread_regressor(model: nn.Module, features: Sequence[Tensor], patches: Tensor) -> None:
    """Fit `model.regressor` so that predictions grow with contrast and depth: every exit is taken by some patch.

    features: ``[N, C, h, w]`` at each exit, of `patches`.
    """
    contrast = patches.amax(dim=(1, 2, 3)) / patches.max()
    pooled = torch.stack([f.mean(dim=(2, 3)) for f in features])
    depth = torch.arange(len(pooled), device=patches.device)[:, None] / len(pooled)
    rows = torch.nn.functional.pad(pooled.flatten(0, 1), (0, 1), value=1.0).double()
    wanted = (1.6 * contrast - 0.6 + 1.2 * depth).flatten()[:, None].double()
    solution = torch.linalg.lstsq(rows, wanted).solution[:, 0].float()
    model.regressor[2].weight.copy_(solution[None, :-1])
    model.regressor[2].bias.copy_(solution[-1:])


def assert_equals_its_forward(
    model: nn.Module,
    at_exits: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]],
    backend: str,
    sizes: Sequence[tuple[int, int]],
    value_range: float = 1.0,
) -> None:
    """Full depth, every exit forced, and exits as predicted, on patches of all `sizes`.

    at_exits: pictures ``[N, 3, H, W]`` and predictions ``[N, 1]`` of all exits, literally.
    """
    fast = APEForward(model, 0.0, backend=backend)
    for height, width in sizes:
        patches = test_patches(5, height, width) * value_range
        pictures, predictions = at_exits(patches)
        assert_pictures_close(fast.forward_patches(patches)[0], pictures[-1])
        for i, (picture, prediction) in enumerate(zip(pictures, predictions, strict=True)):
            sr, exit_index, capacity = fast.forward_patches(patches, torch.full((5,), i, device=patches.device))
            assert (exit_index == i).all()
            assert_pictures_close(sr, picture)
            torch.testing.assert_close(capacity, 1 - prediction[:, 0], atol=1e-4, rtol=0)


def assert_leaves_as_predicted(
    model: nn.Module,
    at_exits: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]],
    backend: str,
    patches: Tensor,
) -> None:
    """Exits and pictures at several thresholds; all exits are taken somewhere."""
    pictures, predictions = at_exits(patches)
    fast, taken = APEForward(model, backend=backend), set()
    for fast.threshold in (0.2, 0.5, 0.8):
        sr, exit_index, _ = fast.forward_patches(patches)
        assert_exits_agree(exit_index, [p[:, 0] for p in predictions], exit_boundary(fast.threshold))
        expected = torch.stack(pictures)[exit_index, torch.arange(len(patches))]
        assert_pictures_close(sr, expected)
        taken |= set(exit_index.tolist())
    assert taken == set(range(len(pictures)))


def assert_refused(model: nn.Module, change: Callable[[nn.Module], object], message: str) -> None:
    """After `change` no adapter takes the model, and the error says why."""
    change(model)
    with pytest.raises(NotRecognised, match=message):
        APEForward(model)


def edit(path: str, replacement: object) -> Callable[[nn.Module], None]:
    """A change: the module or attribute at `path` replaced."""

    def apply(model: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        target = model.get_submodule(owner) if owner else model
        if name.isdigit():
            target[int(name)] = replacement
        else:
            setattr(target, name, replacement)

    return apply


def remove(path: str) -> Callable[[nn.Module], None]:
    """A change: the module or attribute at `path` gone."""
    owner, _, name = path.rpartition(".")
    return lambda model: delattr(model.get_submodule(owner) if owner else model, name)
