"""Exits added to unmodified instances of the public layouts."""

import copy

import pytest
import torch
from support import DEVICE, assert_pictures_close, spread_network, test_patches
from test_basicsr import Network, ResidualBlockNoBN, ResidualGroup
from test_compact import Compact
from test_ecbsr import BackboneECBSR
from test_rrdb import BasicSR as RRDBNet
from test_rrdb import FirstESRGAN
from test_swinir import BasicSR as SwinIR
from test_vdsr import PlainVDSR
from torch import nn
from torch.nn.functional import conv2d, mse_loss

from ape_kernels import APEForward, add_exits, all_exits, ops, to_program
from ape_kernels.backends import get_backend
from ape_kernels.collapse import CollapsedTail
from ape_kernels.program import INPUT, Buffer, Conv, Exit, PatchProgram, Reconstruct, Stage

PUBLIC = {
    "EDSR-PyTorch": lambda: spread_network(2, 4, 8, None),
    "BasicSR EDSR": lambda: Network(ResidualBlockNoBN),
    "BasicSR RCAN": lambda: Network(ResidualGroup),
    "VDSR": PlainVDSR,
    "ECBSR": lambda: BackboneECBSR(3, 2),
    "BasicSR Compact": Compact,
    "BasicSR RRDBNet": RRDBNet,
    "first ESRGAN": lambda: FirstESRGAN(2, 2),
    "BasicSR SwinIR": SwinIR,
}


@pytest.fixture(params=PUBLIC)
def plain(request) -> nn.Module:
    return PUBLIC[request.param]().eval().requires_grad_(False)


def test_added_exits_leave_forward_and_state_dict_alone(plain):
    patches = test_patches(2, 8, 8)
    before, state = plain(patches.clone()), copy.deepcopy(plain.state_dict())
    model = add_exits(plain, every=1)
    assert model is plain
    assert torch.equal(model(patches.clone()), before)
    assert model.state_dict().keys() == state.keys(), "the original class can load it"
    assert not any(model.load_state_dict(state))
    assert not any(nn.Sequential(model).load_state_dict({f"0.{name}": value for name, value in state.items()}))


def test_an_untrained_regressor_runs_whole_and_a_trained_one_exits(plain):
    model, patches = add_exits(plain, every=1), test_patches(6, 8, 8)
    stages = to_program(model).stages
    assert all(stage.has_exit for stage in stages)
    sr, exit_index, capacity = APEForward(model, 0.5).forward_patches(patches)
    assert_pictures_close(sr, model(patches.clone()))
    assert (exit_index == len(stages) - 1).all() and (capacity == 1).all()
    model.regressor.requires_grad_(False)[2].bias.fill_(5.0)
    pictures, predictions = all_exits(model, patches)
    sr, exit_index, _ = APEForward(model, 0.5).forward_patches(patches)
    assert (predictions[0] > 0.5).all() and (exit_index == 0).all()
    assert_pictures_close(sr, pictures[0])


def test_in_training_mode_all_exits_come_with_gradients_for_the_regressor(plain):
    model, patches = add_exits(plain, every=1), test_patches(4, 8, 8)
    expected = model(patches.clone())
    model.regressor.requires_grad_(True)
    fast = APEForward(model)
    optimiser = torch.optim.SGD(model.regressor.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        pictures, predictions = fast.train()(patches)
        assert_pictures_close(pictures[-1].detach(), expected)
        loss = sum(mse_loss(prediction, torch.full_like(prediction, 0.7)) for prediction in predictions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    _, _, capacity = fast.eval().forward_patches(patches)
    assert (capacity < 1).all(), "the trained regressor is picked up"


def test_gradients_reach_the_body():
    model = add_exits(spread_network(2, 4, 8, None).requires_grad_(True), every=2)
    pictures, _ = all_exits(model, test_patches(2))
    pictures[0].sum().backward()
    assert model.body[1].body[0].weight.grad.abs().sum() > 0
    assert model.body[2].body[0].weight.grad is None or model.body[2].body[0].weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    "every, message",
    [
        (0, r"every: model.exit_interval: expected a whole number from 1 to 4, got 0"),
        (5, r"every: model.exit_interval: expected a whole number from 1 to 4, got 5"),
        ("2", "every: expected a whole number of blocks, got '2'"),
    ],
)
def test_bad_intervals_leave_the_model_as_it_was(every, message):
    model = spread_network(2, 4, 8, None)
    with pytest.raises(ValueError, match=message):
        add_exits(model, every)
    assert not hasattr(model, "regressor") and not hasattr(model, "exit_interval")


def test_bad_intervals_are_named_where_regressors_pool_over_tokens():
    with pytest.raises(ValueError, match=r"every: model.exit_interval: expected a whole number from 1 to \d, got 9"):
        add_exits(SwinIR().eval(), 9)


def test_a_network_with_exits_is_refused():
    with pytest.raises(ValueError, match="model: expected a plain network, got one with exits"):
        add_exits(spread_network())


def test_an_exit_reads_the_buffer_it_names(backend):
    """Networks pool what a stage leaves in; a program may say otherwise."""
    patches, generator = test_patches(5, 6, 7), torch.Generator().manual_seed(4)
    head, middle, last, closing = (
        torch.randn(o, i, 3, 3, generator=generator).to(DEVICE) / 4 for i, o in ((3, 4), (4, 4), (4, 4), (4, 3))
    )
    weight, bias = torch.randn(4, generator=generator).to(DEVICE), torch.zeros(1, device=DEVICE)
    program = PatchProgram(
        buffers=(Buffer(3), Buffer(4), Buffer(4)),
        head=(Conv(INPUT, 1, head),),
        stages=(Stage(1, 1, (Conv(1, 2, middle), Conv(2, 1, last), Exit(2, weight, bias))),),
        tail=(Reconstruct(1, CollapsedTail(closing[None, None], torch.zeros(1, 1, 3, device=DEVICE)), 1),),
    )
    packed = get_backend(backend).pack(program, DEVICE, torch.float32)
    capacity = ops.run_patches(patches, packed, 2.0, None, 1, 3, backend)[2]
    features = conv2d(conv2d(patches, head, padding=1), middle, padding=1)
    torch.testing.assert_close(capacity, 1 - torch.tanh(features.mean(dim=(2, 3)) @ weight), atol=1e-4, rtol=0)
    assert capacity.std() > 0.01
