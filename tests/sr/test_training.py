import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import l1_loss, mse_loss

from ape_sr.checkpoint import load_model
from ape_sr.data.crops import CropSampler
from ape_sr.data.images import read_image
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


def test_crops_cut_on_the_device_train_the_same_network(sampler, tmp_path):
    models = network(), network()
    for name, model, crops in zip("ab", models, (sampler, ResidentCrops(sampler, torch.device("cpu"))), strict=True):
        TrainingRun(model, crops, CONFIG, tmp_path / name, "cpu").run()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
