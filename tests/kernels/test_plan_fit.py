"""Fits and plans of a small network: what they promise whatever the network is."""

import copy
import math
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from skimage import data
from support import DEVICE, spread_network
from torch.library import opcheck

from ape_kernels import APEForward, ExitFit, NotRecognised, fit_exits, ops
from ape_kernels.backends.protocol import FIRST, LEVELS, STEP, UNLIKE, FitTensors
from ape_kernels.native import missing
from ape_kernels.plan import make_plan, plan_within
from ape_kernels.plan.fit import fingerprint_of
from ape_kernels.plan.plan import LEAST, MOST
from ape_kernels.plan.work import Work
from ape_sr.checkpoint import load_model
from ape_sr.models import RCAN
from ape_sr.weights import shipped_weights

SCALE = 2


def photos():
    """Four, float32 [1, 3, H, W], 120 to 170 pixels."""
    whole = (data.chelsea(), data.coffee(), data.astronaut(), data.rocket())
    reduced = (np.ascontiguousarray(picture[40:340:2, 60:400:2]) for picture in whole)
    return [torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255 for picture in reduced]


@pytest.fixture(scope="module")
def model():
    # stages that change less and less, so that early exits serve some cells
    model = spread_network(SCALE, 4, 8, 1)
    for number, block in enumerate(model.body[:4]):
        block.body[-1].weight.data.mul_(0.3 ** (2 * number))
    return model


@pytest.fixture(scope="module")
def fit(model):
    return fit_exits(model, photos(), cell=16)


@pytest.fixture(scope="module")
def program(model):
    return APEForward(model).program


def other_photo():
    return torch.from_numpy(data.chelsea()[100:210, 200:333].copy()).permute(2, 0, 1)[None].float() / 255


def test_fit_stays_with_the_model(model, fit):
    assert model.exit_fit is fit
    assert fit.fingerprint == fingerprint_of(model)
    assert (fit.scale, fit.stages, fit.cell, fit.value_range) == (SCALE, 4, 16, 1.0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).to("cpu")):
        assert other.exit_fit.fingerprint == fingerprint_of(other)
        assert torch.equal(other.exit_fit.needed, fit.needed)
    assert set(model.state_dict()) == set(spread_network(SCALE, 4, 8, 1).state_dict())
    assert fit.to("meta").quadratic.device.type == "meta" and fit.to("cpu") is fit


def test_it_is_copied_to_a_device_once(fit):
    """Each call of a model on a GPU would else wait for ten copies, and no graph could capture it."""
    first, second = fit.to("meta"), fit.to("meta")
    tensors = {name: value for name, value in vars(first).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 10 and all(value.is_meta for value in tensors.values())
    assert all(getattr(second, name) is value for name, value in tensors.items())
    other = replace(fit, mean=fit.mean + 1).to("meta")
    assert other.mean is not first.mean and other.needed is first.needed
    assert first.colours(torch.empty(1, 3, 8, 8, device="meta")).is_meta
    assert set(fit.state()) == set(replace(fit).state()), "nothing of it is in a file"


def test_fingerprint_follows_the_weights(model, fit):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head[0].bias[0] += 1e-3
    assert fingerprint_of(other) != fit.fingerprint


def test_state_holds_all_of_it(fit):
    state = fit.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = ExitFit.from_state(state)
    assert vars(again).keys() == vars(fit).keys()
    for name, value in vars(fit).items():
        got = getattr(again, name)
        assert torch.equal(got, value) if isinstance(value, torch.Tensor) else got == value
    with pytest.raises(ValueError, match="fit: expected version 1, got 7"):
        ExitFit.from_state(state | {"version": torch.tensor(7)})
    with pytest.raises(ValueError, match="fit: expected needed, which is missing"):
        ExitFit.from_state({name: value for name, value in state.items() if name != "needed"})


def test_predictions_are_the_quadratic_form(fit):
    statistics = fit.mean + fit.deviation * torch.randn(1, 2, 3, len(fit.mean)) * 0.3
    z = torch.cat([(statistics - fit.mean) / fit.deviation, torch.ones(1, 2, 3, 1)], -1)
    expected = torch.einsum("brki,cij,brkj->brkc", z, fit.quadratic, z)
    assert torch.allclose(fit.predict(statistics).fidelity, expected, atol=1e-3)


def test_a_level_is_the_highest_fidelity_that_a_candidate_serves(fit):
    statistics = (fit.mean + fit.deviation * torch.randn(1, 1, 400, len(fit.mean)) * 0.5).clamp(fit.low, fit.high)
    # one kind, so that its curve can be looked up here
    statistics[..., 4] = statistics[..., 0] + fit.kinds[0] - 1
    one_kind = replace(fit, leverage=torch.tensor(math.inf), low=fit.low - 9, high=fit.high + 9)
    fidelity, level = one_kind.predict(statistics)
    curve = [FIRST + STEP * i for i in range(LEVELS)]
    checked = 0
    for candidate in range(fit.stages):
        needed = fit.needed[0, candidate].numpy()
        for got, own in zip(fidelity[..., candidate].flatten().tolist(), level[..., candidate].flatten(), strict=True):
            if own < 0 or not needed[0] <= got <= needed[-1]:
                continue
            assert own == pytest.approx(np.interp(got, needed, curve), abs=1e-3)
            checked += 1
    assert checked > 100


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 5), (3, 3, 10)])
def test_native_predictions_agree(fit, shape):
    statistics = fit.mean + fit.deviation * torch.randn(*shape, len(fit.mean)) * 2  # some unlike all that was fitted
    native, plain = fit.predict(statistics, "cpu"), fit.predict(statistics, "torch")
    scale = 1 + plain.fidelity.abs()
    assert ((native.fidelity - plain.fidelity).abs() < 1e-4 * scale).all()
    near = (native.level - plain.level).abs() < 0.05 + 1e-3 * scale  # a level may change 25 times as fast as a fidelity
    assert near.all()


