import os

import pytest
import torch
from safetensors.torch import save_file
from support import spread_network

from ape_sr.checkpoint import load_model, save_model
from ape_sr.errors import UserError
from ape_sr.models import EDSR


def test_weights_come_back_with_their_network(tmp_path):
    model = spread_network(3, 2, 8, 2, res_scale=0.5, exit_threshold=0.8)
    save_model(tmp_path / "a.safetensors", model)
    loaded = load_model(tmp_path / "a.safetensors")
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


def test_foreign_and_damaged_files_are_refused(tmp_path):
    model = spread_network(2, 2, 8, 1)
    save_file(model.state_dict(), tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="holds no 'ape-sr/1' metadata"):
        load_model(tmp_path / "foreign.safetensors")
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


@pytest.mark.parametrize("key", [None, "params_ema", "params", "state_dict", "model"])
def test_pth_files_bare_or_nested(tmp_path, key):
    model = spread_network(4, 2, 8, None)
    state = model.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "a.pth")
    x = torch.rand(1, 3, 7, 7)
    assert torch.equal(load_model(tmp_path / "a.pth")(x), model(x))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a state dict, got list"),
        ({3: torch.zeros(1)}, "expected a state dict, got dict"),
        ({"params": 3}, "expected a state dict, got int"),
        ({"conv.weight": torch.zeros(1)}, "expected the key head.0.weight"),
        ({"head.0.weight": torch.full((8, 3, 3, 3), torch.nan)}, "tensor head.0.weight holds NaN or infinity"),
    ],
    ids=["list", "numbered", "nested-number", "other-network", "nan"],
)
def test_pth_files_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_missing_files(tmp_path, name):
    with pytest.raises(UserError, match="weights: no such file"):
        load_model(tmp_path / name)


def test_what_a_state_dict_does_not_hold_can_be_said(tmp_path):
    model = spread_network(2, 4, 8, 2, res_scale=0.25)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth", exit_interval=2, res_scale=0.25)
    assert loaded.config == model.config
    x = torch.rand(1, 3, 7, 7)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("feats, expected", [(256, 0.1), (64, 1.0)], ids=["published-large", "published-small"])
def test_res_scale_is_that_of_the_published_networks(tmp_path, feats, expected):
    torch.save(EDSR(2, 1, feats, None).state_dict(), tmp_path / "a.pth")
    assert load_model(tmp_path / "a.pth").config["res_scale"] == expected


def test_our_own_files_hold_everything(tmp_path):
    save_model(tmp_path / "a.safetensors", spread_network(2, 2, 8, 1))
    with pytest.raises(UserError, match=r"res_scale: expected with a .pth file only, .* got 0.1"):
        load_model(tmp_path / "a.safetensors", res_scale=0.1)
