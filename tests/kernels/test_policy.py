"""Policies: thresholds, and budgets spent where the predicted gain is highest."""

import heapq

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import DEVICE, assert_pictures_close, spread_network, test_patches
from test_rrdb import BasicSR as RRDBNet
from torch.library import opcheck

from ape_kernels import APEForward, PatchGrid, add_exits, all_exits
from ape_kernels.policy import Budget, check_budget
from ape_kernels.run import merge, split

PATCH, OVERLAP = 8, 2
SHARES = (0.25, 0.3, 0.5, 0.77, 1.0)


@pytest.fixture(scope="module")
def model():
    return spread_network()


@pytest.fixture(scope="module")
def photo():
    """Patches of differing contrast beside each other, [1, 3, 62, 50]."""
    contrast = torch.rand(1, 3, 8, 7, generator=torch.Generator().manual_seed(3)).repeat_interleave(8, 2)
    return test_patches(1, 62, 50) * contrast.repeat_interleave(8, 3)[:, :, :62, :50].to(DEVICE)


def within(model, backend, budget, **options) -> APEForward:
    return APEForward(model, budget=budget, patch_size=PATCH, overlap=OVERLAP, backend=backend, **options)


def predicted_gains(model, photo) -> torch.Tensor:
    """``[patches, exits]``."""
    patches = split(PatchGrid(*photo.shape[2:], PATCH, OVERLAP), photo)
    return torch.stack([1 - p[:, 0] for p in all_exits(model, patches)[1]], dim=1).detach()


def best_first(gains: torch.Tensor, stages: int) -> list[int]:
    """Exits when stages of equal cost are handed out one by one, each to the patch with the highest predicted gain."""
    depth = [0] * len(gains)
    heap = [(-gain, patch) for patch, gain in enumerate(gains[:, 0].tolist())]
    heapq.heapify(heap)
    for _ in range(stages - len(gains)):
        if not heap:
            break
        _, patch = heapq.heappop(heap)
        depth[patch] += 1
        if depth[patch] + 1 < gains.shape[1]:
            heapq.heappush(heap, (-float(gains[patch, depth[patch]]), patch))
    return depth


@pytest.mark.parametrize("share", SHARES)
def test_a_budget_is_kept_and_used(model, photo, backend, share):
    _, report = within(model, backend, share)(photo, return_report=True)
    assert report.body_flops <= share * report.body_flops_full * (1 + 1e-9)
    assert (
        report.body_flops + report.body_flops_full / report.patches_per_exit.sum() / 4 > share * report.body_flops_full
    )


@pytest.mark.parametrize("share", SHARES)
def test_it_is_spent_where_the_predicted_gain_is_highest(model, photo, backend, share):
    gains = predicted_gains(model, photo)
    _, report = within(model, backend, share)(photo, return_report=True)
    got = report.exit_index.flatten().tolist()
    expected = best_first(gains, int(share * gains.numel() + 1e-6))
    assert sum(got) == sum(expected)
    assert sum(a == b for a, b in zip(got, expected, strict=True)) >= 0.8 * len(got), "rounds are not quite one by one"
    bought = [
        sum(sum(row[:depth]) for row, depth in zip(gains.tolist(), depths, strict=True)) for depths in (got, expected)
    ]
    uniform = gains[:, : gains.shape[1] - 1].sum() * sum(expected) / (len(got) * (gains.shape[1] - 1))
    assert bought[0] >= 0.98 * bought[1]
    assert share in (0.25, 1.0) or bought[0] > 1.1 * uniform


@pytest.mark.parametrize("share", SHARES)
def test_the_picture_is_that_of_the_chosen_exits(model, photo, backend, share):
    fast = within(model, backend, share)
    sr, report = fast(photo, return_report=True)
    grid = PatchGrid(*photo.shape[2:], PATCH, OVERLAP, fast.scale)
    patches, _, capacity = fast.forward_patches(
        split(PatchGrid(*photo.shape[2:], PATCH, OVERLAP), photo), report.exit_index.flatten()
    )
    assert_pictures_close(sr, merge(grid, patches), 1e-5)
    torch.testing.assert_close(report.capacity.flatten(), capacity, atol=1e-5, rtol=0)


