"""What all backbones with exits have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class ExitNetwork(nn.Module):
    """A network with one regressor for all its exits, or none.

    In training mode `forward` returns the pictures and predictions of all exits (see `forward_exits`). In evaluation
    mode, or without exits, it returns the picture of full depth, ``[N, 3, s * h, s * w]``.

    A subclass calls `configure` and `make_exits`, and has `exit_features` and `picture`.
    config: the arguments that build it again. scale: upscaling factor. rgb_range: the largest value of a pixel.
    A network with exits also has exit_interval (blocks from exit to exit), exit_threshold (the prediction from which
    on a patch leaves) and regressor.
    """

    config: dict[str, Any]
    scale: int
    rgb_range: float
    exit_interval: int
    exit_threshold: float
    regressor: nn.Sequential

    def configure(self, **config: Any) -> None:
        """Keep the arguments that build the network again, and set scale and rgb_range, which are among them."""
        self.config = config
        self.scale, self.rgb_range = config["scale"], config["rgb_range"]

    def make_exits(self, channels: int, exit_interval: int | None, exit_threshold: float) -> None:
        """Build the regressor over feature maps of `channels`. Without `exit_interval` there are no exits."""
        if exit_interval is not None:
            self.exit_interval = exit_interval
            self.exit_threshold = exit_threshold
            self.regressor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1), nn.Tanh())

    @property
    def has_exits(self) -> bool:
        """Whether there is a regressor."""
        return hasattr(self, "regressor")

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the skip adds, and the feature map at every exit. A plain network gives the last one alone."""
        raise NotImplementedError

    def after_blocks(self, blocks: Sequence[Callable[[Tensor], Tensor]], stream: Tensor) -> list[Tensor]:
        """Run `blocks` on `stream`. Returns the features after every `exit_interval` of them and after the last one.

        A plain network gives those after the last one alone.
        """
        interval = self.exit_interval if self.has_exits else len(blocks)
        features: list[Tensor] = []
        for i, block in enumerate(blocks, start=1):
            stream = block(stream)
            if i % interval == 0 or i == len(blocks):
                features.append(stream)
        return features

    def picture(self, skip: Tensor, features: Tensor) -> Tensor:
        """The picture ``[N, 3, s * h, s * w]`` of one exit's features."""
        raise NotImplementedError

    def reconstruct(self, features: Tensor) -> Tensor:
        """The picture of features to which the skip has been added, for networks that have such a tail."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | tuple[list[Tensor], list[Tensor]]:
        """The picture, or in training mode those of all exits. See the class."""
        if self.training and self.has_exits:
            return self.forward_exits(x)
        skip, features = self.exit_features(x)
        return self.picture(skip, features[-1])

    def forward_exits(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pictures ``[N, 3, s * h, s * w]`` and predictions ``[N, 1]`` of every exit, shallowest first."""
        skip, features = self.exit_features(x)
        return [self.picture(skip, f) for f in features], [self.regressor(f) for f in features]


def expect_divisor(exit_interval: int | None, name: str, blocks: int) -> None:
    """Raises ValueError if `exit_interval` does not divide the number of blocks: the last one would have no exit.

    name: how the message calls the number of blocks.
    """
    if exit_interval is not None and (exit_interval < 1 or blocks % exit_interval):
        raise ValueError(f"exit_interval: expected a divisor of {name} = {blocks}, got {exit_interval}")


def pixel_range(model: nn.Module) -> float:
    """The largest value of a pixel that `model` reads and writes. For networks of other packages it is 1."""
    return model.rgb_range if isinstance(model, ExitNetwork) else 1.0
