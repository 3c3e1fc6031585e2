import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import l1_loss, mse_loss

from ape_sr.checkpoint import load_model
from ape_sr.data.crops import CropSampler
from ape_sr.data.degrade import bicubic_downscale
from ape_sr.data.images import read_image, write_image
from ape_sr.data.pairs import find_training_pairs
from ape_sr.data.resident import ResidentCrops
from ape_sr.distributed import Ranks
from ape_sr.errors import UserError
from ape_sr.metrics import batch_psnr
from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet, SwinIR
from ape_sr.training.losses import joint_loss
from ape_sr.training.run import TrainingConfig, TrainingRun, initialise
from ape_sr.training.step import WARM_UP, RecordedStep, TrainingStep


def network(exit_interval: int | None = 1) -> EDSR:
    torch.manual_seed(0)
    return EDSR(2, 2, 8, exit_interval)


@pytest.fixture
def sampler(photos) -> CropSampler:
    return CropSampler([photos], 2, 32, seed=3)


CONFIG = TrainingConfig(steps=6, batch=2, patch=32, lr=1e-3, save_seconds=2)


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
    monkeypatch.setattr("ape_sr.training.run.monotonic", lambda: len(calls))  # one step per second

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
    assert load_model(tmp_path / "killed" / "model.safetensors").config == whole.config, "weights so far are there"
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
    other = replace(CONFIG, batch=3)
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


