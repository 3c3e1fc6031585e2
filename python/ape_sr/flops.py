"""FLOPs as the paper counts them: with the tail as the network has it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ape_kernels.program import PatchProgram
from ape_sr.models import ExitNetwork

SIDE = 8  # low-resolution pixels of the patch that is counted on


def uncollapsed_flops(model: nn.Module, program: PatchProgram) -> list[int]:
    """FLOPs per low-resolution pixel of a patch that leaves after each stage, its tail not collapsed.

    model: the network of `program`, with `reconstruct` where its tail is linear. Equal to the program's own count for
    networks whose tail does not collapse, and for those that are not of `ape_sr.models`.
    """
    flops = [program.flops_to_stage(stage) for stage in range(len(program.stages))]
    last = program.reconstruct
    if len(last.tail.kernel) == 1 or not isinstance(model, ExitNetwork):
        return flops
    parameter = next(model.parameters())
    features = parameter.new_zeros(1, program.buffers[last.src].channels, SIDE, SIDE)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.reconstruct(features)
    return [count - last.flops_per_pixel + counter.get_total_flops() // SIDE**2 for count in flops]
