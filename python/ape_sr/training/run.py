"""The training loop, with checkpoints from which an interrupted run goes on."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ape_sr.checkpoint import save_model
from ape_sr.data.crops import CropSampler
from ape_sr.data.resident import ResidentCrops
from ape_sr.distributed import Ranks
from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.models import ExitNetwork
from ape_sr.training.log import TrainingLog
from ape_sr.training.losses import LossParts, joint_loss
from ape_sr.training.step import RecordedStep, TrainingStep, side_stream

ALONE = Ranks()
LOG_EVERY, LOG_FIRST = 50, 8  # in steps; all of the first steps are logged, because faults show there


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run. The defaults are the paper's (Adam 1e-4, batch 16, HR patch 192, halved after two thirds).

    steps: the most optimiser steps. minutes: the most minutes of training, None for no limit. The one that is nearer
    its end drives the schedule. batch: crops per step. patch: side of the HR crops in pixels. lr: learning rate.
    schedule: "halve" (half of the rate after two thirds of the run) or "cosine" (falls to zero). warm_up: steps over
    which the rates rise to those of the schedule. regressor_lr: learning rate of the regressor. regressor_weight: of
    the regressor's loss. clip: largest norm of the backbone's gradient. precision: "fp32" or "bf16" (autocast).
    target: what the regressor predicts, "paper" or "look-ahead" (`joint_loss`).
    seed: of the crops. regressor_only: train the regressor and leave the backbone as it is. save_seconds: least time
    between two checkpoints.
    """

    steps: int = 300_000
    minutes: float | None = None
    batch: int = 16
    patch: int = 192
    lr: float = 1e-4
    schedule: str = "halve"
    warm_up: int = 0
    regressor_lr: float = 1e-4
    regressor_weight: float = 1.0
    clip: float = 5.0
    precision: str = "fp32"
    target: str = "paper"
    seed: int = 0
    regressor_only: bool = False
    save_seconds: float = 30.0


