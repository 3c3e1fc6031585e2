import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ape_kernels import APEForward, PatchGrid, to_program
from ape_sr.checkpoint import load_model
from ape_sr.data.degrade import bicubic_downscale, bicubic_upscale
from ape_sr.data.images import to_image, to_tensor, write_image
from ape_sr.errors import UserError
from ape_sr.evaluate import BICUBIC, FULL, PLAIN, Method, at_thresholds, evaluate, find_pairs, format_table
from ape_sr.exit_map import LEGEND, MIN_WIDTH, draw_exit_map
from ape_sr.flops import uncollapsed_flops
from ape_sr.metrics import psnr_y
from ape_sr.models import EDSR, VDSR, SwinIR
from ape_sr.weights import shipped_weights


@pytest.fixture
def network(weights):
    return APEForward(load_model(weights), 0.3, patch_size=64)


@pytest.fixture
def planned(fitted_weights):
    return APEForward(load_model(fitted_weights), patch_size=64)


@pytest.mark.parametrize("scale", [2, 4])
def test_bf16_costs_no_quality_with_the_weights_that_ship(scale, cat):
    model, lr = load_model(shipped_weights(scale)), to_tensor(bicubic_downscale(cat, scale))
    qualities = []
    for dtype in (torch.float32, torch.bfloat16):
        sr, report = APEForward(model, 0.0, dtype=dtype)(lr, return_report=True)
        assert report.share == 1
        qualities.append(psnr_y(to_image(sr), cat, scale))
    assert qualities[0] > psnr_y(bicubic_upscale(bicubic_downscale(cat, scale), scale), cat, scale) + 0.5
    assert qualities[1] == pytest.approx(qualities[0], abs=0.01)


def test_numbers_are_those_of_the_metrics(tmp_path, cat, network):
    write_image(tmp_path / "cat_HR.png", cat)
    small = bicubic_downscale(cat, 2)
    small[0, 0] = 0  # not what downscaling would give: the file must be what is read
    write_image(tmp_path / "cat_LR.png", small)
    sr = network.model(to_tensor(small))  # one patch in size, so whole is what a threshold of 0 does
    methods = [BICUBIC, PLAIN, FULL, *at_thresholds([0.0, 1.0])]
    bicubic, plain, full, deep, shallow = evaluate(network, find_pairs(tmp_path), methods)
    assert bicubic.mean("psnr_y") == pytest.approx(psnr_y(bicubic_upscale(small, 2), cat, 2))
    assert deep.mean("psnr_y") == pytest.approx(psnr_y(to_image(sr), cat, 2), abs=0.01)
    assert plain.mean("psnr_y") == pytest.approx(psnr_y(to_image(sr), cat, 2), abs=1e-9)
    assert full.mean("psnr_y") == pytest.approx(psnr_y(to_image(sr), cat, 2), abs=0.01)
    assert plain.mean("flops_share") is None and full.mean("flops_share") == deep.mean("paper_share") == 1
    assert deep.mean("flops_share") == 1 > shallow.mean("flops_share")
    assert deep.patches_per_exit[-1] == sum(deep.patches_per_exit)
    assert network.threshold == 0.3


def test_thresholds_run_patches_on_their_own(tmp_path, cat, weights):
    """Also a threshold of 0, so that thresholds compare with each other."""
    write_image(tmp_path / "cat.png", cat)
    network = APEForward(load_model(weights), patch_size=16, overlap=0)
    seen = []
    evaluate(network, find_pairs(tmp_path), [FULL, *at_thresholds([0.0])], lambda _, __, *made: seen.append(made))
    (full, whole), (patches, cut) = seen
    assert (whole.cell, cut.cell) == (48, None) and cut.exit_index.shape == (1, 4, 4)
    lr = to_tensor(bicubic_downscale(cat, 2))
    assert np.array_equal(full, to_image(network(lr)))
    on_patches = APEForward(network.model, context="patch", patch_size=16, overlap=0)
    assert np.array_equal(patches, to_image(on_patches(lr))) and not np.array_equal(patches, full)


