"""Training on a GPU: the recorded step and the crops cut there, against the same run step by step."""

from dataclasses import replace

import pytest
import torch
from support import DEVICE

from ape_sr.data.crops import CropSampler
from ape_sr.data.resident import ResidentCrops
from ape_sr.models import EDSR
from ape_sr.training.run import TrainingConfig, TrainingRun

if DEVICE.type != "cuda":
    pytest.skip("needs a GPU: APE_TEST_DEVICE=cuda", allow_module_level=True)

CONFIG = TrainingConfig(steps=40, batch=4, patch=32, lr=1e-3, schedule="cosine", target="look-ahead")


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_crops_are_those_of_the_host(photos):
    sampler = CropSampler([photos], 2, 32, seed=3)
    resident = ResidentCrops(sampler, DEVICE)
    for step in range(4):
        for got, expected in zip(resident.batch(step, 16), sampler.batch(step, 16), strict=True):
            assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("exit_interval", [None, 1])
def test_the_recorded_step_trains_as_the_step(photos, tmp_path, monkeypatch, capsys, precision, exit_interval):
    crops = ResidentCrops(CropSampler([photos], 2, 32, seed=3), DEVICE)
    config = replace(CONFIG, precision=precision)
    ends = []
    for name in ("recorded", "eager"):
        torch.manual_seed(0)
        run = TrainingRun(EDSR(2, 2, 16, exit_interval), crops, config, tmp_path / name, str(DEVICE))
        start = weights(run.model)
        if name == "eager":
            monkeypatch.setattr(run, "training_step", run.training_step.step)
        run.run()
        ends.append(weights(run.model) - start)
    assert "cannot be recorded" not in capsys.readouterr().out
    assert (ends[0] - ends[1]).norm() < 0.05 * ends[1].norm()  # a rate that stood still would be 0.3 off


def test_a_killed_run_goes_on(photos, tmp_path):
    crops = ResidentCrops(CropSampler([photos], 2, 32, seed=3), DEVICE)
    batch = crops.batch

    def dies(step: int, size: int):
        if step == 30:
            raise KeyboardInterrupt
        return batch(step, size)

    config = replace(CONFIG, save_seconds=0)
    crops.batch = dies
    with pytest.raises(KeyboardInterrupt):
        TrainingRun(EDSR(2, 2, 16, 1), crops, config, tmp_path, str(DEVICE)).run()
    crops.batch = batch
    run = TrainingRun(EDSR(2, 2, 16, 1), crops, config, tmp_path, str(DEVICE))
    assert run.step == 8  # the last one of those that are all looked at
    assert run.run().exists() and run.step == 40
