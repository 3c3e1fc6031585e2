import csv

import numpy as np
import pytest
import torch
from torch.nn.functional import l1_loss, mse_loss

from ape_sr.data.crops import CropSampler
from ape_sr.data.degrade import bicubic_downscale
from ape_sr.errors import UserError
from ape_sr.metrics import batch_psnr
from ape_sr.models import EDSR
from ape_sr.training.losses import joint_loss
from ape_sr.training.run import TrainingConfig, TrainingRun, initialise


def network(exit_interval: int | None = 1) -> EDSR:
    torch.manual_seed(0)
    return EDSR(2, 2, 8, exit_interval)


@pytest.fixture
def sampler(photos) -> CropSampler:
    return CropSampler(photos, 2, 32, seed=3)


CONFIG = TrainingConfig(steps=6, batch=2, patch=32, lr=1e-3, save_every=2)


def test_loss_is_the_papers_over_every_pixel(sampler):
    model = network().double()
    lr, hr = (t.double() for t in sampler.batch(0, 4))
    expected, before = 0, torch.zeros(4)
    for sr, prediction in zip(*model.forward_exits(lr), strict=True):
        now = batch_psnr(sr, hr, 8)
        wanted = 1 - torch.tanh(now - before)
        before = now
        expected = expected + 255 * l1_loss(sr, hr) + mse_loss(prediction[:, 0], wanted.double())
    model.float()
    parts = joint_loss(model, lr.float(), hr.float())
    assert parts.total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_gradients_reach_tail_body_and_regressor_but_not_through_the_target(sampler):
    model = network()
    lr, hr = sampler.batch(0, 2)
    joint_loss(model, lr, hr).total.backward()
    for part in (model.head, model.body, model.tail, model.regressor):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())
    parts = joint_loss(model, lr, hr)
    model.zero_grad()
    (parts.total - parts.l1.sum()).backward()  # l1 is detached: its gradient is still there
    last_conv = model.tail[1].weight.grad.clone()
    model.zero_grad()
    pictures, _ = model.forward_exits(lr)
    sum(255 * l1_loss(sr, hr) for sr in pictures).backward()
    torch.testing.assert_close(last_conv, model.tail[1].weight.grad, rtol=1e-3, atol=1e-3)


def test_training_lowers_the_loss(sampler, tmp_path):
    config = TrainingConfig(steps=60, batch=4, patch=32, lr=2e-3, schedule="cosine", regressor_lr=1e-2)
    model = network()
    lr, hr = sampler.batch(1000, 8)
    before = joint_loss(model, lr, hr)
    TrainingRun(model, sampler, config, tmp_path, "cpu").run()
    after = joint_loss(model, lr, hr)
    assert after.l1[-1] < 0.6 * before.l1[-1]
    assert after.total < before.total


