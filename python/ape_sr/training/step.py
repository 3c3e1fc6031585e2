"""One optimiser step, and its recording as a CUDA graph: a small network's step is thousands of tiny launches."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ape_sr.training.losses import LossParts

WARM_UP = 3  # calls before the recording, in which libraries choose their kernels and the optimiser makes its state


class TrainingStep:
    """Forward, backward, clipping and update: ``step(lr, hr) -> LossParts``; does not wait for the device.

    objective: `(lr, hr)` to the fields of `LossParts`. clipped: parameters whose gradients are cut together at the
    norm `clip`. autocast: run the forward in bfloat16 where PyTorch does so.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        clipped: list[nn.Parameter],
        clip: float,
        autocast: bool,
    ) -> None:
        self.objective, self.optimizer = objective, optimizer
        self.clipped, self.clip, self.autocast = clipped, clip, autocast

    def __call__(self, lr: Tensor, hr: Tensor) -> LossParts:
        """lr ``[N, 3, h, w]``, hr ``[N, 3, s * h, s * w]``; all that is returned is detached."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=self.autocast):
            total, *parts = self.objective(lr, hr)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.clipped, self.clip)
        self.optimizer.step()
        return LossParts(total.detach(), *parts)


class RecordedStep:
    """A `TrainingStep` of inputs of one shape on a CUDA device, recorded once and launched as a whole from then on.

    The first `WARM_UP` calls run as they are. To be called within `side_stream`; the optimiser has to be capturable,
    with its rates in tensors on the device. What a call returns is overwritten by the next one.
    A step that cannot be recorded goes on as it is, after a printed line.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._calls = 0
        self._recording: _Recording | None = None

    def __call__(self, lr: Tensor, hr: Tensor) -> LossParts:
        """As `TrainingStep`."""
        if self._calls == WARM_UP:
            try:
                self._recording = _Recording(self.step, lr, hr)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                print(f"training: the step cannot be recorded as a CUDA graph, going on without: {reason}", flush=True)
        self._calls += 1
        return self.step(lr, hr) if self._recording is None else self._recording(lr, hr)


class _Recording:
    """What `step` launches on the device, recorded but not run; a call runs it."""

    def __init__(self, step: TrainingStep, lr: Tensor, hr: Tensor) -> None:
        self.inputs = lr.clone(), hr.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            self.parts = step(*self.inputs)

    def __call__(self, lr: Tensor, hr: Tensor) -> LossParts:
        for kept, value in zip(self.inputs, (lr, hr), strict=True):
            kept.copy_(value)
        self.graph.replay()
        return self.parts


@contextmanager
def side_stream(device: torch.device) -> Generator[None, None, None]:
    """A CUDA stream of the block's own, as graphs cannot be recorded on the default one; nothing on other devices."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
