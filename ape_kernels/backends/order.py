"""The order in which `run_stage` hands its patches on."""

from __future__ import annotations

import torch
from torch import Tensor


def leaving_first(leaves: Tensor) -> Tensor:
    """Positions of the patches that leave, ascending, then of those that stay, descending: int64 ``[A]``.

    leaves: bool ``[A]``. A kernel fills the result from both ends. It then needs to know no more than how many patches
    before a patch leave, to know the place of this patch.
    """
    position = torch.arange(len(leaves), device=leaves.device)
    return torch.argsort(torch.where(leaves, position, 2 * len(leaves) - position))
