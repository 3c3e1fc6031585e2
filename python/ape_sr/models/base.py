"""What all backbones with exits have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class ExitNetwork(nn.Module):
    """A network with one regressor for all its exits, or none.

    In training mode `forward` returns the pictures and predictions of all exits (see `forward_exits`); in
    evaluation mode, or without exits, the full-depth picture ``[N, 3, s * h, s * w]``.

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
        """Set `config`, and of it scale and rgb_range."""
        self.config = config
        self.scale, self.rgb_range = config["scale"], config["rgb_range"]

    def make_exits(self, channels: int, exit_interval: int | None, exit_threshold: float) -> None:
        """Build the regressor over feature maps of `channels`; no exits where `exit_interval` is None."""
        if exit_interval is not None:
            self.exit_interval = exit_interval
            self.exit_threshold = exit_threshold
            self.regressor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1), nn.Tanh())

    @property
    def has_exits(self) -> bool:
        """Whether there is a regressor."""
        return hasattr(self, "regressor")

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What is kept for the skip, and the feature map at every exit; for a plain network the last one."""
        raise NotImplementedError

    def after_blocks(self, blocks: Sequence[Callable[[Tensor], Tensor]], stream: Tensor) -> list[Tensor]:
        """Run `blocks` on `stream`: its features after every `exit_interval` of them and after the last.

        Of a plain network those after the last block alone.
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
        """Features after the body-end skip to pixels, for networks that have such a tail."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | tuple[list[Tensor], list[Tensor]]:
        """The picture, or in training mode those of all exits; see the class."""
        if self.training and self.has_exits:
            return self.forward_exits(x)
        skip, features = self.exit_features(x)
        return self.picture(skip, features[-1])

    def forward_exits(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pictures ``[N, 3, s * h, s * w]`` and predictions ``[N, 1]`` of every exit, shallowest first."""
        skip, features = self.exit_features(x)
        return [self.picture(skip, f) for f in features], [self.regressor(f) for f in features]


def expect_divisor(exit_interval: int | None, name: str, blocks: int) -> None:
    """Raises ValueError unless exits after every `exit_interval` of so many blocks include the last one.

    name: what the number of blocks is called in the message.
    """
    if exit_interval is not None and (exit_interval < 1 or blocks % exit_interval):
        raise ValueError(f"exit_interval: expected a divisor of {name} = {blocks}, got {exit_interval}")


def pixel_range(model: nn.Module) -> float:
    """The largest value of a pixel that `model` reads and writes: its rgb_range, 1 for networks of other packages."""
    return model.rgb_range if isinstance(model, ExitNetwork) else 1.0
