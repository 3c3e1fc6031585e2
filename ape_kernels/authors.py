"""The APE authors' own calls: what their networks return in test mode, fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ape_kernels.backends.protocol import Exits
from ape_kernels.forward import APEForward
from ape_kernels.inputs import checked_pixels
from ape_kernels.run.patches import run_patches
from ape_kernels.wrappers import Wrapper, device_of


class PatchForward(Wrapper):
    """A network to put into the authors' test code: ``model.model = PatchForward(model.model)``.

    A call takes patches and returns what the authors' networks return with `test_only`: three tensors, whose exits
    follow the network's own `exit_threshold` and count as theirs do. In training mode, and without `test_only`, a call
    is handed on to the network. The state dict is the network's own.

    network, settings: as for `APEForward`.

    Raises ValueError for a network without exits; otherwise as `APEForward` does.
    """

    def __init__(self, network: Any, **settings: Any) -> None:
        super().__init__()
        fast = APEForward(network, **settings)
        if fast.program.exit_threshold is None:
            raise ValueError("network: expected one with a regressor and an exit_threshold, got one without")
        self.model, self.training = fast, fast.training

    def forward(self, x: Tensor) -> Any:
        """Upscale patches independently of each other.

        x: float ``[N, C, h, w]``, on the network's device, finite.
        Returns the pictures ``[N, C, s * h, s * w]`` in the dtype of `x`; the exit of each patch, float32 ``[N]``; and
        the prediction there, float32 ``[N, 1]``. A patch leaves at the first exit whose prediction is at least
        `exit_threshold`, also where both are 1. The exit is -1 where no prediction is. The last exit of RRDB has the
        number of the one before it where the interval does not divide the number of blocks.

        Raises TypeError and ValueError as `APEForward` does.
        """
        fast: APEForward = self.model
        network = fast.model
        if network.training or not getattr(network, "test_only", True):
            return network(x)
        packed = fast.packed
        pixels = checked_pixels(x, "x", packed.program, device_of(network))
        boundary = packed.program.exit_threshold
        assert boundary is not None
        results = run_patches(pixels, packed, Exits(boundary, None))
        prediction = 1 - results.capacity
        first, last = packed.program.stages[0], packed.program.stages[-1]
        at_end = results.exit_index == len(packed.program.stages) - 1
        exits = results.exit_index.float()
        if last.has_exit and len(last.steps) < len(first.steps):
            exits = exits - at_end.float()
        left = ~at_end | (prediction >= boundary) & last.has_exit
        return results.sr.to(x.dtype), torch.where(left, exits, -1.0), prediction[:, None]
