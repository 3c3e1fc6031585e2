"""Exits for networks that were published without exits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ape_kernels.adapters import NotRecognised, to_program
from ape_kernels.backends import get_backend
from ape_kernels.backends.torch.interpreter import run_all_exits
from ape_kernels.folding import fold_pixels


def add_exits(model: nn.Module, every: int = 4) -> nn.Module:
    """Give a recognised network without exits an exit after every `every` blocks, and a regressor to train.

    The model gets `regressor` (average pool, Linear(C, 1), tanh; section 3.2 of the APE paper), `exit_interval`
    and `exit_threshold`. The same model is returned. Its forward and its state dict stay as they were: the regressor is
    saved apart, as ``model.regressor.state_dict()``. The regressor's weights begin at zero, so no patch leaves early
    before it is trained. `all_exits` gives what training needs.

    Raises NotRecognised for a network that no adapter knows, and ValueError for a network that has exits already or has
    fewer than `every` blocks.
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
    marked: Any = model  # nn.Module declares neither of the two attributes
    marked.exit_interval, marked.exit_threshold = every, 1.0
    for pool in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d):  # a family pools over tokens or over maps
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
    """Whether `add_exits` gave `model` its exits. The model's own forward does not use them then."""
    hooks = model._state_dict_hooks  # pyright: ignore[reportPrivateUsage] - PyTorch lists them nowhere else
    return _leave_regressor_out in hooks.values()


def all_exits(model: nn.Module, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures and predictions at every exit, the shallowest exit first, for training.

    image: float32 ``[B, 3, H, W]`` on the model's device. It is not split into patches.
    Returns pictures, float32 ``[B, 3, s * H, s * W]``, and predictions, float32 ``[B, 1]``. Gradients reach the
    regressor, the body and the head; a collapsed tail is a constant.

    Raises NotRecognised for a network that no adapter knows.
    """
    device = next(model.parameters()).device
    program = to_program(model)  # must live until the run is over: the table names its modules by number
    packed = get_backend("torch").pack(program, device, torch.float32)
    pictures, predictions = run_all_exits(fold_pixels(image, program.fold), packed)
    height, width = (side * program.scale for side in image.shape[2:])
    return [picture[:, :, :height, :width] for picture in pictures], predictions


def _leave_regressor_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}regressor.")]:
        del state[name]


def _do_not_miss_regressor(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if "regressor." not in name]