class TrainingRun:
    """Trains `model` into the folder `out`.

    It writes the checkpoint `last.pt`, the weights of the last checkpoint `model.safetensors`, `log.csv`, and
    `log.png`, a picture of the log.

    Every batch depends on (seed, step) only. A run that was killed and is started again with the same arguments goes on
    from `last.pt` as if it had not been interrupted; a limit of minutes includes the time before. Losses are read,
    logged and checked every `LOG_EVERY` steps. Between these steps nothing waits for the device. On a CUDA device a
    step is one launch (`RecordedStep`), unless several processes train together.

    crops: gives the batches by `batch(step, size)`.
    device: such as "cpu" or "cuda:0".
    ranks: the processes that train together (`ape_sr.distributed.joined`). Each computes a share of every batch, and
    gradients are averaged. The first process reads the checkpoint and writes; `out` is a folder of its machine.

    Raises UserError for settings that do not go together, and for a folder that holds another run or a damaged
    checkpoint.
    """

    def __init__(
        self,
        model: ExitNetwork,
        crops: CropSampler | ResidentCrops,
        config: TrainingConfig,
        out: Path,
        device: str,
        ranks: Ranks = ALONE,
    ) -> None:
        smallest = 2 * (model.scale + 6) + 1  # pixels; PSNR is measured without a border of scale + 6
        if config.patch < smallest:
            raise UserError(f"patch: expected at least {smallest} at scale {model.scale}, got {config.patch}")
        if config.batch % ranks.world:
            raise UserError(f"batch: expected a multiple of the {ranks.world} processes, got {config.batch}")
        if config.minutes is not None and ranks.world > 1:  # the processes would stop at different steps
            raise UserError(f"minutes: expected with one process, got {ranks.world}; say how many --steps")
        if getattr(model, "head_exit", False) and config.target != "look-ahead":
            raise UserError(f"head_exit: expected with the target look-ahead, got {config.target}")
        moved = model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not declared
        self.model = moved.train()
        self.crops, self.config, self.out, self.ranks = crops, config, out, ranks
        self.device = torch.device(device)
        if config.regressor_only:
            if not model.has_exits:
                raise UserError("regressor_only: expected a network with exits, got a plain one")
            model.requires_grad_(False)
            model.regressor.requires_grad_(True)
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(self._parameter_groups(), fused=on_gpu or None, capturable=on_gpu)
        self.step, self.seconds = 0, 0.0
        saved = None
        if ranks.leads:
            out.mkdir(parents=True, exist_ok=True)
            saved = self.checkpoint.read_bytes() if self.checkpoint.exists() else None
        saved = ranks.from_first(saved)  # other machines do not have the file
        if saved is not None:
            self._resume(saved)
        objective: nn.Module = _Objective(self.model, config)
        if ranks.world > 1:
            objective = DistributedDataParallel(objective)
        step = TrainingStep(objective, self.optimizer, self._backbone(), config.clip, config.precision == "bf16")
        self.training_step = RecordedStep(step) if on_gpu and ranks.world == 1 else step

    @property
    def checkpoint(self) -> Path:
        """The file from which an interrupted run goes on."""
        return self.out / "last.pt"

    @property
    def weights(self) -> Path:
        """The file with the weights of the last checkpoint."""
        return self.out / "model.safetensors"

    @property
    def identity(self) -> dict[str, dict[str, object]]:
        """The settings that a checkpoint must share with this run to be resumed."""
        return {"model": self.model.config, "training": asdict(self.config)}

    def run(self) -> Path:
        """Train to the end and return the path of the finished weights.

        Raises UserError when the loss becomes NaN or infinite.
        """
        log = TrainingLog(self.out, self.step) if self.ranks.leads else None
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
        began, saved = monotonic() - self.seconds, monotonic()
        total = self.config.steps if self.config.minutes is None else None
        bar = tqdm(total=total, initial=self.step, unit="step", mininterval=1.0, disable=log is None)
        with bar, side_stream(self.device):
            while (done := self._done()) < 1:
                rate = self._rate(done)
                parts = self._one_step(rate)
                bar.update()
                self.seconds = monotonic() - began
                ends = self._done() == 1
                if self.step % LOG_EVERY and self.step > LOG_FIRST and not ends:
                    continue  # without a wait for the device
                parts = self._checked(parts)
                if log is not None:
                    bar.set_postfix(loss=f"{parts.total.item():.3f}", psnr=f"{parts.psnr[-1].item():.2f}")
                    log.write(self.step, self.seconds, self.config.lr * rate, parts)
                    if not ends and monotonic() - saved >= self.config.save_seconds:
                        self._save(log)
                        saved = monotonic()
            if log is not None:
                self._save(log)
        return self.weights

    def _one_step(self, rate: float) -> LossParts:
        """Run one step with the learning rates times `rate`. The losses are those of this process, on the device."""
        lr, hr = self.crops.batch(self.step, self.config.batch)
        share = slice(self.ranks.rank, None, self.ranks.world)
        lr, hr = (t[share].to(self.device, memory_format=torch.channels_last) * self.model.rgb_range for t in (lr, hr))
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # a recorded step reads this tensor
                group["lr"].fill_(group["initial_lr"] * rate)
            else:
                group["lr"] = group["initial_lr"] * rate
        parts = self.training_step(lr, hr)
        self.step += 1
        return parts

    def _checked(self, parts: LossParts) -> LossParts:
        """Means over the processes. Raises UserError if the loss is not finite; later steps cannot mend that."""
        parts = LossParts(*(self.ranks.mean(part) for part in vars(parts).values()))
        total = parts.total.item()
        if not math.isfinite(total):
            raise UserError(f"training: the loss is {total} at step {self.step - 1}; a smaller --lr may help")
        return parts

    def _parameter_groups(self) -> list[dict[str, object]]:
        rates = [(self._backbone(), self.config.lr)]
        if self.model.has_exits:
            rates.append((list(self.model.regressor.parameters()), self.config.regressor_lr))
        on_gpu = self.device.type == "cuda"
        return [
            {"params": params, "lr": torch.tensor(rate, device=self.device) if on_gpu else rate, "initial_lr": rate}
            for params, rate in rates
        ]

    def _backbone(self) -> list[nn.Parameter]:
        """The trainable parameters except the regressor's. Their gradients are clipped together."""
        regressor = set(map(id, self.model.regressor.parameters())) if self.model.has_exits else set()
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in regressor]

    def _done(self) -> float:
        """Share of the run that is done, 0 to 1: of the steps or of the minutes, the larger one."""
        done = self.step / self.config.steps
        if self.config.minutes is not None:
            done = max(done, self.seconds / (60 * self.config.minutes))
        return min(done, 1.0)

    def _rate(self, done: float) -> float:
        """Factor of the learning rates after the share `done` of the run."""
        warmth = min((self.step + 1) / (self.config.warm_up + 1), 1.0)
        if self.config.schedule == "cosine":
            return warmth * 0.5 * (1 + math.cos(math.pi * done))
        return warmth * (0.5 if done >= 2 / 3 else 1.0)

    def _save(self, log: TrainingLog) -> None:
        state = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)
        save_model(self.weights, self.model)
        log.draw()

    def _resume(self, content: bytes) -> None:
        """content: of a checkpoint."""
        try:
            state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
            identity = state["identity"]
        except Exception as error:  # torch raises many types for a damaged file
            raise UserError(f"out: {self.checkpoint} cannot be resumed: {str(error).splitlines()[0]}") from None
        changed = [
            f"{key}: {theirs} there, {value} here"
            for part, values in self.identity.items()
            for key, value in values.items()
            if (theirs := identity[part].get(key, _default(part, key))) != value
        ]
        if changed:
            raise UserError(f"out: {self.out} holds another run ({'; '.join(changed)}); choose another folder")
        self.model.load_state_dict(state["model"])
        for saved, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            saved.update({key: value for key, value in own.items() if key != "params"})  # of this run's device
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state.get("seconds", 0.0)


class _Objective(nn.Module):
    """The loss as a module, because DistributedDataParallel must wrap the whole computation."""

    def __init__(self, model: ExitNetwork, config: TrainingConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, ...]:
        """The fields of `LossParts` for a batch."""
        parts = joint_loss(self.model, lr, hr, self.config.target, self.config.regressor_weight)
        return parts.total, parts.l1, parts.regressor, parts.psnr


def _default(part: str, key: str) -> object:
    """The value of a setting in runs that began before the setting existed."""
    return getattr(TrainingConfig(), key) if part == "training" else {"head_exit": False}.get(key)


def initialise(model: nn.Module, source: nn.Module) -> None:
    """Copy the weights of `source`, a network of the same size, to `model`. Only the regressor may be missing in it.

    Raises ValueError with the name of the first weight that does not fit.
    """
    theirs, ours = source.state_dict(), model.state_dict()
    for name in (*theirs, *(name for name in ours if not name.startswith("regressor."))):
        got, expected = (tuple(state[name].shape) if name in state else None for state in (theirs, ours))
        if got != expected:
            raise ValueError(f"init: {name}: expected {expected or 'no such weight'}, got {got or 'no such weight'}")
    model.load_state_dict(theirs, strict=False)
