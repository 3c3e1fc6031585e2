"""What is expected of the candidates for each cell of an image. The oracle of the native form."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ape_kernels.backends.protocol import FIRST, LEVELS, STEP, UNLIKE, FitTensors, Predictions


def predict(statistics: Tensor, fit: FitTensors, parts: int) -> Predictions:
    z = (statistics - fit.mean) / fit.deviation
    # the leverage is a quadratic form too
    forms = _quadratic(z, torch.cat([fit.quadratic, pad(fit.precision, (0, 1, 0, 1))[None]]))
    fidelity, leverage = forms[..., :-1], forms[..., -1]
    # the curve of what is needed is looked up backwards: which level is just met by the prediction
    needed = fit.needed[torch.bucketize(_pooled(kind_of(statistics), parts), fit.kinds)]  # [B, R, K, C, L]
    below = (needed <= fidelity[..., None]).sum(-1, keepdim=True)
    left = (below - 1).clamp(0, LEVELS - 2)
    low, high = needed.gather(-1, left)[..., 0], needed.gather(-1, left + 1)[..., 0]
    level = FIRST + STEP * (left[..., 0] + (fidelity - low) / (high - low))
    level = torch.where(below[..., 0] == 0, FIRST + (fidelity - low), level)
    level = torch.where(below[..., 0] == LEVELS, FIRST + STEP * (LEVELS - 1) + (fidelity - high), level)
    unlike = ((statistics < fit.low) | (statistics > fit.high)).any(-1) | (leverage > fit.leverage)
    return Predictions(fidelity.contiguous(), torch.where(unlike[..., None], level - UNLIKE, level))


def kind_of(statistics: Tensor) -> Tensor:
    """``[..., F]`` to ``[...]``: how far a few pixels stand out; low for even texture, high for lone edges."""
    return statistics[..., 4] - statistics[..., 0]


def _pooled(kind: Tensor, parts: int) -> Tensor:
    """Means of ``[B, R, K]`` over squares of parts x parts cells, for each cell."""
    means = avg_pool2d(kind[:, None], parts, ceil_mode=True)[:, 0]
    whole = means.repeat_interleave(parts, 1).repeat_interleave(parts, 2)
    return whole[:, : kind.shape[1], : kind.shape[2]].contiguous()


def _quadratic(z: Tensor, forms: Tensor) -> Tensor:
    """z' Q z, where z is ``[..., F]`` and a 1 after it, for forms Q ``[C, F + 1, F + 1]``: ``[..., C]``."""
    z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
    rows = _sum_in_order(z[..., None, i, None] * forms[:, i] for i in range(z.shape[-1]))  # [..., C, F + 1]
    return _sum_in_order(rows[..., i] * z[..., None, i] for i in range(z.shape[-1]))


def _sum_in_order(terms: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, one after the other: each element is rounded as it would be alone."""
    total = None
    for term in terms:
        total = term if total is None else total + term
    assert total is not None
    return total
