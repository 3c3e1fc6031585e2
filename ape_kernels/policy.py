"""When a patch leaves: thresholds on the predicted incremental capacity, and budgets for a whole image.

The regressor predicts ``1 - I``. Here I = tanh(gain in dB) is the incremental capacity of a stage: of the stage that
has just run (APE paper, section 3.2) or, if the regressor was trained to look ahead, of the next stage. A patch leaves
at the first exit where ``I < threshold``, which is where the prediction reaches ``1 - threshold``.

A budget bounds the FLOPs of an image instead and spends them where they bring most. Of all patches that wait at an
exit, the one with the highest predicted gain per FLOP runs its next stage, until nothing more fits. The result is close
to that of the threshold which just meets the budget, but that threshold need not be known in advance. The budget is
never exceeded, and no prediction is computed that such a threshold would not need as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

ROUND = 8  # The best eighth of the patches that may still run goes at once: few rounds, and the last ones are exact.


def check_threshold(threshold: float) -> float:
    """The threshold as a float. Raises ValueError unless it is a number from 0 to 1."""
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number from 0 to 1, got {threshold!r}")
    return float(threshold)


def check_budget(budget: float | None, stage_flops: Sequence[int]) -> float | None:
    """The budget as a float, or None for None.

    stage_flops: FLOPs of each stage. Every patch has to run the first stage, so a budget must be at least its share of
    the body's FLOPs.

    Raises ValueError unless the budget is None or a number from that share to 1.
    """
    if budget is None:
        return None
    least = stage_flops[0] / sum(stage_flops)
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not number or not least * (1 - TOLERANCE) <= budget <= 1:
        raise ValueError(f"budget: expected a share from {least:.3f}, what the first exit takes, to 1, got {budget!r}")
    return float(budget)


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


TOLERANCE = 1e-9  # of a budget, relative: shares such as 1 / 6 are not exact in floating point


class Budget:
    """The FLOPs that one image's body may take, spent where they bring most.

    share: of the FLOPs of `patches` patches at full depth. stage_flops: of each stage, in any unit.
    """

    def __init__(self, share: float, patches: int, stage_flops: Sequence[int]) -> None:
        self.stage_flops = stage_flops
        self.left = math.floor(share * (1 + TOLERANCE) * patches * sum(stage_flops))

    def choose(self, waiting: dict[int, tuple[int, float]]) -> list[int]:
        """The patches that run their next stage now; empty when nothing more fits. Their FLOPs are taken off the rest.

        waiting: maps a patch to its next stage and the predicted gain.
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