def test_each_image_of_a_batch_has_its_own(model, photo, backend):
    dark = torch.cat([photo, photo.flip(2) * 0.3])
    fast = within(model, backend, 0.5)
    _, report = fast(dark, return_report=True)
    for i in range(2):
        alone = fast(dark[i : i + 1], return_report=True)[1].exit_index
        assert torch.equal(report.exit_index[i : i + 1], alone)


def test_a_threshold_holds_within_a_budget(model, photo, backend):
    lone = APEForward(model, 0.5, patch_size=PATCH, overlap=OVERLAP, backend=backend)
    _, report = lone(photo, return_report=True)
    _, ample = within(model, backend, 1.0, threshold=0.5)(photo, return_report=True)
    assert torch.equal(report.exit_index, ample.exit_index)
    _, scarce = within(model, backend, 0.4, threshold=0.5)(photo, return_report=True)
    assert scarce.body_share <= 0.4 < report.body_share
    assert (scarce.exit_index <= report.exit_index).all()


def test_can_be_set_and_taken_back_between_calls(model, photo):
    fast = APEForward(model, 0.0, patch_size=PATCH)
    full = fast(photo)
    fast.budget = 0.3
    assert fast(photo, return_report=True)[1].body_share <= 0.3
    fast.budget = None
    assert torch.equal(fast(photo), full)


@pytest.mark.parametrize("bad", [0, 0.2, 1.1, "half", True, float("nan")])
def test_bad_budgets(model, bad):
    message = "budget: expected a share from 0.250, what the first exit takes, to 1, got"
    with pytest.raises(ValueError, match=message):
        APEForward(model, budget=bad)
    fast = APEForward(model)
    with pytest.raises(ValueError, match=message):
        fast.budget = bad


def test_a_network_without_exits_has_nothing_to_save():
    with pytest.raises(ValueError, match=r"budget: expected a share from 1\.000"):
        APEForward(spread_network(2, 2, 8, None), budget=0.5)


def test_patches_alone_have_no_budget(model):
    with pytest.raises(ValueError, match="budget: expected None for patches"):
        APEForward(model, budget=0.5).forward_patches(test_patches(2))


def test_operation(model, photo, backend):
    packed = within(model, backend, 0.5).packed
    geometry = (PATCH, OVERLAP, "linear", packed.upscale, packed.out_channels, 1, backend)
    budget = (0.5, packed.frame.table, packed.frame.weights, packed.program.stage_flops)
    arguments = (photo, packed.table, packed.weights, 0.5, None, *geometry, *budget)
    opcheck(torch.ops.ape_kernels.upscale.default, arguments)


def test_compiles_to_one_operation(model, photo):
    fast = within(model, "auto", 0.5)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(photo), fast(photo))


@given(
    costs=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    patches=st.integers(1, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_never_more_than_the_budget_and_no_stage_left_that_fits(costs, patches, share, seed):
    least = costs[0] / sum(costs)
    share = check_budget(max(share, least), costs)
    budget = Budget(share, patches, costs)
    budget.left -= patches * costs[0]
    generator = torch.Generator().manual_seed(seed)
    waiting = {p: (1, float(torch.rand(1, generator=generator))) for p in range(patches)} if len(costs) > 1 else {}
    spent = patches * costs[0]
    while chosen := budget.choose(waiting):
        for patch in chosen:
            stage, _ = waiting.pop(patch)
            spent += costs[stage]
            if stage + 1 < len(costs):
                waiting[patch] = (stage + 1, float(torch.rand(1, generator=generator)))
    assert spent <= share * patches * sum(costs) * (1 + 1e-8)
    assert all(spent + costs[stage] > share * patches * sum(costs) for stage, _ in waiting.values())


def test_a_network_that_folds_pixels_keeps_its_budget():
    model = add_exits(RRDBNet(scale=2).eval().requires_grad_(False), every=1)
    model.regressor.requires_grad_(False)[2].weight.copy_(torch.randn(1, 8, generator=torch.Generator().manual_seed(0)))
    picture = test_patches(1, 27, 30)
    fast = APEForward(model, budget=0.6, patch_size=12)
    sr, report = fast(picture, return_report=True)
    assert sr.shape == (1, 3, 54, 60) and report.body_share <= 0.6
    fast.budget = 1.0
    full = fast(picture)
    fast.budget = None
    assert_pictures_close(full, fast(picture), 1e-5)
