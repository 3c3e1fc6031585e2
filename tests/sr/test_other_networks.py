"""Files of other projects from the command and from Python; and what spandrel builds of the rest, where it is there."""

import sys

import numpy as np
import pytest
import test_compact as compact
import test_rrdb as rrdb
import torch
from families import randomise
from support import DEVICE, assert_pictures_close, test_patches, torchvision_or_stand_in

import ape_sr
from ape_sr.checkpoint import load_network
from ape_sr.cli import main
from ape_sr.data.images import read_image, to_image, to_tensor, write_image
from ape_sr.evaluate import Method, evaluate, find_pairs
from ape_sr.models import VDSR
from ape_sr.models.convert import from_state_dict

BOTH = [
    *("esrgan-x4", "esrgan-x2", "esrgan-x1", "esrgan-folded-x2", "esrgan-folded-x1", "compact-x4", "compact-x2"),
    *("swinir-x2", "swinir-x3", "swinir-light-x4", "swinir-real-x4", "swinir-real-large-x4"),
]
NAMES = {"realesr-animevideov3": lambda: compact.Compact(4), "anime_6B": lambda: rrdb.BasicSR().half().float()}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder of models as people have one."""
    folder = tmp_path / "models"
    folder.mkdir()
    torch.save({"params": compact.Compact(4).state_dict()}, folder / "realesr-animevideov3.pth")
    torch.save({"params_ema": rrdb.BasicSR().half().state_dict()}, folder / "anime_6B.pth")
    monkeypatch.setenv("APE_MODELS", str(folder))


def assert_same_levels(got: np.ndarray, expected: np.ndarray) -> None:
    """Rounding apart."""
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert np.mean(got != expected) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_command_takes_them_by_name(name, models, cat, tmp_path):
    write_image(tmp_path / "a.png", cat[:40, :30])
    assert main(["upscale", "-i", str(tmp_path / "a.png"), "-o", str(tmp_path / "x.png"), "-n", name]) == 0
    with torch.no_grad():
        expected = to_image(NAMES[name]()(to_tensor(cat[:40, :30])))
    assert_same_levels(read_image(tmp_path / "x.png"), expected)


def test_scales_that_do_not_fit_are_named(models, photos, capsys):
    assert main(["evaluate", "-i", str(photos), "-n", "anime_6B", "-s", "2"]) == 2
    assert "scale: expected 4, the scale of" in capsys.readouterr().err


def test_pictures_of_another_scale_are_resized(models, photos, tmp_path):
    arguments = ["upscale", str(photos / "b.bmp"), "-o", str(tmp_path / "x.png"), "-n", "anime_6B", "-s", "2"]
    assert main(arguments) == 0
    assert read_image(tmp_path / "x.png").shape == (74, 106, 3)


def test_the_command_says_the_scale_of_vdsr(tmp_path, photos, capsys):
    torch.save(VDSR(2, 4, 8, None).state_dict(), tmp_path / "vdsr.pt")
    arguments = ["upscale", str(photos / "b.bmp"), "-o", str(tmp_path / "x.png"), "-n", str(tmp_path / "vdsr.pt")]
    assert main(arguments) == 2 and "scale" in capsys.readouterr().err
    assert main([*arguments, "-s", "3"]) == 0
    assert read_image(tmp_path / "x.png").shape == (111, 159, 3)


def test_vdsr_by_the_scale_that_is_asked_for(tmp_path, cat):
    torch.save(VDSR(2, 4, 8, None).state_dict(), tmp_path / "vdsr.pt")
    assert ape_sr.load(tmp_path / "vdsr.pt", scale=3).upscale(cat[:20, :20]).shape == (60, 60, 3)


def test_without_spandrel_its_name_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    torch.save({"unet1.conv1.conv.0.weight": torch.zeros(1)}, tmp_path / "cugan.pth")
    with pytest.raises(
        ape_sr.UserError, match=r"got Real-CUGAN; with spandrel more networks load: .* install '?spandrel"
    ):
        load_network(tmp_path / "cugan.pth")
    torch.save(compact.Compact(2, colors=1).state_dict(), tmp_path / "grey.pth")
    with pytest.raises(ape_sr.UserError, match=r"body.8.weight: expected 3 \* scale \* scale channels out, got 4$"):
        load_network(tmp_path / "grey.pth")


class TestSpandrel:
    @pytest.fixture(autouse=True)
    def spandrel(self):
        with torchvision_or_stand_in():
            return pytest.importorskip("spandrel", reason="spandrel is not installed")

    def test_what_only_spandrel_builds(self, tmp_path, cat, photos):
        """An RCAN that folds squares of pixels, which none of ours does."""
        from spandrel.architectures.RCAN import RCAN

        network = RCAN(n_feats=8, n_resgroups=2, n_resblocks=2, reduction=4, scale=2, unshuffle_mod=True)
        torch.save(randomise(network, gain=1.5).state_dict(), tmp_path / "rcan.pth")
        upscaler = ape_sr.load(tmp_path / "rcan.pth")
        with torch.no_grad():
            expected = to_image(network.eval()(to_tensor(cat[:40, :40])))
        assert_same_levels(upscaler.upscale(cat[:40, :40]), expected)
        (row,) = evaluate(upscaler.network, find_pairs(photos), [Method("threshold", 0.0)])
        assert row.number("flops_share") > 0
        for setting in (dict(exit_interval=2), dict(res_scale=0.1), dict(scale=4)):
            with pytest.raises(ape_sr.UserError, match=f"^{next(iter(setting))}: expected"):
                ape_sr.load(tmp_path / "rcan.pth", **setting)

    @pytest.mark.parametrize("name", BOTH)
    def test_what_both_build(self, name):
        """Published classes that nobody here wrote."""
        import test_spandrel

        theirs = test_spandrel.built(test_spandrel.NETWORKS[name]())
        ours = from_state_dict(theirs.state_dict()).to(DEVICE)
        image = test_patches(1, 16, 24)
        with torch.no_grad():
            assert_pictures_close(ours(image), theirs(image), 1e-5)

    def test_networks_that_run_as_pytorch_modules(self, tmp_path, cat):
        from spandrel.architectures.SPAN import SPAN

        network = randomise(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2))
        torch.save({"params": network.state_dict()}, tmp_path / "span.pth")
        upscaler = ape_sr.load(tmp_path / "span.pth")
        assert upscaler.backend == "torch"
        with torch.no_grad():
            expected = to_image(network.eval()(to_tensor(cat[:40, :40])))
        assert_same_levels(upscaler.upscale(cat[:40, :40]), expected)

    def test_networks_of_other_colours_are_refused(self, tmp_path):
        torch.save(compact.Compact(2, colors=1).state_dict(), tmp_path / "grey.pth")
        with pytest.raises(ape_sr.UserError, match=r"grey.pth: expected a network of 3 colours to 3, got 1 to 1"):
            ape_sr.load(tmp_path / "grey.pth")

    def test_what_nobody_builds(self, tmp_path):
        torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "odd.pth")
        with pytest.raises(ape_sr.UserError, match=r"expected the keys of ECBSR, .*, got the key encoder.weight$"):
            ape_sr.load(tmp_path / "odd.pth")

    def test_what_no_kernel_runs(self, tmp_path):
        from spandrel.architectures.SAFMN import SAFMN

        torch.save(SAFMN(dim=8, n_blocks=1).state_dict(), tmp_path / "safmn.pth")
        with pytest.raises(ape_sr.UserError, match=r"safmn.pth: model: SAFMN"):
            ape_sr.load(tmp_path / "safmn.pth")