def test_a_loss_that_turns_to_nan_between_two_looks_stops_the_run(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr("ape_sr.training.run.LOG_EVERY", 10)
    batch = sampler.batch

    def turns_bad(step: int, size: int):
        lr, hr = batch(step, size)
        return lr, hr * (float("nan") if step == 13 else 1)

    monkeypatch.setattr(sampler, "batch", turns_bad)
    config = replace(CONFIG, steps=40, save_seconds=0)
    with pytest.raises(UserError, match="training: the loss is nan at step 19"):
        TrainingRun(network(), sampler, config, tmp_path, "cpu").run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 10
    load_model(tmp_path / "model.safetensors")  # which refuses NaN


class TestRates:
    CONFIG = replace(CONFIG, steps=1000, minutes=10 / 60, schedule="cosine", save_seconds=3)

    @pytest.fixture
    def drawn(self, sampler, monkeypatch) -> list[int]:
        """The steps drawn, one per second on the clock that is set up."""
        batch, drawn = sampler.batch, []

        def counted(step: int, size: int):
            drawn.append(step)
            return batch(step, size)

        monkeypatch.setattr(sampler, "batch", counted)
        monkeypatch.setattr("ape_sr.training.run.monotonic", lambda: len(drawn))
        return drawn

    def test_the_run_and_its_schedule_end_with_the_minutes(self, sampler, tmp_path, drawn):
        TrainingRun(network(), sampler, self.CONFIG, tmp_path, "cpu").run()
        assert drawn == list(range(10))
        rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
        rates = {int(row["step"]): float(row["lr"]) for row in rows}
        expected = {step: 0.5e-3 * (1 + np.cos(np.pi * (step - 1) / 10)) for step in (*range(1, 9), 10)}
        assert rates == pytest.approx(expected, rel=1e-4)
        again = network()
        weights = load_model(TrainingRun(again, sampler, self.CONFIG, tmp_path, "cpu").run()).state_dict()
        assert len(drawn) == 10 and all(torch.equal(again.state_dict()[name], weights[name]) for name in weights)

    def test_rates_grow_to_the_schedule(self, sampler, tmp_path):
        TrainingRun(network(), sampler, replace(CONFIG, warm_up=4), tmp_path, "cpu").run()
        rows = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
        expected = [0.2e-3, 0.4e-3, 0.6e-3, 0.8e-3, 0.5e-3, 0.5e-3]  # halved from two thirds on
        assert [float(row["lr"]) for row in rows] == pytest.approx(expected)

    def test_fewer_steps_end_it_before_the_minutes(self, sampler, tmp_path, drawn):
        TrainingRun(network(), sampler, replace(self.CONFIG, steps=4), tmp_path, "cpu").run()
        assert drawn == list(range(4))

    def test_the_minutes_before_a_kill_count(self, sampler, tmp_path, drawn, monkeypatch):
        whole = network()
        TrainingRun(whole, sampler, self.CONFIG, tmp_path / "whole", "cpu").run()
        counted = sampler.batch

        def killed(step: int, size: int):
            if len(drawn) == 10 + 7:
                raise KeyboardInterrupt
            return counted(step, size)

        monkeypatch.setattr(sampler, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            TrainingRun(network(), sampler, self.CONFIG, tmp_path / "killed", "cpu").run()
        monkeypatch.setattr(sampler, "batch", counted)
        resumed = network()
        TrainingRun(resumed, sampler, self.CONFIG, tmp_path / "killed", "cpu").run()
        assert drawn[10:] == [*range(7), *range(6, 10)]
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name

    def test_minutes_of_several_processes_are_refused(self, sampler, tmp_path):
        with pytest.raises(UserError, match="minutes: expected with one process, got 2; say how many --steps"):
            TrainingRun(network(), sampler, self.CONFIG, tmp_path, "cpu", Ranks(0, 2))


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is(sampler, capsys):
    models = network(), network()
    for model, kind in zip(models, (lambda step: step, RecordedStep), strict=True):
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        step = kind(
            TrainingStep(lambda lr, hr, model=model: vars(joint_loss(model, lr, hr)).values(), optimizer, [], 1, False)
        )
        for number in range(WARM_UP + 2):
            step(*sampler.batch(number, 2))
    if not torch.cuda.is_available():
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("training: the step cannot be recorded as a CUDA graph, going on without: ")
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


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
    sampler = CropSampler([photos], model.scale, 32, seed=3)
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
        lr, hr = CropSampler([div2k / named], 2, 32, seed=0).batch(0, 4)
        assert lr.mean() < 0.6 * hr.mean()

    def test_a_scale_without_lr_pictures_makes_them(self, div2k):
        assert [lr for _, lr in find_training_pairs(div2k, 4)] == [None, None]
        lr, hr = CropSampler([div2k], 4, 32, seed=0).batch(0, 4)
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
            CropSampler([div2k], 2, 32, seed=0).batch(0, 1)

    def test_two_sets_in_one_folder_are_named(self, div2k):
        (div2k / "Other_train_HR").mkdir()
        with pytest.raises(UserError, match="got DIV2K_train_HR, Other_train_HR; name one of them"):
            find_training_pairs(div2k, 2)

    def test_little_memory_changes_nothing(self, photos, monkeypatch):
        expected = CropSampler([photos], 2, 32, seed=3).batch(0, 16)
        monkeypatch.setattr("ape_sr.data.crops.MEMORY", 1)
        sampler = CropSampler([photos], 2, 32, seed=3)
        assert all(torch.equal(a, b) for a, b in zip(sampler.batch(0, 16), expected, strict=True))
        assert len(sampler._decoded) == 1


class TestResident:
    """Crops cut on a device that holds all pictures."""

    @pytest.mark.parametrize("folder, scale, patch", [("photos", 2, 32), ("photos", 4, 36), ("div2k", 2, 32)])
    def test_are_those_of_the_sampler(self, folder, scale, patch, photos, cat, tmp_path):
        if folder == "div2k":  # LR pictures from disk
            for i in range(3):
                write_image(tmp_path / "A_train_HR" / f"{i}.png", cat[i : i + 80])
                write_image(tmp_path / "A_train_LR_bicubic" / "X2" / f"{i}x2.png", cat[i : i + 40, :60])
        sampler = CropSampler([photos if folder == "photos" else tmp_path], scale, patch, seed=3)
        resident = ResidentCrops(sampler, torch.device("cpu"))
        for step in range(4):  # 64 crops: all eight ways to turn and mirror
            got, expected = resident.batch(step, 16), sampler.batch(step, 16)
            for a, b in zip(got, expected, strict=True):
                assert torch.equal(a, b) and a.dtype == b.dtype
                assert a.is_contiguous(memory_format=torch.channels_last)
        assert sampler.nbytes == sum(lr.nbytes + hr.nbytes for lr, hr in sampler.load_all())

    def test_train_the_same_network(self, sampler, tmp_path):
        models = network(), network()
        for name, model, crops in zip(
            "ab", models, (sampler, ResidentCrops(sampler, torch.device("cpu"))), strict=True
        ):
            TrainingRun(model, crops, CONFIG, tmp_path / name, "cpu").run()
        assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


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
        again = CropSampler([photos], 2, 32, seed=3)
        sampler.batch(0, 4)
        assert torch.equal(sampler.batch(5, 4)[1], again.batch(5, 4)[1])
        assert not torch.equal(sampler.batch(6, 4)[1], again.batch(5, 4)[1])
        assert not torch.equal(CropSampler([photos], 2, 32, seed=4).batch(5, 4)[1], again.batch(5, 4)[1])

    def test_pictures_of_several_folders_are_drawn_equally_often(self, photos, tmp_path, cat):
        write_image(tmp_path / "other" / "black.png", np.zeros_like(cat))
        sampler = CropSampler([photos, tmp_path / "other"], 2, 32, seed=3)
        assert [hr.name for hr, _ in sampler.pairs] == ["a.png", "b.bmp", "c.webp", "black.png"]
        black = (sampler.batch(0, 200)[1].amax(dim=(1, 2, 3)) == 0).sum()
        assert 30 < black < 70  # a quarter
        with pytest.raises(UserError, match="lr-data: expected with one folder of images, got 2"):
            CropSampler([photos, photos], 2, 32, seed=3, lr_folder=photos)

    def test_small_pictures_are_left_out_and_counted(self, photos):
        sampler = CropSampler([photos], 2, 50, seed=0)
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
