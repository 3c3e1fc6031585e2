"""Fits of trained weights: made by the command, stored with weights or beside them, and kept promises."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from skimage import data
from support import spread_network

from ape_kernels import APEForward
from ape_kernels.plan import make_plan, plan_within
from ape_kernels.plan.fit import ExitFit
from ape_sr.checkpoint import load_model, save_model
from ape_sr.cli import fit, main
from ape_sr.data.degrade import bicubic_downscale
from ape_sr.data.images import to_tensor, write_image
from ape_sr.errors import UserError
from ape_sr.weights import shipped_weights


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures, smooth ones and textured ones."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("astronaut", "coffee", "rocket", "grass", "hubble_deep_field", "retina"):
        picture = getattr(data, name)()
        picture = np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture[..., :3]
        write_image(folder / f"{name}.png", np.ascontiguousarray(picture[:360, :400]))
    return folder


@pytest.fixture(scope="module")
def fitted(pictures, tmp_path_factory):
    """Shipped weights with a fit to these pictures inside."""
    path = tmp_path_factory.mktemp("fitted") / "with_fit.safetensors"
    assert run("fit", "-n", shipped_weights(2), "-i", pictures, "-o", path) == 0
    return path


def test_weights_carry_their_fit(fitted, capsys):
    model = load_model(fitted)
    assert isinstance(model.exit_fit, ExitFit)
    assert (model.exit_fit.scale, model.exit_fit.stages) == (2, 6)
    plain = load_model(shipped_weights(2), with_fit=False)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_fidelity_asked_for_is_kept_on_a_picture_never_seen(fitted):
    model = load_model(fitted)
    fast = APEForward(model, threshold=0.0)
    low = bicubic_downscale(np.ascontiguousarray(data.chelsea()[:288, :432]), 2)  # 3 x 4.5 cells of 48 pixels
    image = to_tensor(low, model.rgb_range)
    pictures = fast.forward_patches(image.expand(6, -1, -1, -1), exit_at=torch.arange(6))[0]
    bicubic = torch.nn.functional.interpolate(image, scale_factor=2, mode="bicubic")
    candidates = (torch.cat([bicubic, pictures]) / model.rgb_range).clamp(0, 1)
    squares = (candidates - candidates[-1]).square().mean(1)
    cells = torch.nn.functional.avg_pool2d(squares, 2 * model.exit_fit.cell)
    for asked in (40.0, 45.0, 50.0):
        plan = make_plan(model.exit_fit, fast.program, image, asked)
        assert plan.share < 0.9
        got = cells.gather(0, plan.exit_at + 1)
        wholes = -10 * torch.log10(torch.nn.functional.avg_pool2d(got, 48 // model.exit_fit.cell).clamp_min(1e-9))
        assert (wholes >= asked - 2).float().mean() >= 0.9  # a fit to six pictures
        assert -10 * torch.log10(got.mean()) >= asked


def test_a_budget_takes_the_smooth_cells_away_first(fitted):
    model = load_model(fitted)
    image = to_tensor(np.ascontiguousarray(data.chelsea()[:144, :144]), model.rgb_range)
    smooth = torch.nn.functional.avg_pool2d(image, 9, 1, 4, count_include_pad=False)
    image[..., :72] = (smooth[..., :72] * 255).round() / 255
    plan = plan_within(model.exit_fit, APEForward(model).program, image, 0.5)
    assert plan.share <= 0.5
    assert plan.exit_at[..., :2].float().mean() < plan.exit_at[..., 4:].float().mean()


class TestBeside:
    def test_a_fit_beside_the_weights_is_found(self, fitted, tmp_path):
        weights = tmp_path / "mine.safetensors"
        save_model(weights, load_model(shipped_weights(2), with_fit=False))
        assert load_model(weights).exit_fit is None
        (tmp_path / "mine.safetensors.fit.safetensors").write_bytes(_fit_alone(fitted, tmp_path))
        assert load_model(weights).exit_fit.fingerprint == load_model(fitted).exit_fit.fingerprint

    def test_of_other_weights_it_is_refused(self, fitted, tmp_path):
        weights = tmp_path / "other.safetensors"
        save_model(weights, spread_network(2, 4, 8, 1))
        (tmp_path / "other.safetensors.fit.safetensors").write_bytes(_fit_alone(fitted, tmp_path))
        with pytest.raises(
            UserError, match=r"fit: .*other.safetensors.fit.safetensors: expected one of the weights in"
        ):
            load_model(weights)
        assert load_model(weights, with_fit=False).scale == 2

    def test_damaged_it_is_named(self, tmp_path):
        weights = tmp_path / "mine.safetensors"
        save_model(weights, spread_network(2, 4, 8, 1))
        (tmp_path / "mine.safetensors.fit.safetensors").write_bytes(b"no fit")
        with pytest.raises(UserError, match=r"fit: .*mine.safetensors.fit.safetensors: cannot be read"):
            load_model(weights)


def test_weights_that_changed_are_saved_without_the_fit(fitted, tmp_path):
    model = load_model(fitted)
    save_model(tmp_path / "same.safetensors", model)
    assert load_model(tmp_path / "same.safetensors").exit_fit is not None
    with torch.no_grad():
        model.head[0].bias.add_(0.01)
    save_model(tmp_path / "changed.safetensors", model)
    assert load_model(tmp_path / "changed.safetensors").exit_fit is None


class TestCommand:
    def test_fit_alone(self, pictures, tmp_path, weights):
        out = tmp_path / "tiny.fit.safetensors"
        assert run("fit", "-n", weights, "-i", pictures, "-o", out) == 0
        with safe_open(out, framework="pt") as file:
            assert int(file.get_tensor("stages")) == 4

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("-o", "fit.pth"), "output: expected a name ending in .safetensors, got fit.pth"),
            (("-o", "fit.safetensors", "-n", "nowhere.pth"), "weights: no such file: nowhere.pth"),
            (("-o", "fit.safetensors", "-i", "nowhere"), "input: no such file or folder: nowhere"),
        ],
    )
    def test_bad_arguments(self, arguments, message, pictures, weights, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run("fit", "-n", weights, "-i", pictures, *arguments) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_a_bad_picture_is_a_line_and_the_others_count(self, pictures, tmp_path, weights, capsys):
        """Folders and files, named with -i or without."""
        (tmp_path / "in" / "deeper").mkdir(parents=True)
        (tmp_path / "in" / "corrupt.png").write_bytes(b"no picture")
        (tmp_path / "in" / "empty.jpg").touch()
        (tmp_path / "in" / "notes.txt").touch()
        files = sorted(pictures.iterdir())
        for path in files[:2]:
            (tmp_path / "in" / "deeper" / path.name).symlink_to(path)
        out = tmp_path / "tiny.safetensors"
        assert run("fit", "-n", weights, *files[2:], "-i", tmp_path / "in", "-r", "-o", out) == 2
        printed = capsys.readouterr()
        lines = printed.err.splitlines()
        assert lines[:2] == [
            "tiny_x2.safetensors: fitting to 8 images, or as many as two minutes allow ...",
            f"then writes {out}: the weights with the fit inside",
        ]
        assert sorted(line for line in lines if "error" in line and "of 8" not in line) == [
            f"ape-sr: error: {tmp_path / 'in' / 'corrupt.png'}: not an image file that can be read",
            f"ape-sr: error: {tmp_path / 'in' / 'empty.jpg'}: not an image file that can be read",
        ]
        assert lines[-1] == "ape-sr: error: 2 of 8 images could not be read; the others served"
        assert "passed over: 1 of other kinds" in lines
        assert printed.out.splitlines()[0].startswith("a fit to 1") and f"written: {out}" in printed.out
        run("fit", "-n", weights, pictures, "-o", tmp_path / "same.safetensors")
        ours, same = (load_model(path).exit_fit for path in (out, tmp_path / "same.safetensors"))
        assert ours.stages == same.stages == 4

    def test_too_few_pictures(self, weights, photos, tmp_path, capsys):
        assert run("fit", "-n", weights, "-i", photos, "-o", tmp_path / "x.safetensors") == 2
        assert "images: expected at least 3 with 300 cells of 24x24 pixels" in capsys.readouterr().err
        assert not (tmp_path / "x.safetensors").exists()


def test_slow_networks_see_parts_of_many_pictures(tmp_path, monkeypatch):
    """Two large pictures would use up all pixels that there is time for."""
    monkeypatch.setattr(fit, "FLOPS", 1.0)
    for number in range(30):
        write_image(tmp_path / f"{number}.png", np.full((640, 1024, 3), 8 * number, np.uint8))
    chosen, faults = fit.choose_pictures(sorted(tmp_path.iterdir()), load_model(shipped_weights(2), with_fit=False))
    assert not faults
    assert len({round(picture.mean() / 8) for picture in chosen}) >= fit.FILES
    assert 0.9 * fit.PIXELS[0] < sum(picture[..., 0].size for picture in chosen) <= fit.PIXELS[0]


def _fit_alone(fitted, tmp_path):
    from ape_sr.fits import save_fit

    save_fit(tmp_path / "alone.fit.safetensors", load_model(fitted).exit_fit)
    return (tmp_path / "alone.fit.safetensors").read_bytes()
