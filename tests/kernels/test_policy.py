"""What decides how far images run: a fidelity or a budget, planned beforehand, or a threshold on patches."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from families import randomise
from skimage import data
from support import DEVICE, assert_pictures_close, spread_network, test_patches

from ape_kernels import APEForward
from ape_kernels.plan import make_plan
from ape_sr.models import RCAN, SwinIR

CELL = 24  # of the fit
LAST = 5  # stage of the fitted model


@pytest.fixture(scope="module")
def photo():
    """Fur beside a smooth ground, [1, 3, 100, 120]: cells differ, and the last ones are cut off."""
    return torch.from_numpy(data.chelsea()[60:160, 100:220].copy()).permute(2, 0, 1)[None].float().to(DEVICE) / 255


def without_fit(model):
    model = copy.deepcopy(model)
    model.exit_fit = None
    return model


class TestDefault:
    def test_without_a_fit_images_run_to_full_depth(self, photo, backend):
        model = spread_network(2, exit_threshold=0.2)  # its own threshold is for patches alone
        fast = APEForward(model, backend=backend)
        sr, report = fast(photo, return_report=True)
        assert (fast.context, fast.fidelity, fast.threshold) == ("model", None, pytest.approx(0.8))
        assert_pictures_close(sr, model(photo))
        assert report.share == 1 and report.plan is None and report.cell == 48
        assert (fast.forward_patches(photo)[1] < 3).any()

    def test_with_a_fit_they_run_as_it_says(self, fitted_model, photo, backend):
        fast = APEForward(fitted_model, backend=backend)
        sr, report = fast(photo, return_report=True)
        assert fast.fidelity == fitted_model.exit_fit.default == 48
        assert torch.equal(report.exit_index, fast.plan(photo).exit_at) and report.cell == CELL
        assert len(report.exit_index.unique()) > 3 and report.share < 0.9
        assert torch.equal(sr, APEForward(fitted_model, fidelity=48, backend=backend)(photo))

    def test_none_is_full_depth(self, fitted_model, photo, backend):
        fast = APEForward(fitted_model, fidelity=None, backend=backend)
        assert_pictures_close(fast(photo), fitted_model(photo))
        fast.fidelity = "auto"
        assert fast.fidelity == 48

    @pytest.mark.parametrize("model", [RCAN(2, 2, 1, 8, 4, None).eval(), spread_network()], ids=["RCAN", "threshold"])
    def test_on_patches(self, model):
        """A network that reads the whole patch at once, and the paper's rule."""
        fast = APEForward(model.to(DEVICE), threshold=0.3)
        fast.patch_size = 12
        report = fast(test_patches(1, 20, 30), return_report=True)[1]
        assert fast.context == "patch" and fast.fidelity is None
        assert report.cell is None and report.exit_index.shape == (1, 2, 3)


class TestFidelity:
    def test_the_picture_is_that_of_the_plan(self, fitted_model, photo, backend):
        fast = APEForward(fitted_model, fidelity=42.0, backend=backend)
        plan = fast.plan(photo)
        assert torch.equal(plan.exit_at, make_plan(fitted_model.exit_fit, fast.program, photo, 42.0, backend).exit_at)
        sr, report = fast(photo, return_report=True)
        own = APEForward(fitted_model, cell=CELL, backend=backend)
        assert torch.equal(sr, own(photo, exit_at=plan.exit_at))
        other = APEForward(fitted_model, threshold=0.0, backend=backend)
        assert torch.equal(sr, other(photo, plan=plan))
        assert report.interpolated == (plan.exit_at < 0).sum() > 0
        assert report.share == pytest.approx(float(plan.share)) and torch.equal(report.plan.exit_at, plan.exit_at)
        assert len(report.patches_per_exit) == LAST + 1
        assert report.patches_per_exit.sum() + report.interpolated == report.exit_index.numel()

    def test_what_was_asked_comes_out(self, fitted_model, photo, backend):
        full = fitted_model(photo).clamp(0, 1)
        for asked in (38.0, 45.0):
            sr = APEForward(fitted_model, fidelity=asked, backend=backend)(photo).clamp(0, 1)
            assert -10 * torch.log10((sr - full).square().mean()) >= asked

    def test_follows_the_fit_that_the_model_carries(self, fitted_model, photo):
        model = copy.deepcopy(fitted_model)
        fast = APEForward(model)
        before = fast.plan(photo).share
        model.exit_fit = replace(model.exit_fit, default=35.0)
        assert fast.plan(photo).share < before

    def test_copies_and_pickles(self, fitted_model, photo):
        fast = APEForward(fitted_model, fidelity=42.0)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other(photo), fast(photo))

    def test_compiles_to_one_graph(self, fitted_model, photo):
        fast = APEForward(fitted_model, fidelity=42.0)
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(photo), fast(photo))


