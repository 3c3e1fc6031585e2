"""How far images and patches run: to full depth, to a fidelity, within a budget, or until a threshold is reached.

A fidelity or a budget is planned from the image before the network runs (`ape_kernels.plan`).

A threshold is the paper's rule. The regressor predicts ``1 - I``. Here I = tanh(gain in dB) is the incremental capacity
of a stage: of the stage that has just run (APE paper, section 3.2) or, if the regressor was trained to look ahead, of
the next stage. A patch leaves at the first exit where ``I < threshold``, which is where the prediction reaches
``1 - threshold``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ape_kernels.plan.plan import check_fidelity

Fidelity = float | Literal["auto"] | None


@dataclass(frozen=True)
class Policy:
    """What decides how far images run; at most one of the three is given.

    threshold: of the incremental capacity, from 0 to 1; None for not given.
    fidelity: PSNR in dB of each cell to full depth; "auto" for what the model's fit says, None for full depth.
    budget: share of the work of full depth that each image may take; None for not given.
    """

    threshold: float | None = None
    fidelity: Fidelity = "auto"
    budget: float | None = None

    @classmethod
    def of(cls, threshold: float | None, min_gain_db: float | None, fidelity: Fidelity, budget: float | None) -> Policy:
        """The policy that arguments of `APEForward` ask for. ValueError for more than one, or one out of range."""
        numbers = dict(threshold=threshold, min_gain_db=min_gain_db, budget=budget)
        given: dict[str, object] = {name: value for name, value in numbers.items() if value is not None}
        if fidelity != "auto":
            given["fidelity"] = fidelity
        if len(given) > 1:
            names = " and ".join(f"{name} {value}" for name, value in given.items())
            raise ValueError(
                f"{next(iter(given))}: expected at most one of threshold, min_gain_db, fidelity and budget, got {names}"
            )
        if min_gain_db is not None:
            threshold = threshold_from_gain(min_gain_db)
        return cls(
            None if threshold is None else check_threshold(threshold),
            fidelity if fidelity is None or fidelity == "auto" else check_fidelity(fidelity),
            budget,
        )

    @property
    def needs_fit(self) -> str | None:
        """Name of the setting that asks for a plan, which needs a fit; None without one."""
        if self.budget is not None:
            return "budget"
        return "fidelity" if isinstance(self.fidelity, float) else None


def check_threshold(threshold: float) -> float:
    """The threshold as a float. Raises ValueError unless it is a number from 0 to 1."""
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number from 0 to 1, got {threshold!r}")
    return float(threshold)


def threshold_from_gain(min_gain_db: float) -> float:
    """The threshold with which a patch leaves once a stage is predicted to bring less than `min_gain_db` dB of PSNR.

    Raises ValueError unless `min_gain_db` is a number of at least 0.
    """
    if not isinstance(min_gain_db, (int, float)) or not min_gain_db >= 0:
        raise ValueError(f"min_gain_db: expected a number of at least 0, got {min_gain_db!r}")
    return math.tanh(min_gain_db)


def exit_boundary(threshold: float) -> float:
    """The prediction from which on a patch leaves: ``1 - threshold``, or infinity (never) for a threshold of 0."""
    return 1.0 - threshold if threshold > 0 else math.inf
