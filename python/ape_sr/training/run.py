"""The training loop: steps, checkpoints that survive a kill, a CSV log."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ape_sr.checkpoint import save_model
from ape_sr.data.crops import CropSampler
from ape_sr.errors import UserError
from ape_sr.files import atomic_path
from ape_sr.training.losses import LossParts, joint_loss


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
    """Trains `model` into the folder `out`: `last.pt` (resumable), `log.csv`, at the end `model.safetensors`.

    Every batch depends on (seed, step) only, so a run that is killed and started again with the same
    arguments goes on from `last.pt` as if nothing had happened.
    """

    def __init__(self, model: nn.Module, sampler: CropSampler, config: TrainingConfig, out: Path, device: str) -> None:
        smallest = 2 * (model.scale + 6) + 1  # pixels the measured capacity needs within its border
        if config.patch < smallest:
            raise UserError(f"patch: expected at least {smallest} at scale {model.scale}, got {config.patch}")
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.sampler, self.config, self.out, self.device = sampler, config, out, device
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

    @property
    def checkpoint(self) -> Path:
        """The file a killed run goes on from."""
        return self.out / "last.pt"

    @property
    def identity(self) -> dict[str, object]:
        """What a checkpoint must agree on to be resumed."""
        return {"model": self.model.config, "training": asdict(self.config)}

    def run(self) -> Path:
        """Train to the last step and return the path of the finished weights."""
        columns = [
            "step",
            "seconds",
            "lr",
            "loss",
            *(f"{part}_{i}" for part in ("l1", "mse", "psnr") for i in range(self._exits())),
        ]
        log = _CsvLog(self.out / "log.csv", columns, self.step)
        started = time.monotonic()
        with tqdm(total=self.config.steps, initial=self.step, unit="step", mininterval=1.0) as bar:
            while self.step < self.config.steps:
                parts = self._one_step()
                bar.update()
                if self.step % 50 == 0 or self.step == self.config.steps:
                    rate = self.scheduler.get_last_lr()[0]
                    bar.set_postfix(loss=f"{parts.total.item():.3f}", psnr=f"{parts.psnr[-1].item():.2f}")
                    per_exit = [v.item() for part in (parts.l1, parts.regressor, parts.psnr) for v in part]
                    log.write([self.step, time.monotonic() - started, rate, parts.total.item(), *per_exit])
                if self.step % self.config.save_every == 0:
                    self._save()
        self._save()
        weights = self.out / "model.safetensors"
        save_model(weights, self.model)
        return weights

    def _one_step(self) -> LossParts:
        lr, hr = self.sampler.batch(self.step, self.config.batch)
        lr, hr = (t.to(self.device, memory_format=torch.channels_last) * self.model.rgb_range for t in (lr, hr))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            parts = joint_loss(self.model, lr, hr, self.config.target, self.config.regressor_weight)
        if not math.isfinite(parts.total.item()):
            raise UserError(f"training: the loss is {parts.total.item()} at step {self.step}; a smaller --lr may help")
        parts.total.backward()
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

    def _exits(self) -> int:
        return len(self.model.body[:-1]) // self.model.exit_interval if self.model.has_exits else 1

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
        if identity != self.identity:
            theirs, ours = identity | {}, self.identity
            changed = [
                f"{key}: {theirs[part].get(key)} there, {value} here"
                for part, values in ours.items()
                for key, value in values.items()
                if theirs[part].get(key) != value
            ]
            raise UserError(f"out: {self.out} holds another run ({'; '.join(changed)}); choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]


class _CsvLog:
    """Appends rows; on resuming drops those written after the checkpoint that is resumed."""

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        self.path = path
        kept = [row for row in self._rows() if int(row[0]) <= step]
        with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([columns, *kept])

    def _rows(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [row for row in list(csv.reader(file))[1:] if row and row[0].isdigit()]

    def write(self, row: list[float]) -> None:
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])


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
