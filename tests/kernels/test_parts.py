"""Parts of an image that is not held as a whole have the whole image's plan and its pixels, bit for bit."""

import pytest
import torch
from families import randomise
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from support import DEVICE

from ape_kernels import APEForward
from ape_kernels.run.parts import Parts
from ape_kernels.run.windows import Window
from ape_sr.models import RCAN

SIDES = 700, 811
on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="other backends' parts are to rounding")


def photo():
    picture = torch.from_numpy(data.rocket().copy()).permute(2, 0, 1)[None].float() / 255
    return torch.cat([torch.cat([picture, picture.flip(3)], 3)] * 2, 2)[:, :, : SIDES[0], 300 : 300 + SIDES[1]]


def cut(image, part):
    return image[:, :, part.top : part.bottom, part.left : part.right].contiguous()


def parts_of(step, side):
    return [
        Window(top, left, min(side, SIDES[0] - top), min(side, SIDES[1] - left))
        for top in range(0, SIDES[0], side)
        for left in range(0, SIDES[1], side)
    ]


@on_cpu
@pytest.mark.parametrize("settings", [dict(fidelity=45.0), dict(fidelity=38.0), dict(budget=0.4)], ids=str)
@pytest.mark.parametrize("times", [1, 2])
def test_parts_are_the_whole_image(fitted_model, settings, times):
    fast, image = APEForward(fitted_model, **settings), photo()
    whole, runner = fast.plan(image), fast.runner()
    assert len(whole.exit_at.unique()) > 2
    parts = Parts(runner, *SIDES)
    assert parts.exact
    windows = parts_of(parts.step, times * parts.step)
    levels = None
    if "budget" in settings:
        rows = {}
        for part in windows:
            rows.setdefault(part.top, []).append(parts.levels(cut(image, parts.to_plan(part)), part))
        levels = torch.cat([torch.cat(row, 1) for row in rows.values()])
    asked = parts.asked(levels)
    assert asked == float(whole.asked[0])
    picture, work, error = fast(image), 0.0, 0.0
    for part in windows:
        run = parts.to_run(part)
        plan = parts.plan(cut(image, parts.to_plan(run)), run, asked)
        spans = (run.top, run.bottom), (run.left, run.right)
        rows, columns = (slice(begin // whole.cell, -(-end // whole.cell)) for begin, end in spans)
        for name in ("exit_at", "fidelity", "cost"):
            assert torch.equal(getattr(plan, name), getattr(whole, name)[:, rows, columns]), name
        made, _ = runner.run(cut(image, run), plan=plan, report=False)
        to, at = part.scaled(fast.scale), run.scaled(fast.scale)
        inside = Window(to.top - at.top, to.left - at.left, to.height, to.width)
        assert torch.equal(cut(made, inside), cut(picture, to))
        of_part = parts.within(plan, part, run)
        work, error = work + of_part[0], error + of_part[1]
    area = SIDES[0] * SIDES[1]
    assert work / area == pytest.approx(float(whole.share[0]), rel=1e-6)
    assert error / area == pytest.approx(10 ** (-float(whole.picture_fidelity[0]) / 10), rel=1e-5)


@on_cpu
@given(place=st.tuples(st.integers(0, 40), st.integers(0, 40)), cells=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_plan_needs_what_is_said_to_be_seen(fitted_model, place, cells):
    fast, image = APEForward(fitted_model, fidelity=45.0), photo()
    whole = fast.plan(image)
    parts, cell = Parts(fast.runner(), *SIDES), whole.cell
    top, left = (min(at, -(-side // cell) - 1) * cell for at, side in zip(place, SIDES, strict=True))
    part = Window(top, left, min(cells[0] * cell, SIDES[0] - top), min(cells[1] * cell, SIDES[1] - left))
    plan = parts.plan(cut(image, parts.to_plan(part)), part, 45.0)
    assert torch.equal(
        plan.exit_at,
        whole.exit_at[:, top // cell : -(-part.bottom // cell), left // cell : -(-part.right // cell)],
    )


def test_without_a_plan_nothing_is_asked(fitted_model):
    parts = Parts(APEForward(fitted_model, fidelity=None).runner(), *SIDES)
    part = Window(0, 0, 96, 96)
    assert parts.asked(None) is None and parts.to_plan(part) == part


def test_networks_on_patches_are_refused():
    runner = APEForward(randomise(RCAN(2, 2, 1, 8, 4, None)).eval()).runner()
    with pytest.raises(ValueError, match="runner: expected one that runs images on shared feature maps: "):
        Parts(runner, 10, 10)