def test_schema_and_fake_of_predictions(fit):
    tensors = [getattr(fit, name) for name in FitTensors._fields]
    opcheck(torch.ops.ape_kernels.predict.default, (fit.mean.expand(1, 2, 3, -1).contiguous(), tensors, 3, "torch"))


def test_predictions_tell_the_distance_of_exits(model, fit, program):
    image = other_photo()
    plan = make_plan(fit, program, image, 60.0)
    fast = APEForward(model, threshold=0.0)
    pictures = fast.forward_patches(image.expand(4, -1, -1, -1), exit_at=torch.arange(4))[0].clamp(0, 1)
    height, width = (side // 16 * 16 for side in image.shape[2:])
    squares = (pictures - pictures[-1]).square().mean(1)[:, : height * SCALE, : width * SCALE]
    cells = torch.nn.functional.avg_pool2d(squares[:, None], 16 * SCALE)[:, 0].clamp_min(1e-9)
    truth = -10 * torch.log10(cells)
    expected = fit.predict(ops.statistics(image, 16, 1.0, "torch")).fidelity[0, : height // 16, : width // 16]
    for stage in range(3):
        wrong = expected[..., stage + 1] - truth[stage]
        assert wrong.square().mean().sqrt() < 0.6 * truth[stage].std() + 1.5
    assert plan.exit_at.shape == (1, 7, 9)


def test_cells_unlike_all_that_was_fitted_run_to_full_depth(fit, program):
    image = other_photo()
    image[..., 32:48, 48:64] = torch.bernoulli(torch.full((1, 3, 16, 16), 0.5))  # salt and pepper
    plan = make_plan(fit, program, image, LEAST)
    assert plan.exit_at[0, 2, 3] == fit.stages - 1
    assert (plan.exit_at < fit.stages - 1).any()


def test_budget_lets_unlike_cells_go_last(fit, program):
    image = other_photo()
    image[..., 32:48, 48:64] = torch.bernoulli(torch.full((1, 3, 16, 16), 0.5))
    least = plan_within(fit, program, image, 0.05)
    assert least.share <= 0.05
    assert LEAST - least.asked < UNLIKE or least.exit_at[0, 2, 3] == fit.stages - 1


def test_asking_for_more_runs_no_cell_less_deep(fit, program):
    image = other_photo()
    plans = [make_plan(fit, program, image, asked) for asked in (LEAST, 30.0, 40.0, 50.0, 60.0, MOST)]
    for low, high in pairwise(plans):
        assert (high.exit_at >= low.exit_at).all()
        assert high.share >= low.share and high.picture_fidelity >= low.picture_fidelity
    assert plans[0].share < plans[-1].share


@pytest.mark.parametrize("budget", [0.1, 0.3, 0.55, 0.8])
def test_a_budget_is_used_up_and_never_exceeded(fit, program, budget):
    images = torch.cat([other_photo(), other_photo().flip(3) * 0.4])
    plan = plan_within(fit, program, images, budget)
    assert (plan.share <= budget).all()
    for one, asked, share in zip(images, plan.asked, plan.share, strict=True):
        alone = plan_within(fit, program, one[None], budget)
        assert torch.equal(alone.asked[0], asked) and torch.equal(alone.share[0], share)
        if LEAST <= asked < MOST:
            assert torch.equal(make_plan(fit, program, one[None], float(asked)).exit_at, alone.exit_at)
            more = make_plan(fit, program, one[None], float(asked) + 1)
            assert more.share[0] > budget or torch.equal(more.exit_at, alone.exit_at)


def test_ends_of_the_budget(fit, program):
    image = other_photo()
    assert (plan_within(fit, program, image, 1.0).exit_at == fit.stages - 1).all()
    assert (plan_within(fit, program, image, 1.0).share == 1).all()
    candidates = Work.of(program, fit.tones is not None).candidates
    interpolated = plan_within(fit, program, image, candidates[0] / candidates[-1])
    assert (interpolated.exit_at == -1).all() and interpolated.share < 0.03


def test_costs_add_up(fit, program):
    image = other_photo()
    plan = make_plan(fit, program, image, 45.0)
    heights = torch.tensor([16] * 6 + [14.0])[:, None]
    widths = torch.tensor([16] * 8 + [5.0])[None]
    area = heights * widths
    assert float((plan.cost * area).sum() / area.sum()) == pytest.approx(float(plan.share), rel=1e-5)
    error = (10 ** (-plan.fidelity / 10) * area).sum() / area.sum()
    assert float(-10 * torch.log10(error)) == pytest.approx(float(plan.picture_fidelity), abs=1e-3)
    assert (plan.fidelity.isinf() == (plan.exit_at == fit.stages - 1)).all()


def test_the_same_plan_for_any_threads_and_batch(fit, program):
    images = torch.cat([other_photo(), other_photo().flip(2), other_photo() * 0.3])
    alone = [make_plan(fit, program, image[None], 47.3, "cpu") for image in images]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            together = make_plan(fit, program, images, 47.3, "cpu")
            for number, plan in enumerate(alone):
                assert torch.equal(together.exit_at[number], plan.exit_at[0])
                assert torch.equal(together.fidelity[number], plan.fidelity[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_backends_agree_but_for_cells_on_the_boundary(fit, program):
    image = other_photo()
    for asked in (35.0, 45.0, 55.0):
        native, plain = (make_plan(fit, program, image, asked, name) for name in ("cpu", "torch"))
        near = [make_plan(fit, program, image, asked + step, "torch").exit_at for step in (-0.01, 0.01)]
        boundary = near[0] != near[1]
        assert ((native.exit_at == plain.exit_at) | boundary).all()


def test_a_network_without_exits_is_interpolated_or_run_whole():
    torch.manual_seed(0)
    model = spread_network(SCALE, 1, 8, None)
    with torch.no_grad():  # a picture that interpolation comes close to, but for what the layers add
        for parameter in model.tail.parameters():
            parameter.mul_(0.1)
    fit = fit_exits(model, photos())
    assert fit.stages == 1 and fit.quadratic.shape[0] == 1 and fit.cell == 16
    plan = make_plan(fit, APEForward(model).program, other_photo(), 20.0)
    assert set(plan.exit_at.unique().tolist()) <= {-1, 0}
    assert (plan_within(fit, APEForward(model).program, other_photo(), 0.5).share <= 0.5).all()


class TestRefusals:
    def test_of_a_fidelity(self, fit, program):
        for asked in (19.9, 80.1, math.nan, True, "45"):
            with pytest.raises(ValueError, match=r"fidelity: expected a number of dB from 20 to 80, None .*, got"):
                make_plan(fit, program, other_photo(), asked)

    def test_of_a_budget(self, fit, program):
        for budget in (0.0, 1.1, math.nan, True):
            with pytest.raises(ValueError, match=r"budget: expected a share from .*, all interpolated, to 1, got"):
                plan_within(fit, program, other_photo(), budget)

    def test_of_a_fit_of_another_network(self, fit):
        other = APEForward(spread_network(4, 4, 8, 2)).program
        with pytest.raises(ValueError, match="exit_fit: expected one for scale 4 and 2 stages, got 2 and 4"):
            make_plan(fit, other, other_photo(), 45.0)

    def test_of_images(self, model):
        with pytest.raises(TypeError, match=r"images: expected floating-point tensors, got torch\.uint8"):
            fit_exits(model, [torch.zeros(3, 64, 64, dtype=torch.uint8)])
        with pytest.raises(ValueError, match=r"images: expected \[3, H, W\], got \[2, 3, 64, 64\]"):
            fit_exits(model, [torch.zeros(2, 3, 64, 64)])
        with pytest.raises(ValueError, match="expected at least 3 with 300 cells of 24x24 pixels, got 1 with 18"):
            fit_exits(model, [torch.rand(3, 72, 72)])

    def test_of_a_cell(self, model):
        for cell in (0, 7, 20, 96):
            with pytest.raises(ValueError, match=f"cell: expected a divisor of 48 of at least 8, got {cell}"):
                fit_exits(model, photos(), cell=cell)

    def test_of_a_network(self):
        with pytest.raises(NotRecognised):
            fit_exits(torch.nn.Linear(3, 3), photos())


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("level", [0, 1, 255])
def test_flat_pictures_are_interpolated_to_their_edges(scale, level):
    """Black and white too: bars are on many pictures, and cells that the edge cuts off are as flat."""
    fast = APEForward(load_model(shipped_weights(scale)).to(DEVICE), fidelity=45.0)
    for height, width in ((96, 96), (500, 481)):
        plan = fast.plan(torch.full((1, 3, height, width), level / 255, device=DEVICE))
        assert (plan.exit_at == -1).all()


def test_networks_that_cannot_be_planned_are_not_fitted():
    model = RCAN(2, 2, 1, 8, 4, None).eval()
    with pytest.raises(ValueError, match="model: expected a network that can be planned, got RCAN: channel attention"):
        fit_exits(model, [torch.rand(3, 64, 64)] * 3)
    with pytest.raises(ValueError, match="plan: expected a network that can be planned: channel attention"):
        APEForward(model).plan(torch.rand(1, 3, 64, 64))
