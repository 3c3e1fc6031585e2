"""What is printed of reports, plans and all else that holds tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import data
from support import DEVICE, spread_network

import ape_sr
from ape_kernels import APEForward, Wish, pack, to_program
from ape_kernels.brief import brief
from ape_sr.checkpoint import save_model
from ape_sr.models import RCAN


@pytest.fixture(scope="module")
def image():
    """Two parts of a photograph, float32 [2, 3, 100, 60]."""
    photo = torch.from_numpy(data.coffee()[:200:2, :240:2]).permute(2, 0, 1).float() / 255
    return torch.stack([photo[..., :60], photo[..., 60:]]).to(DEVICE)


def test_a_report_says_shape_share_fidelity_and_depth(fitted_model, image):
    fast = APEForward(fitted_model, fidelity=30.0)
    _, report = fast(image, return_report=True)
    _, whole = APEForward(fitted_model, fidelity=None)(image, return_report=True)
    words = [
        "2x5x3 cells of 24 pixels",
        f"{report.share:.1%} of the computation",
        f"{report.plan.picture_fidelity.mean():.1f} dB expected to full depth",
        f"{report.interpolated / 30:.0%} interpolated",
        f"mean exit {report.mean_exit:.2f} of 0..5",
    ]
    assert 0 < report.interpolated < 30 and repr(report) == f"Report({', '.join(words)})"
    assert repr(whole) == "Report(2x3x2 cells of 48 pixels, 100.0% of the computation, mean exit 5.00 of 0..5)"
    interpolated = fast(image, exit_at=torch.full((2, 3, 2), -1, device=DEVICE), return_report=True)[1]
    assert repr(interpolated) == "Report(2x3x2 cells of 48 pixels, 0.0% of the computation, 100% interpolated)"
    _, patches = APEForward(fitted_model, 0.2)(image, return_report=True)
    assert repr(patches).startswith(f"Report(2x3x2 patches, {patches.share:.1%} of the computation, mean exit ")
    assert repr(fast(image[:0], return_report=True)[1]) == "Report(0x5x3 cells of 24 pixels, no images)"


def test_a_plan_says_what_was_asked_and_what_is_expected(fitted_model, image):
    fast = APEForward(fitted_model, fidelity=42.0)
    plan = fast.plan(image)
    share = f"{plan.share.mean():.1%} of the computation"
    assert repr(plan).startswith(f"Plan(2x5x3 cells of 24 pixels, 42 dB asked, {share}, ")
    assert "asked" in repr(replace(plan, asked=torch.tensor([40.0, 50.0])))
    fast.budget = 0.3
    assert "asked" not in repr(fast.plan(image))
    assert repr(fast.plan(image[:0])).endswith("no images)")


def test_all_else_is_a_line_without_values(fitted_model, tmp_path):
    program = to_program(fitted_model)
    packed = pack(fitted_model, Wish())
    attention = to_program(RCAN(2, 4, 2, 2, 2))
    save_model(tmp_path / "fitted.safetensors", fitted_model)
    upscaler = ape_sr.load(tmp_path / "fitted.safetensors")
    values = [
        *(fitted_model.exit_fit, program, packed, packed.tensors, upscaler, upscaler.network.runner(), attention),
        *(program.stages[0], *program.steps(), *attention.steps(), program.reconstruct.tail),
        upscaler.upscale(np.zeros((50, 60, 3), np.uint8), return_report=True)[1],
        upscaler.network.plan(torch.zeros(1, 3, 50, 60, device=DEVICE)),
    ]
    for value in values:
        text = repr(value)
        assert text.startswith(f"{type(value).__name__}(") and len(text) < 900, text
        assert "tensor(" not in text and "\n" not in text and " object at " not in text, text
    assert repr(program).startswith("PatchProgram(x2, 3 to 3 channels, 6 stages, 6 with an exit, ")
    assert repr(fitted_model.exit_fit).startswith("ExitFit(x2, 6 stages, cells of 24 pixels, 48 dB by default, ")
    assert repr(upscaler).startswith("Upscaler(EDSR x2, fidelity 48 dB, backend ")


@pytest.mark.parametrize(
    ("settings", "depth"),
    [
        (dict(fidelity=None), "full depth"),
        (dict(budget=0.5), "budget 0.5"),
        (dict(threshold=0.2), "threshold 0.2"),
        (dict(fidelity=40), "fidelity 40 dB"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_an_upscaler_says_how_far_it_runs(settings, depth):
    assert f", {depth}, " in repr(ape_sr.load("edsr-12x32-x2", **settings))


def test_nested_values():
    assert brief((1, (torch.zeros(2, 3), np.zeros(4, np.uint8)))) == "(1, (float32[2, 3]@cpu, uint8[4]))"
    assert brief(spread_network()) == "EDSR"
