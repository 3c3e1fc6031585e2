"""The measures behind docs/results.md."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from ape_kernels import APEForward, PatchGrid
from ape_sr.checkpoint import load_model
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


def test_the_page_names_every_part_it_is_made_of():
    results, page = script("results"), (BENCH / "results_page.md").read_text()
    made = {"machine", "table_precisions", "table_seams", *(f"command_{name}" for name in results.commands("DEV"))}
    made |= {f"table_x{scale}_{part}" for scale in results.SCALES for part in (*results.SETS, "curves")}
    assert set(re.findall(r"{(\w+)}", page)) == made
