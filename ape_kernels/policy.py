"""When a patch leaves: thresholds on the predicted incremental capacity.

The regressor predicts ``1 - I`` with I = tanh(gain in dB) the incremental capacity of the stage just
run (APE paper, section 3.2). A patch leaves at the first exit where ``I < threshold``, that is where
the prediction reaches ``1 - threshold``.
"""

from __future__ import annotations

import math


def check_threshold(threshold: float) -> float:
    """The threshold as a float; ValueError unless it is a number from 0 to 1."""
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number from 0 to 1, got {threshold!r}")
    return float(threshold)


def threshold_from_gain(min_gain_db: float) -> float:
    """Threshold at which a patch leaves once a stage is predicted to bring less than `min_gain_db` dB."""
    if not isinstance(min_gain_db, (int, float)) or not min_gain_db >= 0:
        raise ValueError(f"min_gain_db: expected a number of at least 0, got {min_gain_db!r}")
    return math.tanh(min_gain_db)


def exit_boundary(threshold: float) -> float:
    """Prediction from which a patch leaves: ``1 - threshold``; infinity (never) for a threshold of 0."""
    return 1.0 - threshold if threshold > 0 else math.inf
