"""The Python interface: load, then upscale what a user has at hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import ape_sr
from ape_kernels import APEForward, BackendUnavailable
from ape_sr.checkpoint import load_model
from ape_sr.data.images import to_image, to_tensor
from ape_sr.weights import shipped_names


@pytest.fixture(scope="module")
def upscaler(weights):
    return ape_sr.load(weights)


@pytest.fixture(scope="module")
def expected(weights, cat):
    """What the network makes of the cat, uint8."""
    return to_image(APEForward(load_model(weights))(to_tensor(cat)))


class TestKinds:
    """The picture is of the kind that the image was."""

    def test_array(self, upscaler, cat, expected):
        cat.flags.writeable = False
        try:
            assert np.array_equal(upscaler.upscale(cat), expected)
        finally:
            cat.flags.writeable = True

    def test_array_turned_around(self, upscaler, cat):
        turned = cat[::-1, :, ::-1]
        assert np.array_equal(upscaler.upscale(turned), upscaler.upscale(turned.copy()))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_array_of_floats(self, upscaler, cat, expected, dtype):
        picture = upscaler.upscale((cat / 255).astype(dtype))
        assert picture.dtype == dtype and picture.min() >= 0 and picture.max() <= 1
        assert np.abs(picture.astype(float) * 255 - expected).max() < (2 if dtype == np.float16 else 0.51)

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_floats_are_what_whole_numbers_are(self, upscaler, cat, channels):
        """In grey, and with transparency, parts of it hidden."""
        image = cat[..., :1] if channels < 3 else cat
        if channels % 2 == 0:
            alpha = np.tile(np.linspace(0, 255, 120).astype(np.uint8), (100, 1))
            alpha[:60, :60] = 0
            image = np.concatenate([image, alpha[..., None]], axis=2)
        expected = upscaler.upscale(image)
        picture, report = upscaler.upscale((image / 255).astype(np.float32), return_report=True)
        assert picture.shape == (200, 240, channels) and picture.dtype == np.float32
        seen = expected[..., -1:] > 0 if channels % 2 == 0 else np.ones_like(expected)
        assert (np.abs(picture * 255.0 - expected) * seen).max() < 0.51
        drawn = upscaler.exit_map(picture, report).astype(int)
        assert np.abs(drawn - upscaler.exit_map(expected, report)).max() <= 1

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_grey_as_a_plane(self, upscaler, cat, dtype):
        image = cat[..., 0].astype(dtype) / (1 if dtype != np.float32 else 255)
        image = image.astype(dtype)
        picture, report = upscaler.upscale(image, return_report=True)
        assert picture.dtype == dtype and np.array_equal(picture, upscaler.upscale(image[..., None])[..., 0])
        assert upscaler.exit_map(picture, report).ndim == 3

    def test_tensors(self, upscaler, cat, expected):
        planes, picture = (torch.from_numpy(array).permute(2, 0, 1) for array in (cat, expected))
        assert torch.equal(upscaler.upscale(planes), picture)
        assert torch.equal(upscaler.upscale(torch.stack([planes, planes.flip(1)]))[0], picture)
        floats = upscaler.upscale(planes.double() / 255)
        assert floats.dtype == torch.float64 and (floats * 255 - picture).abs().max() < 0.51

    @pytest.mark.parametrize("mode, out", [("RGB", "RGB"), ("L", "L"), ("RGBA", "RGBA"), ("LA", "LA"), ("P", "RGB")])
    def test_pil(self, upscaler, cat, mode, out):
        image = Image.fromarray(cat).convert(mode)
        picture = upscaler.upscale(image)
        assert picture.mode == out and picture.size == (240, 200)
        pixels = np.asarray(image.convert(out)).reshape(100, 120, -1)
        assert np.array_equal(np.asarray(picture).reshape(200, 240, -1), upscaler.upscale(pixels))

    def test_pil_of_16_bits(self, upscaler, cat):
        levels = cat[..., 0].astype(np.uint16) * 257
        picture = upscaler.upscale(Image.fromarray(levels))
        assert picture.mode == "I;16"
        assert np.array_equal(np.asarray(picture)[..., None], upscaler.upscale(levels[..., None]))

    def test_a_file_lies_on_its_side_as_its_camera_says(self, upscaler, cat, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        Image.fromarray(cat).save(tmp_path / "cat.png", exif=exif)
        for name in (tmp_path / "cat.png", str(tmp_path / "cat.png")):
            assert np.array_equal(upscaler.upscale(name), upscaler.upscale(np.rot90(cat, -1)))


class TestSettings:
    def test_report_of_a_plan(self, fitted_weights, cat):
        upscaler = ape_sr.load(fitted_weights)
        picture, report = upscaler.upscale(cat, return_report=True)
        assert upscaler.network.fidelity == 48 and report.plan.asked == 48
        assert f"{report.share:.1%} of the computation, " in str(report) and report.share < 1
        assert f"{float(report.plan.picture_fidelity):.1f} dB expected to full depth" in str(report)
        upscaler.network.fidelity = 30  # all interpolated
        assert "100% interpolated, backend" in str(upscaler.upscale(cat, return_report=True)[1])
        full, report = ape_sr.load(fitted_weights, fidelity=None).upscale(cat, return_report=True)
        assert report.share == 1 and report.plan is None
        assert not np.array_equal(full, picture) and np.abs(full.astype(int) - picture).mean() < 1

    def test_report(self, weights, cat):
        upscaler = ape_sr.load(weights, threshold=0)
        picture, report = upscaler.upscale(cat, return_report=True)
        assert picture.shape == (200, 240, 3) and upscaler.scale == 2
        assert (report.share, report.mean_exit, report.backend) == (1, 3, upscaler.backend) and report.seconds > 0
        assert "100.0% of the computation, mean exit 3.00 of 0..3" in str(report)

    @pytest.mark.parametrize(
        "settings",
        [
            dict(threshold=0.3),
            dict(min_gain_db=0.2),
            dict(fidelity=40),
            dict(budget=0.5),
            dict(threshold=0.3, patch_size=20),
            dict(dtype="bf16"),
        ],
    )
    def test_reach_the_network(self, fitted_weights, cat, settings):
        """On the torch backend, which computes in bf16 on any CPU."""
        picture, report = ape_sr.load(fitted_weights, backend="torch", **settings).upscale(cat, return_report=True)
        own = {"backend": "torch"} | settings | ({"dtype": torch.bfloat16} if "dtype" in settings else {})
        sr, other = APEForward(load_model(fitted_weights), **own)(to_tensor(cat), return_report=True)
        assert torch.equal(report.exit_index, other.exit_index) and np.array_equal(picture, to_image(sr))

    def test_backend_and_device(self, weights, cat, expected):
        upscaler = ape_sr.load(weights, backend="torch", device="cpu")
        assert upscaler.backend == "torch"
        assert np.abs(upscaler.upscale(cat).astype(int) - expected).max() <= 1

    def test_settings_change_between_calls(self, fitted_weights, cat):
        upscaler = ape_sr.load(fitted_weights)
        upscaler.network.threshold = 0
        assert upscaler.upscale(cat, return_report=True)[1].share == 1
        upscaler.network.budget = 0.3
        assert upscaler.upscale(cat, return_report=True)[1].share <= 0.3

    def test_shipped_weights_by_name(self, cat):
        assert shipped_names() == ["edsr-12x32-x2", "edsr-12x32-x4"]
        for name in shipped_names():
            upscaler = ape_sr.load(name)
            assert f"x{upscaler.scale}" == name.rpartition("-")[2]
            assert upscaler.upscale(cat[:20, :30]).shape == (20 * upscaler.scale, 30 * upscaler.scale, 3)

    def test_exit_map(self, upscaler, cat):
        picture, report = upscaler.upscale(Image.fromarray(cat), return_report=True)
        drawn = upscaler.exit_map(picture, report)
        assert drawn.dtype == np.uint8 and drawn.shape[0] > 200 and drawn.shape[1] >= 240
        assert np.array_equal(drawn, upscaler.exit_map(np.asarray(picture), report))

    def test_exit_map_of_a_plan_and_of_patches(self, fitted_weights, cat):
        upscaler = ape_sr.load(fitted_weights, fidelity=40)
        picture, planned = upscaler.upscale(cat, return_report=True)
        drawn = upscaler.exit_map(picture, planned)
        upscaler.network.threshold = 0.2
        patches, report = upscaler.upscale(cat, return_report=True)
        assert report.exit_index.shape == (1, 3, 3) and planned.exit_index.shape == (1, 5, 5)
        assert not np.array_equal(upscaler.exit_map(patches, report), drawn)
        assert np.array_equal(upscaler.exit_map(picture, planned), drawn), "whatever is set now"


BAD_IMAGES = {
    "type": ([[1, 2, 3]], TypeError, "image: expected a path, PIL image, array or tensor, got list"),
    "a-row": (np.zeros(5, np.uint8), ValueError, "image: expected an array [H, W] or [H, W, C] with C from 1 to 4, got [5]"),
    "planes-in-an-array": (np.zeros((3, 4, 5), np.uint8), ValueError, "image: expected an array [H, W] or [H, W, C] with C from 1 to 4, got [3, 4, 5]"),
    "whole-numbers": (np.zeros((4, 5, 3), int), TypeError, "image: expected uint8, uint16 or a float dtype, got int64"),
    "whole-numbers-in-a-tensor": (torch.zeros(3, 4, 5, dtype=torch.int32), TypeError, "image: expected uint8 or a float dtype, got torch.int32"),
    "floats-to-255": (np.full((4, 5, 3), 255.0), ValueError, "image: expected values from 0 to 1, got 255 to 255"),
    "nan": (np.full((4, 5, 3), np.nan), ValueError, "image: expected values from 0 to 1, got nan to nan"),
    "pixels-last-in-a-tensor": (torch.zeros(4, 5, 3), ValueError, "image: expected a tensor [3, H, W] or [B, 3, H, W], got [4, 5, 3]"),
    "no-pixels": (np.zeros((0, 5, 3), np.uint8), ValueError, "H and W at least 1"),
    "16-bit": (Image.new("I", (5, 4)), ape_sr.UserError, "image: expected 8 or 16 bits per channel, got mode I"),
    "no-file": ("none.png", ape_sr.UserError, "none.png: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_one_line(upscaler, case):
    image, error, message = BAD_IMAGES[case]
    with pytest.raises(error) as raised:
        upscaler.upscale(image)
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1


BAD_SETTINGS = {
    "weights": (dict(weights="edsr-12x32-x3"), ape_sr.UserError, "weights: no such file: edsr-12x32-x3 (weights that come with the package: edsr-12x32-x2, edsr-12x32-x4)"),
    "no-path": (dict(weights=None), TypeError, "weights: expected a name or a path, got NoneType"),
    "dtype": (dict(dtype="fp64"), ValueError, "dtype: expected one of fp32, fp16, bf16, got 'fp64'"),
    "backend": (dict(backend="tpu"), ValueError, "backend: expected auto, "),
    "cuda-on-a-cpu": (dict(backend="cuda", device="cpu"), BackendUnavailable, "backend: cuda cannot run: "),
    "device": (dict(device="tpu"), ape_sr.UserError, "device: tpu cannot be used: "),
    "threshold": (dict(threshold=2), ValueError, "threshold: expected a number from 0 to 1, got 2"),
    "two-thresholds": (dict(threshold=0.1, min_gain_db=0.1), ValueError, "threshold: expected at most one of threshold, min_gain_db, fidelity and budget, got"),
    "budget": (dict(budget=0.1), ValueError, "budget: expected a model that carries a fit"),
    "fidelity": (dict(fidelity=45), ValueError, "fidelity: expected a model that carries a fit"),
    "fidelity-and-budget": (dict(fidelity=None, budget=0.5), ValueError, "budget: expected at most one of"),
    "patch-size": (dict(patch_size=0), ValueError, "patch_size: expected a whole number of at least 1, got 0"),
    "scale": (dict(scale=3), ape_sr.UserError, "scale: expected 2, the scale of "),
    "scale-of-shipped-weights": (dict(weights="edsr-12x32-x4", scale=3), ape_sr.UserError, "scale: expected 4, the scale of "),
    "interval": (dict(exit_interval=2), ape_sr.UserError, "exit_interval: expected with a file of another project, as "),
    "res-scale": (dict(res_scale=0.1), ape_sr.UserError, "res_scale: expected with a file of another project, as "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_one_line(weights, case):
    settings, error, message = BAD_SETTINGS[case]
    with pytest.raises(error) as raised:
        ape_sr.load(**{"weights": weights} | settings)
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_importing_is_light():
    code = (
        "import sys, ape_sr; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules); print(ape_sr.load, dir(ape_sr))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Upscaler" in done.stdout
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ape_sr.nothing
