"""Exits for networks that were published without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ape_kernels.adapters import NotRecognised, to_program
from ape_kernels.backends import get_backend
from ape_kernels.backends.torch.interpreter import run_all_exits
from ape_kernels.folding import fold_pixels


def add_exits(model: nn.Module, every: int = 4) -> nn.Module:
    """Give a plain recognised network exits after every `every` blocks, and a regressor to train.

    The model gets `regressor` (average pool, Linear(C, 1), tanh; section 3.2 of the APE paper), `exit_interval`
    and `exit_threshold`, and is returned. Its forward and its state dict stay those of its class: the regressor
    is saved apart, as ``model.regressor.state_dict()``. Its weights begin at zero, so that no patch leaves
    early before it is trained; `all_exits` gives what training needs.

    Raises NotRecognised for a network no adapter knows, ValueError for one that has exits already or an
    interval it has not blocks enough for.
    """
    program = to_program(model)
    if any(stage.has_exit for stage in program.stages):
        raise ValueError("model: expected a plain network, got one with exits")
    if isinstance(every, bool) or not isinstance(every, int):
        raise ValueError(f"every: expected a whole number of blocks, got {every!r}")
    parameter = next(model.parameters())
    linear = nn.Linear(program.buffers[program.stages[-1].dst].channels, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    marked: Any = model  # nn.Module declares neither
    marked.exit_interval, marked.exit_threshold = every, 1.0
    for pool in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d):  # families pool over tokens or over maps
        regressor = nn.Sequential(pool(1), nn.Flatten(), linear, nn.Tanh())
        model.regressor = regressor.to(parameter.device, parameter.dtype)
        try:
            to_program(model)
            break
        except NotRecognised as error:
            refusal = error
    else:
        del model.regressor, model.exit_interval, model.exit_threshold
        raise ValueError(f"every: {refusal}")
    model.register_state_dict_post_hook(_leave_regressor_out)
    model.register_load_state_dict_post_hook(_do_not_miss_regressor)
    return model


def has_added_exits(model: nn.Module) -> bool:
    """Whether `add_exits` gave `model` its exits, so that its own forward does not know them."""
    hooks = model._state_dict_hooks  # pyright: ignore[reportPrivateUsage] - listed nowhere else
    return _leave_regressor_out in hooks.values()


def all_exits(model: nn.Module, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures ``[B, 3, s * H, s * W]`` and predictions ``[B, 1]`` at every exit, shallowest first.

    image: float32 ``[B, 3, H, W]``, taken whole. Gradients reach the regressor, the body and the head; a tail
    that was collapsed is a constant.
    """
    device = next(model.parameters()).device
    program = to_program(model)  # alive until the run is over: its modules are known by number
    packed = get_backend("torch").pack(program, device, torch.float32)
    pictures, predictions = run_all_exits(fold_pixels(image, program.fold), packed)
    height, width = (side * program.scale for side in image.shape[2:])
    return [picture[:, :, :height, :width] for picture in pictures], predictions


def _leave_regressor_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}regressor.")]:
        del state[name]


def _do_not_miss_regressor(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if "regressor." not in name]
