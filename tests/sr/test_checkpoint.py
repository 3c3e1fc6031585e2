import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import spread_network

from ape_sr.checkpoint import load_model, save_model
from ape_sr.errors import UserError
from ape_sr.models import EDSR
from ape_sr.models.convert import Unsaid
from ape_sr.weights import find_weights


def test_weights_come_back_with_their_network(tmp_path):
    model = spread_network(3, 2, 8, 2, res_scale=0.5, exit_threshold=0.8)
    save_model(tmp_path / "a.safetensors", model)
    loaded = load_model(str(tmp_path / "a.safetensors"))
    assert loaded.config == model.config
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o007, 0o660)], ids=oct)
def test_files_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_model(tmp_path / "model.safetensors", EDSR(2, 1, 4, 1))
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode


def test_damaged_files_are_refused(tmp_path):
    model = spread_network(2, 2, 8, 1)
    save_model(tmp_path / "cut.safetensors", model)
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        load_model(tmp_path / "cut.safetensors")


class Danger:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


def test_checkpoints_run_no_code(tmp_path, capsys):
    torch.save({"state_dict": Danger()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="is not a readable file of plain tensors"):
        load_model(tmp_path / "evil.pth")
    assert "ran" not in capsys.readouterr().out


def test_modules_are_not_unpickled(tmp_path):
    torch.save(torch.nn.Conv2d(3, 3, 3), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"it holds a torch\S+Conv2d, which may run code; expected .*state_dict\(\)$"):
        load_model(tmp_path / "whole.pth")


def test_torchscript_is_named(tmp_path, recwarn):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), tmp_path / "script.pt")
    recwarn.clear()
    with pytest.raises(UserError, match=r"it is a TorchScript archive; expected the network's state_dict\(\)$"):
        load_model(tmp_path / "script.pt")
    assert not recwarn


def prefixed(prefix: str):
    return lambda state: {prefix + key: value for key, value in state.items()}


OPTIONS = argparse.Namespace(scale=4, ema=True)
WRAPPED = {
    "bare.pth": lambda state: state,
    "bare.bin": lambda state: state,
    **{
        f"{key}.pth": lambda state, key=key: {key: state, "epoch": 3}
        for key in ("params_ema", "params", "state_dict", "model_state_dict", "generator", "g_ema", "model")
    },
    "worse.pth": lambda state: {"params": {key: 0 * value for key, value in state.items()}, "params_ema": state},
    "module.pth": prefixed("module."),
    "compiled.pt": prefixed("_orig_mod."),
    "net_g.pth": prefixed("net_g."),
    "both.pth": lambda state: {"params_ema": prefixed("module._orig_mod.")(state)},
    "lightning.ckpt": lambda state: {"state_dict": prefixed("model.")(state), "hyper_parameters": OPTIONS},
    "gan.ckpt": lambda state: {
        "state_dict": prefixed("discriminator.")({"body.0.weight": torch.zeros(3)}) | prefixed("generator.")(state),
        "best": np.float64(31.5),
    },
    "deep.pt": lambda state: {"model": {"state_dict": {"module": state}}},
    "profiled.pth": lambda state: state | {"total_ops": torch.zeros(1), "head.0.total_params": torch.zeros(1)},
    "with-numbers.pth": lambda state: state | {"epoch": 7},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_state_dicts_as_trainers_leave_them(tmp_path, name):
    model = spread_network(4, 2, 8, None)
    torch.save(WRAPPED[name](model.state_dict()), tmp_path / name)
    x = torch.rand(1, 3, 7, 7)
    assert torch.equal(load_model(tmp_path / name)(x), model(x))


def test_safetensors_of_others(tmp_path):
    model = spread_network(2, 2, 8, None)
    save_file(prefixed("module.")(model.state_dict()), tmp_path / "foreign.safetensors")
    x = torch.rand(1, 3, 7, 7)
    assert torch.equal(load_model(tmp_path / "foreign.safetensors")(x), model(x))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a state dict, got list"),
        ({3: torch.zeros(1)}, "expected a state dict, got a dict of 3"),
        ({"params": 3}, "expected a state dict, got a dict of params"),
        ({"params": {}}, "expected a state dict, got a dict of params"),
        ({"conv.weight": torch.zeros(1)}, "expected the keys of ECBSR, .*, got the key conv.weight"),
        ({"params": {"unet1.conv1.conv.0.weight": torch.zeros(1)}}, "expected the keys of ECBSR, .*, got Real-CUGAN"),
        ({"head.0.weight": torch.full((8, 3, 3, 3), torch.nan)}, "tensor head.0.weight holds NaN or infinity"),
    ],
    ids=["list", "numbered", "nested-number", "empty", "unknown", "other-network", "nan"],
)
def test_files_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "a.pth")


