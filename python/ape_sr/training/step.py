"""One optimiser step, and its recording as a CUDA graph. A small network's step has thousands of tiny launches."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ape_sr.training.losses import LossParts

WARM_UP = 3  # calls before the recording; in them libraries choose their kernels and the optimiser makes its state


class TrainingStep:
    """Forward, backward, clipping and update: ``step(lr, hr) -> LossParts``. It does not wait for the device.

    objective: maps `(lr, hr)` to the fields of `LossParts`. clipped: parameters whose gradients are clipped together to
    the norm `clip`. autocast: whether the forward runs in bfloat16 where PyTorch's autocast allows it.
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
        """Run one step. lr: ``[N, 3, h, w]``, hr: ``[N, 3, s * h, s * w]``. The result carries no gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=self.autocast):
            total, *parts = self.objective(lr, hr)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.clipped, self.clip)
        self.optimizer.step()
        return LossParts(total.detach(), *parts)


class RecordedStep:
    """A `TrainingStep` on a CUDA device that is recorded once and then launched as a whole.

    The first `WARM_UP` calls are not recorded. All inputs must have one shape. Calls must be made within `side_stream`,
    and the optimiser must be capturable, with its learning rates in tensors on the device. Each call overwrites the
    result of the call before. If the step cannot be recorded, a line is printed and the step runs without a recording.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self._calls = 0
        self._recording: _Recording | None = None

    def __call__(self, lr: Tensor, hr: Tensor) -> LossParts:
        """As `TrainingStep.__call__`."""
        if self._calls == WARM_UP:
            try:
                self._recording = _Recording(self.step, lr, hr)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                print(f"training: the step cannot be recorded as a CUDA graph, going on without: {reason}", flush=True)
        self._calls += 1
        return self.step(lr, hr) if self._recording is None else self._recording(lr, hr)


class _Recording:
    """A recording of everything that `step` launches on the device. A call runs it; making it does not."""

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
    """In this context a CUDA stream of its own is current, because graphs cannot be recorded on the default stream.

    On other devices it does nothing.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
