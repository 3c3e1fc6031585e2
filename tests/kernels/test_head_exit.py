"""An exit before the first block: stage 0 holds no convolution."""

import pytest
import torch
from families import assert_equals_its_forward, assert_leaves_as_predicted, randomise, spread_regressor
from support import DEVICE, assert_pictures_close, test_patches

from ape_kernels import APEForward, to_program
from ape_kernels.program import Conv
from ape_sr.models import EDSR, RCAN

NETWORKS = {
    "EDSR": lambda: EDSR(2, 4, 8, 2, head_exit=True),
    "RCAN": lambda: RCAN(2, 2, 1, 8, 4, 1, head_exit=True),
}


@pytest.fixture(params=NETWORKS)
def model(request):
    model = randomise(NETWORKS[request.param](), 1.5).to(DEVICE)
    patches = test_patches(64, seed=2)
    spread_regressor(model, model.exit_features(patches)[1], patches)
    return model


def test_stage_0_costs_no_more_than_its_mean(model):
    stages = to_program(model).stages
    assert len(stages) == 3
    assert not any(isinstance(step, Conv) for step in stages[0].steps)
    assert to_program(model).body_flops_to_stage(0) == 8


def test_equals_its_forward_at_every_exit(model, backend):
    with torch.no_grad():
        assert_equals_its_forward(model, model.forward_exits, backend, ((12, 12), (1, 1), (7, 5)))


def test_leaves_as_predicted(model, backend):
    with torch.no_grad():
        assert_leaves_as_predicted(model, model.forward_exits, backend, test_patches(40))


def test_stage_0_alone(model, backend):
    packed = APEForward(model, backend=backend).packed
    features = model.exit_features(test_patches(5))[0].contiguous()
    active = torch.tensor([3, 0, 4], device=DEVICE)
    out, ids, capacity, n_left = torch.ops.ape_kernels.run_stage(
        features, active, packed.tensors, 0, 0.0, None, backend
    )
    assert torch.equal(out, features[ids])
    predictions = model.regressor(features)[:, 0]
    torch.testing.assert_close(capacity, 1 - predictions[ids], atol=1e-5, rtol=0)
    assert int(n_left) == int((predictions[active] >= 0).sum())


def test_a_plan_may_be_next_to_nothing(backend):
    """Cells that leave before the first block take head and tail alone."""
    model = randomise(NETWORKS["EDSR"](), 1.5).to(DEVICE)
    fast = APEForward(model, cell=10, backend=backend)
    image = test_patches(1, 20, 20)
    sr, report = fast(image, return_report=True, exit_at=torch.zeros(1, 2, 2, dtype=torch.int64, device=DEVICE))
    assert report.body_flops == 20 * 20 * 8 and report.patches_per_exit.tolist() == [4, 0, 0]
    assert_pictures_close(sr, model.forward_exits(image)[0][0].detach())


def test_a_plain_network_has_none():
    with pytest.raises(ValueError, match="head_exit: expected with an exit_interval"):
        EDSR(2, 2, 8, None, head_exit=True)