class TestBudget:
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.77, 1.0])
    def test_is_kept_by_each_image_and_used(self, fitted_model, photo, backend, share):
        images = torch.cat([photo, photo.flip(2) * 0.3])
        fast = APEForward(fitted_model, budget=share, backend=backend)
        plan = fast(images, return_report=True)[1].plan
        assert (plan.share <= share).all()
        assert share == 0.02 or (plan.share > share - 0.1).all(), "no cell takes as much"
        for i in range(2):
            assert torch.equal(plan.exit_at[i], fast.plan(images[i : i + 1]).exit_at[0])

    def test_is_spent_where_it_is_needed(self, fitted_model, photo):
        added = fitted_model(photo) - torch.nn.functional.interpolate(photo, scale_factor=2, mode="bicubic")
        squares = torch.nn.functional.avg_pool2d(added.square().mean(1), 2 * CELL)[0].flatten()
        exit_at = APEForward(fitted_model, budget=0.4).plan(photo).exit_at[0, :4].flatten().float()
        ranked = exit_at[squares.argsort()]
        assert ranked[-7:].mean() > ranked[:7].mean() + 2

    @pytest.mark.parametrize("bad", [0, 1e-5, 1.1, "half", True, float("nan")])
    def test_bad_budgets(self, fitted_model, bad):
        message = "budget: expected a share from 0.000.*, all interpolated, to 1, got"
        with pytest.raises(ValueError, match=message):
            APEForward(fitted_model, budget=bad)
        fast = APEForward(fitted_model, fidelity=42.0)
        with pytest.raises(ValueError, match=message):
            fast.budget = bad
        assert (fast.fidelity, fast.budget) == (42.0, None), "what was there is still there"


def test_one_ends_the_other(fitted_model, photo):
    fast = APEForward(fitted_model, fidelity=42.0)
    assert (fast.fidelity, fast.budget, fast.context) == (42.0, None, "model")
    fast.budget = 0.3
    assert (fast.fidelity, fast.budget) == (None, 0.3)
    assert fast(photo, return_report=True)[1].share <= 0.3
    fast.threshold = 0.2
    assert (fast.threshold, fast.fidelity, fast.budget, fast.context) == (0.2, None, None, "patch")
    fast.fidelity = 50
    assert (fast.fidelity, fast.context) == (50, "model")
    fast.budget = None
    assert fast.fidelity == 48, "as without any"


@pytest.mark.parametrize(
    "settings",
    [
        dict(threshold=0.1, min_gain_db=1),
        dict(threshold=0.0, fidelity=45.0),
        dict(min_gain_db=0.1, fidelity=None),
        dict(threshold=0.5, budget=0.5),
        dict(budget=0.5, fidelity=45.0),
    ],
    ids=" and ".join,
)
def test_they_exclude_each_other(fitted_model, settings):
    names = " and ".join(
        f"{name} {value}" for name, value in sorted(settings.items(), key=lambda s: s[0] == "fidelity")
    )
    with pytest.raises(ValueError, match=f"expected at most one of threshold, min_gain_db, .*, got {names}"):
        APEForward(fitted_model, **settings)