def test_plans(tmp_path, cat, planned):
    write_image(tmp_path / "cat.png", cat)
    methods = [
        PLAIN,
        Method("fidelity", 30.0),
        Method("fidelity", 38.0),
        Method("fidelity", 70.0),
        Method("budget", 0.4),
    ]
    plain, *fidelities, budget = evaluate(planned, find_pairs(tmp_path), methods)
    shares = [row.number("flops_share") for row in fidelities]
    assert shares == sorted(shares) and shares[0] < shares[1] < 1 and budget.number("flops_share") <= 0.4
    lr = to_tensor(bicubic_downscale(cat, 2))
    plan = APEForward(planned.model, fidelity=38.0).plan(lr)
    assert shares[1] == float(plan.share) and fidelities[1].interpolated == (plan.exit_at < 0).sum() > 0
    assert sum(fidelities[1].patches_per_exit) + fidelities[1].interpolated == plan.exit_at.numel()
    assert fidelities[2].number("psnr_y") == pytest.approx(plain.number("psnr_y"), abs=0.02)
    assert fidelities[1].mean("paper_share") is None
    rows = [json.loads(json.dumps(row.as_json(), allow_nan=False)) for row in (plain, *fidelities, budget)]
    assert [row["fidelity"] for row in rows] == [None, 30, 38, 70, None] and rows[-1]["budget"] == 0.4
    assert "fidelity 38" in format_table([plain, *fidelities, budget])
    assert planned.fidelity == 48, "as it was"


def test_exit_map_of_cells_is_brighter_for_more_work(cat):
    """Three cells of a row: interpolated, first exit, last exit; the last is cut off."""
    flat = np.full_like(cat, 90)
    drawn = draw_exit_map(flat, np.array([[-1, 0, 3]] * 3), PatchGrid(50, 60, 24, 0, 2), 4, 0.4).astype(int)
    brightness = [drawn[30:40, left : left + 8].mean() for left in (4, 52, 100)]
    assert brightness == sorted(brightness) and brightness[2] > brightness[0] + 40
    levels, counts = np.unique(drawn[1:99, 1:47].reshape(-1, 3), axis=0, return_counts=True)
    assert len(levels) == 2 and 0.07 < counts[1] / counts.sum() < 0.1, "hatched, and no number, where nothing ran"
    ran = drawn[30:40, 52:60].reshape(-1, 3)
    assert np.ptp(ran, axis=0).max() == 0, "and there alone"
    assert (drawn[:100, 48] == 255).all() and (drawn[:100, 96] == 255).all(), "lines where cells end"


def test_exit_map_tints_patches_by_exit(cat):
    exits = np.array([[0, 3], [1, 3]])
    grid = PatchGrid(50, 60, 32, 4, 2)
    drawn = draw_exit_map(cat, exits, grid, 4, 0.7)
    assert drawn.shape == (100 + LEGEND, MIN_WIDTH, 3)
    picture = drawn[:100, :120].astype(int)
    spread = picture.max(axis=2) - picture.min(axis=2)
    assert spread.mean() > 20, "tinted, not grey"
    corners = [picture[5:20, 5:40].mean(axis=(0, 1)), picture[5:20, -30:-5].mean(axis=(0, 1))]
    assert np.abs(corners[0] - corners[1]).max() > 40, "different exits look different"


def test_exit_map_shows_what_was_interpolated(cat):
    """Cells, of which the last of a row is cut off, in a colour of their own."""
    grid = PatchGrid(50, 60, 32, 0, 2)
    ran, other = (draw_exit_map(cat, np.array([[0, 3], [last, 3]]), grid, 4, 0.7) for last in (1, -1))
    assert np.array_equal(ran[:64, :120], other[:64, :120]), "the cells above, and the edge between"
    lower = other[66:100, 2:40].astype(int)
    assert np.ptp(lower, axis=2).max() == 0, "grey"
    boxes = [other[-44:-40, left : left + 90].mean() for left in range(12, 500, 100)]
    assert boxes == sorted(boxes), "the legend goes from less work to more"
    tinted = [np.ptp(drawn[-44:-40, 12:100].astype(int), axis=2).max() > 0 for drawn in (other, ran)]
    assert tinted == [False, True], "grey where nothing ran, which the legend leaves away if there is none of it"


