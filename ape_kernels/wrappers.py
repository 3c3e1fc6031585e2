"""What stands around a network in other people's code, and what PyTorch makes of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def unwrapped(model: Any) -> Any:
    """The network in `nn.DataParallel`, `DistributedDataParallel`, a compiled module or a descriptor of spandrel.

    A descriptor is no module, and has the network as its `model`. Whatever else comes is returned as it is.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(model, nn.Module):
            inner = model._modules.get("_orig_mod")  # pyright: ignore[reportPrivateUsage]
            if inner is None:
                return model
            model = inner
        elif isinstance(getattr(model, "model", None), nn.Module):
            model = model.model
        else:
            return model


def is_replica(model: nn.Module) -> bool:
    """Whether `nn.DataParallel` made it: then its weights are plain attributes, and it has no parameters."""
    return _any_parameter(model) is None


def device_of(model: nn.Module) -> torch.device:
    """The device of the weights of a network or a replica."""
    if (parameter := _any_parameter(model)) is not None:
        return parameter.device
    weights = (vars(module).get("weight") for module in model.modules())
    return next(weight.device for weight in weights if isinstance(weight, Tensor))


def _any_parameter(model: nn.Module) -> Tensor | None:
    """One of the parameters. ``next(model.parameters())`` takes five times as long."""
    left: list[nn.Module | None] = [model]
    while left:
        if (module := left.pop()) is not None:
            for parameter in module._parameters.values():  # pyright: ignore[reportPrivateUsage]
                if parameter is not None:
                    return parameter
            left += module._modules.values()  # pyright: ignore[reportPrivateUsage]
    return None


class Wrapper(nn.Module):
    """A module that stands for the one it wraps: the same state dict, and its public attributes.

    model: the wrapped module.
    """

    model: Any

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The wrapped model's own state dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the wrapped model's own state dict."""
        return self.model.load_state_dict(state_dict, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # reached when a parent module loads: the wrapped model's keys lack our own level
        for name in [name for name in state_dict if name.startswith(prefix)]:
            state_dict[f"{prefix}model.{name.removeprefix(prefix)}"] = state_dict.pop(name)

    def __getattr__(self, name: str) -> Any:
        model = self.__dict__.get("_modules", {}).get("model")
        if name == "model" or name.startswith("_") or model is None:
            return super().__getattr__(name)
        return getattr(model, name)