def test_files_of_another_format(tmp_path):
    with pytest.raises(UserError, match=r"weights: expected a file name ending in .safetensors, .pth, .* got a.onnx"):
        load_model(Path("a.onnx"))


class TestNames:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("APE_MODELS", str(tmp_path))
        for name in ("fine.pth", "two.pth", "two.safetensors", "notes.txt", "edsr-12x32-x4.pth"):
            (tmp_path / name).touch()
        return tmp_path

    @pytest.mark.parametrize("name", ["fine", "fine.pth"])
    def test_in_the_folder(self, folder, name):
        assert find_weights(name) == folder / "fine.pth"

    def test_shipped_names_come_first(self, folder):
        assert find_weights("edsr-12x32-x4").suffix == ".safetensors"

    def test_paths_come_before_the_folder(self, folder, tmp_path_factory, monkeypatch):
        monkeypatch.chdir(tmp_path_factory.mktemp("here"))
        Path("fine.pth").touch()
        assert find_weights("fine.pth") == Path("fine.pth")

    def test_two_files_of_one_name(self, folder):
        with pytest.raises(UserError, match=r"expected the name of one file, got \S+two.pth and \S+two.safetensors"):
            find_weights("two")
        assert find_weights("two.pth") == folder / "two.pth"

    @pytest.mark.parametrize("name", ["nothing", "notes", "notes.txt"])
    def test_what_is_there_is_listed(self, folder, name):
        with pytest.raises(
            UserError, match=rf"no such file: {name} .*; in APE_MODELS, .*: edsr-12x32-x4, fine, two, two"
        ):
            find_weights(name)

    def test_a_folder_that_is_not_there(self, folder, monkeypatch):
        monkeypatch.setenv("APE_MODELS", str(folder / "none"))
        with pytest.raises(UserError, match=r"in APE_MODELS, .*none: none"):
            find_weights("fine")


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_missing_files(tmp_path, name):
    with pytest.raises(UserError, match="weights: no such file"):
        load_model(tmp_path / name)


def test_what_a_state_dict_does_not_hold_can_be_said(tmp_path):
    model = spread_network(2, 4, 8, 2, res_scale=0.25)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth", Unsaid(exit_interval=2, res_scale=0.25))
    assert loaded.config == model.config
    x = torch.rand(1, 3, 7, 7)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("feats, expected", [(256, 0.1), (64, 1.0)], ids=["published-large", "published-small"])
def test_res_scale_is_that_of_the_published_networks(tmp_path, feats, expected):
    torch.save(EDSR(2, 1, feats, None).state_dict(), tmp_path / "a.pth")
    assert load_model(tmp_path / "a.pth").config["res_scale"] == expected


def test_our_own_files_hold_everything(tmp_path):
    save_model(tmp_path / "a.safetensors", spread_network(2, 2, 8, 1))
    with pytest.raises(UserError, match=r"res_scale: expected with a file of another project, .* got 0.1"):
        load_model(tmp_path / "a.safetensors", Unsaid(res_scale=0.1))
