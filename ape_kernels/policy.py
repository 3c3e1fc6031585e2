"""When a patch leaves: thresholds on the predicted incremental capacity, and budgets for a whole image.

The regressor predicts ``1 - I`` with I = tanh(gain in dB) the incremental capacity of a stage: of the one just run
(APE paper, section 3.2) or, trained to look ahead, of the next. A patch leaves at the first exit where
``I < threshold``, that is where the prediction reaches ``1 - threshold``.

A budget bounds the FLOPs of an image instead and spends them best first: of all patches that wait at an exit the one
with the highest predicted gain for the cost runs its next stage, until nothing more fits. That is what the threshold
which just meets the budget would do, but found on the way: no prediction is computed that such a threshold would not
have computed too, and the budget is never exceeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

ROUND = 8  # the best eighth of what may still run goes at once, so that rounds are few and the last ones exact


def check_threshold(threshold: float) -> float:
    """The threshold as a float; ValueError unless it is a number from 0 to 1."""
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number from 0 to 1, got {threshold!r}")
    return float(threshold)


def check_budget(budget: float | None, stage_flops: Sequence[int]) -> float | None:
    """The budget as a float; ValueError unless it is None or a share of the body from its first exit's to 1.

    stage_flops: of each stage; the first has to be run by every patch.
    """
    if budget is None:
        return None
    least = stage_flops[0] / sum(stage_flops)
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not number or not least * (1 - TOLERANCE) <= budget <= 1:
        raise ValueError(f"budget: expected a share from {least:.3f}, what the first exit takes, to 1, got {budget!r}")
    return float(budget)


def threshold_from_gain(min_gain_db: float) -> float:
    """Threshold at which a patch leaves once a stage is predicted to bring less than `min_gain_db` dB."""
    if not isinstance(min_gain_db, (int, float)) or not min_gain_db >= 0:
        raise ValueError(f"min_gain_db: expected a number of at least 0, got {min_gain_db!r}")
    return math.tanh(min_gain_db)


def exit_boundary(threshold: float) -> float:
    """Prediction from which a patch leaves: ``1 - threshold``; infinity (never) for a threshold of 0."""
    return 1.0 - threshold if threshold > 0 else math.inf


TOLERANCE = 1e-9  # of a budget: shares such as 1 / 6 are not exact


class Budget:
    """FLOPs of one image's body, spent best first.

    share: of `patches` patches at full depth. stage_flops: of each stage, in any unit.
    """

    def __init__(self, share: float, patches: int, stage_flops: Sequence[int]) -> None:
        self.stage_flops = stage_flops
        self.left = math.floor(share * (1 + TOLERANCE) * patches * sum(stage_flops))

    def choose(self, waiting: dict[int, tuple[int, float]]) -> list[int]:
        """The patches that run their next stage now, paid for; empty when nothing more fits.

        waiting: patch to (its next stage, the gain predicted).
        """
        affordable = [p for p, (stage, _) in waiting.items() if self.stage_flops[stage] <= self.left]
        if not affordable:
            return []
        affordable.sort(key=lambda p: (-waiting[p][1] / self.stage_flops[waiting[p][0]], p))
        dearest = max(self.stage_flops[waiting[p][0]] for p in affordable)
        fitting = max(1, self.left // dearest)
        chosen = affordable[: -(-min(len(affordable), fitting) // ROUND)]
        self.left -= sum(self.stage_flops[waiting[p][0]] for p in chosen)
        return chosen
