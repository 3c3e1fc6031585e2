"""The training loop: steps, checkpoints that survive a kill."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ape_sr.checkpoint import save_model
from ape_sr.data.crops import CropSampler
from ape_sr.distributed import Ranks
from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.training.log import TrainingLog
from ape_sr.training.losses import LossParts, joint_loss

ALONE = Ranks()
LOG_EVERY, LOG_FIRST = 50, 8  # steps; the first ones all, as that is where a run goes wrong


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run; defaults are the paper's (Adam 1e-4, batch 16, HR patch 192, halved after two thirds).

    steps: optimiser steps. batch: crops a step. patch: HR crop size in pixels. lr: learning rate.
    schedule: "halve" (half from two thirds on) or "cosine" (to zero). regressor_lr: rate of the
    regressor alone. regressor_weight: of its loss. clip: largest gradient norm. precision: "fp32" or "bf16" (autocast).
    target: what the regressor predicts, "paper" or "look-ahead" (`joint_loss`).
    seed: of crops. regressor_only: leave the backbone as it is. save_every: steps between checkpoints.
    """

    steps: int = 300_000
    batch: int = 16
    patch: int = 192
    lr: float = 1e-4
    schedule: str = "halve"
    regressor_lr: float = 1e-4
    regressor_weight: float = 1.0
    clip: float = 5.0
    precision: str = "fp32"
    target: str = "paper"
    seed: int = 0
    regressor_only: bool = False
    save_every: int = 500


class TrainingRun:
    """Trains `model` into the folder `out`.

    There appear `last.pt` (resumable), `log.csv` and its picture `log.png`, at the end `model.safetensors`.

    Every batch depends on (seed, step) only, so a run that is killed and started again with the same
    arguments goes on from `last.pt` as if nothing had happened.
    ranks: the processes that train together (`ape_sr.distributed.joined`), each on its share of every batch, with the
    gradients of the whole; the first one writes.
    """

    def __init__(
        self,
        model: nn.Module,
        sampler: CropSampler,
        config: TrainingConfig,
        out: Path,
        device: str,
        ranks: Ranks = ALONE,
    ) -> None:
        smallest = 2 * (model.scale + 6) + 1  # pixels the measured capacity needs within its border
        if config.patch < smallest:
            raise UserError(f"patch: expected at least {smallest} at scale {model.scale}, got {config.patch}")
        if config.batch % ranks.world:
            raise UserError(f"batch: expected a multiple of the {ranks.world} processes, got {config.batch}")
        if getattr(model, "head_exit", False) and config.target != "look-ahead":
            raise UserError(f"head_exit: expected with the target look-ahead, got {config.target}")
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.sampler, self.config, self.out, self.device, self.ranks = sampler, config, out, device, ranks
        if config.regressor_only:
            if not model.has_exits:
                raise UserError("regressor_only: expected a network with exits, got a plain one")
            model.requires_grad_(False)
            model.regressor.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self._parameter_groups())
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.step = 0
        out.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._resume()
        self.objective: nn.Module = _Objective(self.model, config)
        if ranks.world > 1:
            self.objective = DistributedDataParallel(self.objective)

    @property
    def checkpoint(self) -> Path:
        """The file a killed run goes on from."""
        return self.out / "last.pt"

    @property
    def identity(self) -> dict[str, dict[str, object]]:
        """What a checkpoint must agree on to be resumed."""
        return {"model": self.model.config, "training": asdict(self.config)}

    def run(self) -> Path:
        """Train to the last step and return the path of the finished weights."""
        log = TrainingLog(self.out, self.step) if self.ranks.leads else None
        started = time.monotonic()
        steps = self.config.steps
        with tqdm(total=steps, initial=self.step, unit="step", mininterval=1.0, disable=not self.ranks.leads) as bar:
            while self.step < steps:
                parts = self._one_step()
                bar.update()
                if log is not None and (self.step % LOG_EVERY == 0 or self.step <= LOG_FIRST or self.step == steps):
                    bar.set_postfix(loss=f"{parts.total.item():.3f}", psnr=f"{parts.psnr[-1].item():.2f}")
                    log.write(self.step, time.monotonic() - started, self.scheduler.get_last_lr()[0], parts)
                if log is not None and (self.step % self.config.save_every == 0 or self.step == steps):
                    self._save()
                    log.draw()
        weights = self.out / "model.safetensors"
        if self.ranks.leads:
            save_model(weights, self.model)
        return weights

    def _one_step(self) -> LossParts:
        lr, hr = self.sampler.batch(self.step, self.config.batch)
        share = slice(self.ranks.rank, None, self.ranks.world)
        lr, hr = (t[share].to(self.device, memory_format=torch.channels_last) * self.model.rgb_range for t in (lr, hr))
        self.optimizer.zero_grad(set_to_none=True)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.config.precision == "bf16"):
            total, *parts = self.objective(lr, hr)
        parts = LossParts(*(self.ranks.mean(part) for part in (total.detach(), *parts)))
        if not math.isfinite(parts.total.item()):
            raise UserError(f"training: the loss is {parts.total.item()} at step {self.step}; a smaller --lr may help")
        total.backward()
        torch.nn.utils.clip_grad_norm_(self._backbone(), self.config.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return parts

    def _parameter_groups(self) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = [{"params": self._backbone(), "lr": self.config.lr}]
        if self.model.has_exits:
            groups.append({"params": list(self.model.regressor.parameters()), "lr": self.config.regressor_lr})
        return groups

    def _backbone(self) -> list[nn.Parameter]:
        """Trainable parameters but the regressor's: their gradients are clipped together."""
        regressor = set(map(id, self.model.regressor.parameters())) if self.model.has_exits else set()
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in regressor]

    def _rate(self, step: int) -> float:
        if self.config.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(step / self.config.steps, 1.0)))
        return 0.5 if step >= self.config.steps * 2 / 3 else 1.0

    def _save(self) -> None:
        state = {
            "identity": self.identity,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
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
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]


class _Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel sees the whole of it."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, ...]:
        """The fields of `LossParts`."""
        parts = joint_loss(self.model, lr, hr, self.config.target, self.config.regressor_weight)
        return parts.total, parts.l1, parts.regressor, parts.psnr


def _default(part: str, key: str) -> object:
    """What a setting was in runs begun before it existed."""
    return getattr(TrainingConfig(), key) if part == "training" else {"head_exit": False}.get(key)


def initialise(model: nn.Module, source: nn.Module) -> None:
    """Copy the weights of a (plain) network of the same size; only the regressor may be missing there.

    Raises ValueError that names the first weight that does not fit.
    """
    theirs, ours = source.state_dict(), model.state_dict()
    for name in (*theirs, *(name for name in ours if not name.startswith("regressor."))):
        got, expected = (tuple(state[name].shape) if name in state else None for state in (theirs, ours))
        if got != expected:
            raise ValueError(f"init: {name}: expected {expected or 'no such weight'}, got {got or 'no such weight'}")
    model.load_state_dict(theirs, strict=False)