@pytest.mark.parametrize("settings", [dict(fidelity=45.0), dict(budget=0.5)], ids="".join)
class TestRefusals:
    def test_without_a_fit(self, fitted_model, settings):
        (name,) = settings
        message = f"{name}: expected a model that carries a fit, as ape_kernels.fit_exits.* and `ape-sr fit` make it"
        with pytest.raises(ValueError, match=message):
            APEForward(without_fit(fitted_model), **settings)

    def test_on_patches(self, fitted_model, settings):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}: expected None with the context 'patch'"):
            APEForward(fitted_model, context="patch", **settings)
        with pytest.raises(ValueError, match=f"{name}: expected none for patches"):
            APEForward(fitted_model, **settings).forward_patches(test_patches(2))
        sr, exits, _ = APEForward(fitted_model, **settings).forward_patches(
            test_patches(2), torch.tensor([0, 3], device=DEVICE)
        )
        assert exits.tolist() == [0, 3] and sr.shape == (2, 3, 24, 24)

    def test_of_another_network(self, fitted_model, settings):
        other = spread_network(2, 4, 8, 1)
        other.exit_fit = fitted_model.exit_fit
        with pytest.raises(ValueError, match="exit_fit: expected one for scale 2 and 4 stages, got 2 and 6"):
            APEForward(other, **settings)


@pytest.mark.parametrize("bad", [19.9, 81, "45", True, float("nan")])
def test_bad_fidelities(fitted_model, bad):
    with pytest.raises(
        ValueError, match=r"fidelity: expected a number of dB from 20 to 80, None \(full depth\) or 'auto' .*, got"
    ):
        APEForward(fitted_model, fidelity=bad)
    fast = APEForward(fitted_model)
    with pytest.raises(
        ValueError, match=r"fidelity: expected a number of dB from 20 to 80, None \(full depth\) or 'auto' .*, got"
    ):
        fast.fidelity = bad


def test_nothing_to_plan(photo):
    with pytest.raises(ValueError, match=r"plan: expected a fidelity or a budget, and a model that carries a fit"):
        APEForward(spread_network(2)).plan(photo)


class TestExitAt:
    """Depths that are given to the call."""

    @pytest.fixture
    def fast(self, backend):
        return APEForward(spread_network(2), cell=24, backend=backend)

    def test_each_cell_runs_so_far(self, fast, photo):
        exit_at = torch.arange(25, device=DEVICE).view(1, 5, 5) % 5 - 1
        sr, report = fast(photo, return_report=True, exit_at=exit_at)
        assert torch.equal(report.exit_index, exit_at)
        assert report.patches_per_exit.tolist() == [5] * 4 and report.interpolated == 5
        bicubic = torch.nn.functional.interpolate(photo, scale_factor=2, mode="bicubic")
        assert_pictures_close(sr[..., :48], bicubic[..., :48])
        assert (sr - fast(photo))[..., 96:144].abs().max() > 1e-3, "not full depth"
        areas = torch.tensor([24, 24, 24, 24, 4.0])[:, None] * 24
        flops = [0, *(fast.program.flops_to_stage(stage) for stage in range(4))]
        done = sum(float(areas.sum()) * flops[column] for column in range(5))
        assert report.flops == done and report.flops_full == 100 * 120 * flops[-1]

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda e: e - 1, r"exit_at: expected -1 to 3, got -2 to -2"),
            (lambda e: e + 5, r"exit_at: expected -1 to 3, got 4 to 4"),
            (lambda e: e[:, 1:], r"exit_at: expected int64 \[1, 5, 5\] on .*, got torch.int64 \[1, 4, 5\]"),
            (lambda e: e.int(), r"exit_at: expected int64 \[1, 5, 5\] on .*, got torch.int32"),
        ],
        ids=["low", "high", "shape", "dtype"],
    )
    def test_bad_depths(self, fast, photo, change, message):
        with pytest.raises(ValueError, match=message):
            fast(photo, exit_at=change(torch.full((1, 5, 5), -1, device=DEVICE)))

    def test_not_on_patches_and_not_with_a_plan(self, fitted_model, photo):
        exit_at = torch.zeros(1, 5, 5, dtype=torch.int64, device=DEVICE)
        plan = APEForward(fitted_model).plan(photo)
        with pytest.raises(ValueError, match="exit_at: expected None for patches on their own"):
            APEForward(fitted_model, 0.3)(photo, exit_at=exit_at)
        with pytest.raises(ValueError, match="plan: expected None for patches on their own"):
            APEForward(fitted_model, 0.3)(photo, plan=plan)
        with pytest.raises(ValueError, match="plan: expected None with exit_at, got both"):
            APEForward(fitted_model)(photo, exit_at=exit_at, plan=plan)
        with pytest.raises(ValueError, match=r"plan.exit_at: expected int64 \[1, 2, 2\]"):
            APEForward(fitted_model)(photo[..., :48, :48], plan=plan)
        with pytest.raises(TypeError, match=r"exit_at: expected a torch.Tensor, int64 .*, got list"):
            APEForward(fitted_model)(photo, exit_at=[[[0]]])


