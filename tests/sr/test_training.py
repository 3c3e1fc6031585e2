import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import l1_loss, mse_loss

from ape_sr.data.crops import CropSampler
from ape_sr.data.degrade import bicubic_downscale
from ape_sr.data.images import read_image, write_image
from ape_sr.data.pairs import find_training_pairs
from ape_sr.errors import UserError
from ape_sr.metrics import batch_psnr
from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet, SwinIR
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
    assert np.ptp(read_image(tmp_path / "killed" / "log.png")) == 255
    logs = [list(csv.reader((tmp_path / run / "log.csv").read_text().splitlines())) for run in ("whole", "killed")]
    assert [row[0] for row in logs[0]] == [row[0] for row in logs[1]]


def test_a_checkpoint_from_before_a_setting_existed_is_resumed(sampler, tmp_path):
    TrainingRun(network(), sampler, CONFIG, tmp_path, "cpu").run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["identity"]["training"]["regressor_weight"], state["identity"]["model"]["head_exit"]
    torch.save(state, tmp_path / "last.pt")
    assert TrainingRun(network(), sampler, CONFIG, tmp_path, "cpu").step == 6
    weighted = replace(CONFIG, regressor_weight=2.0)
    with pytest.raises(UserError, match=r"regressor_weight: 1\.0 there, 2\.0 here"):
        TrainingRun(network(), sampler, weighted, tmp_path, "cpu")


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


BACKBONES = {
    "rcan": lambda: RCAN(2, 2, 1, 8, 4, 1),
    "vdsr": lambda: VDSR(2, 4, 8, 1),
    "ecbsr": lambda: ECBSR(2, 2, 8, 1),
    "rrdb": lambda: RRDBNet(4, 2, 8, 4, 1),
    "swinir": lambda: SwinIR(2, 8, (2, 2), (2, 2), 4, 2.0, 8, 1),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_learns(name, photos, tmp_path):
    torch.manual_seed(0)
    model = BACKBONES[name]()
    sampler = CropSampler(photos, model.scale, 32, seed=3)
    lr, hr = sampler.batch(1000, 8)
    before = joint_loss(model.train(), lr, hr)
    assert len(before.psnr) == 2 and (before.regressor > 0).all()
    config = TrainingConfig(steps=25, batch=4, patch=32, lr=1e-3, target="look-ahead")
    weight = model.regressor[2].weight.clone()
    TrainingRun(model, sampler, config, tmp_path, "cpu").run()
    assert joint_loss(model, lr, hr).l1.sum() < before.l1.sum()
    assert not torch.equal(model.regressor[2].weight, weight)


def test_an_exit_before_the_first_block_learns(sampler, tmp_path):
    torch.manual_seed(0)
    model = EDSR(2, 2, 8, 1, head_exit=True)
    lr, hr = sampler.batch(1000, 8)
    before = joint_loss(model, lr, hr, "look-ahead")
    pictures, _ = model.forward_exits(lr)
    assert before.psnr.tolist() == pytest.approx([batch_psnr(sr, hr, 8).mean().item() for sr in pictures], abs=1e-3)
    config = TrainingConfig(steps=40, batch=4, patch=32, lr=2e-3, target="look-ahead")
    TrainingRun(model, sampler, config, tmp_path, "cpu").run()
    assert joint_loss(model, lr, hr, "look-ahead").l1[0] < before.l1[0]
    with pytest.raises(UserError, match="head_exit: expected with the target look-ahead, got paper"):
        TrainingRun(model, sampler, CONFIG, tmp_path / "paper", "cpu")


def test_the_regressors_weight_counts(sampler):
    lr, hr = sampler.batch(0, 2)
    once, tenfold = (joint_loss(network(), lr, hr, regressor_weight=weight) for weight in (1.0, 10.0))
    assert (tenfold.total - once.total).item() == pytest.approx(9 * once.regressor.sum().item(), rel=1e-3)


class TestFolders:
    @pytest.fixture
    def div2k(self, tmp_path, cat):
        for kind in ("train", "valid"):
            for i in range(2):
                hr = cat[i : i + 80]
                write_image(tmp_path / f"DIV2K_{kind}_HR" / f"000{i}.png", hr)
                lr = bicubic_downscale(hr, 2) // 2  # darker than what would be made: the file must be what is read
                write_image(tmp_path / f"DIV2K_{kind}_LR_bicubic" / "X2" / f"000{i}x2.png", lr)
        return tmp_path

    @pytest.mark.parametrize("named", [".", "DIV2K_train_HR"])
    def test_div2k_as_it_is_unpacked(self, div2k, named):
        pairs = find_training_pairs(div2k / named, 2)
        assert [(hr.parent.name, lr.name) for hr, lr in pairs] == [
            ("DIV2K_train_HR", "0000x2.png"),
            ("DIV2K_train_HR", "0001x2.png"),
        ]
        lr, hr = CropSampler(div2k / named, 2, 32, seed=0).batch(0, 4)
        assert lr.mean() < 0.6 * hr.mean()

    def test_a_scale_without_lr_pictures_makes_them(self, div2k):
        assert [lr for _, lr in find_training_pairs(div2k, 4)] == [None, None]
        lr, hr = CropSampler(div2k, 4, 32, seed=0).batch(0, 4)
        assert lr.mean().item() == pytest.approx(hr.mean().item(), rel=0.05)

    def test_a_named_lr_folder(self, div2k, photos):
        small = div2k / "DIV2K_valid_LR_bicubic" / "X2"
        assert find_training_pairs(div2k / "DIV2K_train_HR", 2, small)[1][1] == small / "0001x2.png"
        with pytest.raises(UserError, match=r"data: expected ax2 or a in .*X2, for .*a\.png"):
            find_training_pairs(photos, 2, small)

    def test_an_lr_picture_of_another_size_is_named(self, div2k, cat):
        for i in range(2):
            write_image(div2k / "DIV2K_train_LR_bicubic" / "X2" / f"000{i}x2.png", cat[:30, :30])
        with pytest.raises(UserError, match=r"x2\.png: expected 60x40, 1/2 of .*, got 30x30"):
            CropSampler(div2k, 2, 32, seed=0).batch(0, 1)

    def test_two_sets_in_one_folder_are_named(self, div2k):
        (div2k / "Other_train_HR").mkdir()
        with pytest.raises(UserError, match="got DIV2K_train_HR, Other_train_HR; name one of them"):
            find_training_pairs(div2k, 2)

    def test_little_memory_changes_nothing(self, photos, monkeypatch):
        expected = CropSampler(photos, 2, 32, seed=3).batch(0, 16)
        monkeypatch.setattr("ape_sr.data.crops.MEMORY", 1)
        sampler = CropSampler(photos, 2, 32, seed=3)
        assert all(torch.equal(a, b) for a, b in zip(sampler.batch(0, 16), expected, strict=True))
        assert len(sampler._decoded) == 1


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
