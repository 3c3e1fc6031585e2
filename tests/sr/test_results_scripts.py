"""The measures behind docs/results.md."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ape_kernels import APEForward, PatchGrid
from ape_sr.checkpoint import load_model
from ape_sr.data.degrade import bicubic_downscale
from ape_sr.data.images import to_tensor
from ape_sr.evaluate import find_pairs
from ape_sr.metrics import LUMA

BENCH = Path(__file__).parents[2] / "bench"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def curves():
    return script("curves")


@pytest.mark.parametrize("overlap, lines", [(0, 3), (2, 4)])
def test_a_step_at_a_border_is_the_excess(cat, overlap, lines):
    """lines: along each axis, where one of its three patches begins or ends within the picture."""
    seams, grid = script("seams"), PatchGrid(50, 60, 24, overlap, 2)
    assert seams.excess(cat, cat, grid) == 0
    flat = np.full((100, 120, 3), 80, np.uint8)
    stepped = flat.copy()
    stepped[:, 2 * (24 - overlap) :] += 30  # where the second column of patches begins
    assert seams.excess(stepped, flat, grid) == pytest.approx(30 * LUMA.sum() * 100 / (lines * (100 + 120)))
    away = flat.copy()
    away[:, 20:] += 30
    assert seams.excess(away, flat, grid) == 0


def test_saving_is_read_between_the_points(curves):
    curve = curves.Curve([0, 1, 2], [31.0, 30.99, 30.95], [1.0, 0.8, 0.4], [1.0, 0.9, 0.7], [1.0, 0.95, 0.9])
    assert curve.saving(31.0) == pytest.approx(1 - (0.8 - 0.4 / 4))  # 0.02 of 31 lies a quarter of the way on
    assert curve.saving(31.0, "flops") == pytest.approx(1 - (0.9 - 0.2 / 4))
    assert curve.at(0.6) == pytest.approx(30.97)


def test_recorded_rules_do_what_the_network_does(curves, photos, weights):
    network = APEForward(load_model(weights), 0.0, patch_size=16)
    weight, bias = curves.regressor_of(network.model)
    rule = curves.thresholded(weight, bias)
    own = APEForward(network.model, 0.5, patch_size=16)
    for pair, picture in zip(find_pairs(photos), curves.record(network, photos), strict=True):
        lr, _ = pair.read(network.scale)
        _, report = own(to_tensor(lr), return_report=True)
        assert np.array_equal(rule(picture, 0.5), report.exit_index.flatten().numpy())
        best = curves.oracle(picture, 0.0)
        assert (picture.psnr[np.arange(len(best)), best] == picture.psnr.max(axis=1)).all()


@pytest.fixture(scope="module")
def rules_script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield script("rules")


@pytest.fixture(scope="module")
def scenes(rules_script, fitted_weights, cat):
    model = load_model(fitted_weights)
    network, turned = APEForward(model, threshold=0.0), np.ascontiguousarray(cat[::-1])
    return [rules_script.Scene(network, model.exit_fit, bicubic_downscale(hr, 2), hr) for hr in (cat, turned)]


@pytest.fixture(scope="module")
def rules(rules_script, scenes, fitted_weights, tmp_path_factory):
    edges = tmp_path_factory.mktemp("edges") / "edges.json"
    edges.write_text(json.dumps(rules_script.fit_edges(scenes)))
    return rules_script.Rules(fitted_weights, fitted_weights, edges)


def test_the_oracle_keeps_what_is_asked_in_each_cell(rules_script, rules, scenes):
    for scene in scenes:
        depths = scene.known(40.0)
        reached = scene.reached.gather(-1, depths[0, ..., None] + 1)
        assert (reached >= 40).all()
        before = scene.reached.gather(-1, depths[0, ..., None].clamp_min(0))
        assert ((before < 40) | (depths[0, ..., None] < 0)).all(), "and takes no later candidate"
        assert rules.done("oracle", scene, 40.0) <= 1


def test_candidates_are_what_the_network_gives(rules, scenes):
    full = APEForward(rules.network.model, fidelity=None)(scenes[0].low)
    assert (full.clamp(0, 1)[0] - scenes[0].full).abs().max() < 1e-4


def test_prices_and_thresholds_move_from_full_depth_to_nothing(rules, scenes):
    scene = scenes[0]
    assert (rules.by_edges(scene.low, 1e6) == -1).all() and rules.done("edge table", scene, 1e6) < 0.1
    assert rules.done("regressor", scene, 0.0) >= 1, "overlaps are work too"
    assert rules.done("regressor", scene, 1.0) < rules.done("regressor", scene, 0.0)
    assert rules.done("plan", scene, 30.0) < rules.done("plan", scene, 60.0) <= 1


def test_the_table_tells_the_mean_psnr_of_a_bin(rules_script, scenes):
    table = rules_script.fit_edges(scenes)
    scores = torch.cat([rules_script.edge_scores(scene.low, scene.cell).flatten() for scene in scenes])
    psnr = torch.cat([scene.psnr.flatten(0, 1) for scene in scenes])
    lowest = psnr[scores <= table["ends"][0]].mean(0)
    assert table["psnr_y"][0] == pytest.approx(lowest.tolist(), abs=0.5)


def test_a_curve_is_read_where_it_first_has_the_quality():
    least = script("results").least
    curve = {"work": [1.0, 0.2, 0.6], "fidelity": [60.0, 40.0, 50.0]}
    assert least(curve, "work", "fidelity", 45) == "40.0%"
    assert least(curve, "work", "fidelity", 39) == "at most 20.0%"
    assert least(curve, "work", "fidelity", 61) == "not reached"


def test_drawings_come_from_their_seed():
    draw, size = script("drawings").draw, (256, 160)
    first, again, other = draw(3, size), draw(3, size), draw(4, size)
    assert first.shape == (160, 256, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    same = np.mean([(np.diff(draw(seed, size).astype(int), axis=1) == 0).all(2).mean() for seed in range(8)])
    assert 0.4 < same < 0.98, "flat areas, and lines between them"


def test_the_page_names_every_part_it_is_made_of():
    results, page = script("results"), (BENCH / "results_page.md").read_text()
    made = {"machine", "table_precisions", "table_seams", *(f"command_{name}" for name in results.commands("DEV"))}
    plans = [f"{name}_plans" for name in (results.PHOTOGRAPHS, "Urban10")]
    made |= {
        f"table_x{scale}_{part}" for scale in results.SCALES for part in (*results.SETS, "curves", "rules", *plans)
    }
    made |= {f"table_plain_{name}" for name in results.PLAIN}
    assert set(re.findall(r"{(\w+)}", page)) == made