def test_a_killed_run_goes_on_as_if_nothing_had_happened(sampler, tmp_path, monkeypatch):
    whole = network()
    TrainingRun(whole, sampler, CONFIG, tmp_path / "whole", "cpu").run()
    batch, calls = sampler.batch, []

    def dies_at_the_fourth_step(step: int, size: int):
        calls.append(step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return batch(step, size)

    monkeypatch.setattr(sampler, "batch", dies_at_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        TrainingRun(network(), sampler, CONFIG, tmp_path / "killed", "cpu").run()
    with open(tmp_path / "killed" / "log.csv", "a") as log:
        log.write("3,1,1,1\n")  # logged after the checkpoint: the step is done again
    torch.manual_seed(99)  # another process has another generator
    resumed = EDSR(2, 2, 8, 1)
    TrainingRun(resumed, sampler, CONFIG, tmp_path / "killed", "cpu").run()
    assert calls == [0, 1, 2, 3, 2, 3, 4, 5], "two steps were saved, the third is done again"
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    logs = [list(csv.reader((tmp_path / run / "log.csv").read_text().splitlines())) for run in ("whole", "killed")]
    assert [row[0] for row in logs[0]] == [row[0] for row in logs[1]]


def test_a_folder_of_another_run_is_refused(sampler, tmp_path):
    TrainingRun(network(), sampler, CONFIG, tmp_path, "cpu").run()
    other = TrainingConfig(steps=6, batch=3, patch=32, lr=1e-3, save_every=2)
    with pytest.raises(UserError, match=r"holds another run \(batch: 2 there, 3 here\)"):
        TrainingRun(network(), sampler, other, tmp_path, "cpu")


def test_a_damaged_checkpoint_is_named(sampler, tmp_path):
    (tmp_path / "last.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"last.pt cannot be resumed"):
        TrainingRun(network(), sampler, CONFIG, tmp_path, "cpu")


def test_a_diverging_run_says_so(sampler, tmp_path):
    model = network()
    with torch.no_grad():
        model.head[0].weight.fill_(float("inf"))
    with pytest.raises(UserError, match="training: the loss is nan at step 0; a smaller --lr may help"):
        TrainingRun(model, sampler, CONFIG, tmp_path, "cpu").run()


def test_init_from_a_plain_checkpoint_leaves_the_regressor_alone():
    plain, model = network(None), network()
    regressor = model.regressor[2].weight.clone()
    with torch.no_grad():
        plain.head[0].weight.add_(1)
    initialise(model, plain)
    assert torch.equal(model.head[0].weight, plain.head[0].weight)
    assert torch.equal(model.regressor[2].weight, regressor)


def test_regressor_alone_leaves_the_backbone_alone(sampler, tmp_path):
    config = TrainingConfig(steps=30, batch=4, patch=32, regressor_lr=1e-2, regressor_only=True)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lr, hr = sampler.batch(1000, 8)
    error = joint_loss(model, lr, hr).regressor.sum()
    TrainingRun(model, sampler, config, tmp_path, "cpu").run()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"regressor.2.weight", "regressor.2.bias"}
    assert joint_loss(model, lr, hr).regressor.sum() < 0.8 * error


class TestSampler:
    def test_crops_are_pairs(self, sampler):
        lr, hr = sampler.batch(0, 8)
        assert lr.shape == (8, 3, 16, 16) and hr.shape == (8, 3, 32, 32)
        inner = slice(3, -3)  # crops of a downscaled picture, so their borders saw more
        for small, large in zip(lr, hr, strict=True):
            image = (large.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            again = bicubic_downscale(image, 2)[inner, inner].astype(int)
            got = (small.permute(1, 2, 0).numpy() * 255).round()[inner, inner]
            assert np.abs(again - got).max() <= 1

    def test_a_batch_depends_on_seed_and_step_alone(self, sampler, photos):
        again = CropSampler(photos, 2, 32, seed=3)
        sampler.batch(0, 4)
        assert torch.equal(sampler.batch(5, 4)[1], again.batch(5, 4)[1])
        assert not torch.equal(sampler.batch(6, 4)[1], again.batch(5, 4)[1])
        assert not torch.equal(CropSampler(photos, 2, 32, seed=4).batch(5, 4)[1], again.batch(5, 4)[1])

    def test_small_pictures_are_left_out_and_counted(self, photos):
        sampler = CropSampler(photos, 2, 50, seed=0)
        assert (len(sampler.pairs), sampler.skipped) == (2, 1)


def test_look_ahead_trains_towards_what_the_next_stage_brings(sampler):
    model = network()
    lr, hr = sampler.batch(0, 4)
    pictures, predictions = model.forward_exits(lr)
    first, last = (batch_psnr(sr, hr, 8) for sr in pictures)
    wanted = (1 - torch.tanh(last - first), torch.ones(4))  # nothing comes after the last exit
    expected = [mse_loss(p[:, 0], w).item() for p, w in zip(predictions, wanted, strict=True)]
    got = joint_loss(model, lr, hr, "look-ahead").regressor.tolist()
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert got != pytest.approx(joint_loss(model, lr, hr).regressor.tolist(), rel=1e-2)