def test_contexts(fitted_model):
    with pytest.raises(ValueError, match="context: expected 'patch' with a threshold above 0, got 'model'"):
        APEForward(fitted_model, 0.1, context="model")
    with pytest.raises(ValueError, match="context: expected one of model, patch, got 'whole'"):
        APEForward(fitted_model, context="whole")
    with pytest.raises(ValueError, match="cell: expected a multiple of 1 pixels, at least 1, got 0"):
        APEForward(fitted_model, cell=0)


@pytest.mark.parametrize("size", [(21, 70), (64, 40)], ids=str)
@pytest.mark.parametrize("network", ["rcan", "swinir"])
def test_networks_that_read_the_whole_patch_have_the_whole_image_for_one(network, size):
    """Their own picture in the context "model"; "patch" is the default, and with it another one."""
    make = {
        "rcan": lambda: RCAN(2, 2, 1, 16, 4, None),
        "swinir": lambda: SwinIR(2, 12, (2,), (2,), 4, n_feats=8, exit_interval=None),
    }
    model = randomise(make[network]()).to(DEVICE)
    image = test_patches(2, *size)
    fast = APEForward(model, context="model", patch_size=12)
    picture, report = fast(image, return_report=True)
    assert_pictures_close(picture, model(image))
    assert report.share == 1 and report.exit_index.shape == (2, 1, 1)
    apart = APEForward(model, patch_size=12)
    assert apart.context == "patch" and (apart(image) - picture).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"exit_at: expected None for patches on their own: .* the whole patch"):
        fast(image, exit_at=torch.zeros(2, 1, 1, dtype=torch.int64, device=DEVICE))
    with pytest.raises(ValueError, match=r"fidelity: expected None for this network: .* the whole patch"):
        fast.fidelity = 45


def test_a_fit_of_other_weights_is_refused(fitted_model, photo):
    model = copy.deepcopy(fitted_model)
    fast = APEForward(model)
    before = fast(photo)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    with pytest.raises(ValueError, match="exit_fit: expected one of the model's weights as they are now, got one of"):
        fast(photo)
    with pytest.raises(ValueError, match="exit_fit: expected one of the model's weights"):
        fast.plan(photo)
    fast.fidelity = None
    assert_pictures_close(fast(photo), model(photo))
    fast.fidelity = "auto"
    model.exit_fit = None
    assert_pictures_close(fast(photo), model(photo))
    assert torch.equal(APEForward(fitted_model)(photo), before)
    half = copy.deepcopy(fitted_model).bfloat16()
    assert APEForward(half)(photo.bfloat16(), return_report=True)[1].plan is not None
