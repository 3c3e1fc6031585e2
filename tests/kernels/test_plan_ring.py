"""How wide a fit's ring is."""

from dataclasses import replace

import pytest
import torch
from skimage import data
from torch import nn

from ape_kernels import APEForward
from ape_kernels.plan import ring as module
from ape_kernels.plan.ring import SIDE, measure_ring, sample_of
from ape_sr.models import SRVGGNetCompact


@pytest.fixture
def image():
    return torch.from_numpy(data.chelsea()[60:156, 100:196].copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(
    ("reached", "cell", "expected"),
    [
        ({4: 57.0, 8: 60.0}, 24, 4),  # 8 dB above the 48 asked for
        ({4: 55.0, 8: 56.5}, 24, 8),
        ({4: 53.0, 8: 55.0, 16: 59.0}, 48, 16),
        ({4: 53.0, 8: 53.9}, 24, 4),  # no ring does it, and the wider one hardly helps
        ({4: 50.0, 8: 53.9}, 24, 8),
        ({4: float("inf"), 8: float("inf")}, 24, 4),  # nothing runs to full depth
        ({4: 40.0}, 8, 4),  # half a cell is the most
    ],
)
def test_the_narrowest_that_does(fitted_model, monkeypatch, reached, cell, expected):
    monkeypatch.setattr(module, "_fidelity", lambda fit, *_: reached[fit.ring])
    fit = replace(fitted_model.exit_fit, cell=cell, default=48.0)
    assert measure_ring(fit, APEForward(fitted_model).packed_for_images, []) == expected


def test_a_network_that_reads_far_needs_a_wide_one(fitted_model, image):
    """Eleven 3x3 convolutions that pass on what lies around them: without a ring, zeros reach as far into the cells."""
    model = SRVGGNetCompact(2, 9, 16, exit_interval=None).eval().requires_grad_(False)
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(torch.rand(layer.weight.shape) / layer.weight[0].numel() * 1.7)
    statistics = fitted_model.exit_fit
    always = torch.full_like(statistics.needed[:, :1], 0.0)
    never = torch.full_like(always, 1e3)
    fit = replace(statistics, scale=2, stages=1, quadratic=statistics.quadratic[:1])
    packed = APEForward(model).packed_for_images
    needed = torch.cat([always[:1], never[1:]])  # one kind of cell is interpolated
    rings = [measure_ring(replace(fit, needed=needed, default=asked), packed, [image]) for asked in (20.0, 70.0)]
    assert rings == sorted(rings) and rings[-1] == 8


def test_samples_are_middles():
    image = torch.rand(3, 500, 100)
    sample = sample_of(image)
    assert sample.shape == (1, 3, SIDE, 100) and torch.equal(sample[0], image[:, 154 : 154 + SIDE])
