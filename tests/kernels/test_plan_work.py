"""What plans cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import spread_network

from ape_kernels import to_program
from ape_kernels.plan.work import Work, areas, ring_pixels


@given(
    st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 16, 24]), st.integers(0, 4), st.integers(0, 2**32 - 1)
)
def test_rings_are_what_lies_beside_active_cells(height, width, cell, ring, seed):
    heights, widths = areas(height, width, cell, torch.device("cpu"))
    assert heights.sum() == height and widths.sum() == width
    active = torch.rand(2, heights.numel(), widths.numel(), generator=torch.Generator().manual_seed(seed)) < 0.3
    pixels = active.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width].float()[:, None]
    around = torch.nn.functional.max_pool2d(pixels, 2 * ring + 1, 1, ring) - pixels
    expected = [
        [[int(column.sum()) for column in row.split(cell, 1)] for row in picture.split(cell, 0)]
        for picture in around[:, 0]
    ]
    assert ring_pixels(active, heights, widths, ring).tolist() == expected


def test_work_of_a_program():
    program = to_program(spread_network(2, 4, 8, 2))
    work = Work.of(program)
    assert len(work.candidates) == 1 + len(program.stages)
    assert work.candidates[1:] == tuple(program.flops_to_stage(i) for i in range(len(program.stages)))
    assert work.candidates[0] == 3 * (4 * 2 * 2 + 4 * 2 * 2 * 2)  # 2 taps' FLOPs times 4 taps: down once, across twice
    head_and_tail = program.flops_to_stage(0) - program.body_flops_to_stage(0)
    tail = head_and_tail - program.head_flops
    assert work.ring == work.candidates[1] - tail
    assert Work.of(program, tones=True).candidates[0] > work.candidates[0]
    assert work.candidates == pytest.approx(sorted(work.candidates))