def test_the_legend_says_what_is_there(cat, monkeypatch):
    said = []
    text = Figure.text
    monkeypatch.setattr(
        Figure, "text", lambda self, x, y, words, **how: said.append(words) or text(self, x, y, words, **how)
    )
    grid = PatchGrid(50, 60, 32, 0, 2)
    draw_exit_map(cat, np.array([[0, 3], [-1, 3]]), grid, 4, 0.7)
    assert "Brighter: more of the network ran. In all 70% of the full computation." in said
    assert "Number: the exit where a part left the network, 0 the first, 3 full depth." in said
    assert "Hatched: interpolated, the network was not run." in said
    assert {"none", "0", "3", "25% of parts", "50%"} <= set(said)
    said.clear()
    draw_exit_map(cat, np.zeros((2, 2), int), grid, 1, 1.0)
    assert "0: full depth, as this network has no exits." in said and not any("Hatched" in words for words in said)


PAIR_FAULTS = {
    "size": ({"a_HR": (60, 60), "a_LR": (30, 29)}, r"a_LR\.png: expected 30x30, 1/2 of a_HR\.png, got 29x30"),
    "no-lr": ({"a_HR": (60, 60)}, r"a_HR\.png: expected a_LR\.png beside it"),
    "no-hr": ({"a_LR": (30, 30)}, r"a_LR\.png: expected a_HR\.png beside it"),
    "stray": ({"a_HR": (60, 60), "a_LR": (30, 30), "b": (60, 60)}, r"b\.png: expected a name ending in _HR or _LR"),
    "small": ({"a": (27, 60)}, r"a\.png: expected sides of at least 28 pixels, got 60x26"),
}


@pytest.mark.parametrize("case", PAIR_FAULTS)
def test_faulty_pairs_are_named(tmp_path, cat, network, case):
    sizes, message = PAIR_FAULTS[case]
    for name, (height, width) in sizes.items():
        write_image(tmp_path / f"{name}.png", cat[:height, :width])
    with pytest.raises(UserError, match=message):
        evaluate(network, find_pairs(tmp_path), [BICUBIC])


def test_the_smallest_picture_is_measured(tmp_path, cat, network):
    write_image(tmp_path / "a.png", cat[:28, :29])
    assert len(evaluate(network, find_pairs(tmp_path), [BICUBIC, PLAIN])) == 2


def test_perfect_pictures_leave_valid_json(tmp_path, cat, network):
    write_image(tmp_path / "flat.png", np.full((40, 40, 3), 77, np.uint8))
    row = evaluate(network, find_pairs(tmp_path), [BICUBIC])[0]
    assert row.mean("psnr_y") == float("inf")
    assert json.loads(json.dumps(row.as_json(), allow_nan=False))["mean"]["psnr_y"] is None


@pytest.mark.parametrize("kind, value", [("fidelity", 45.0), ("budget", 0.5)])
def test_plans_without_a_fit_are_named(tmp_path, cat, network, kind, value):
    write_image(tmp_path / "cat.png", cat)
    with pytest.raises(UserError, match=f"{kind}: expected a model that carries a fit, as .* `ape-sr fit` make it"):
        evaluate(network, find_pairs(tmp_path), [Method(kind, value)])


def test_a_budget_that_cannot_be_kept_is_named(tmp_path, cat, planned):
    write_image(tmp_path / "cat.png", cat)
    with pytest.raises(UserError, match=r"budget: expected a share from 0\.000"):
        evaluate(planned, find_pairs(tmp_path), [Method("budget", 0.0)])


def test_flops_as_the_paper_counts_them():
    """EDSR 1 block x 8 at scale 4: head, block, closing, and the tail's convolutions at 1, 2 and 4 times the size."""
    model = EDSR(4, 1, 8, 1).eval()
    (flops,) = uncollapsed_flops(model, to_program(model))
    body = 2 * 9 * (3 * 8 + 2 * 8 * 8 + 8 * 8) + 2 * 3 * 3 + 8  # with the mean shift and the exit's mean
    tail = 2 * 9 * (8 * 32 + 4 * 8 * 32 + 16 * 8 * 3) + 16 * 2 * 3 * 3
    assert flops == body + tail
    vdsr = VDSR(2, 3, 4, 1).eval()
    program = to_program(vdsr)
    assert uncollapsed_flops(vdsr, program) == [program.flops_to_stage(0)]


def test_flops_of_a_swinir():
    """Its tail's convolutions at 1 and 2 times the size stand in for the collapsed kernel's."""
    model = SwinIR(2, 12, (2,), (2,), 4, 2.0, 8, None).eval()
    program = to_program(model)
    tail = 2 * 9 * (8 * 32 + 4 * 8 * 3)
    assert uncollapsed_flops(model, program) == [program.flops_to_stage(0) - 2 * 25 * 8 * 12 + tail]
