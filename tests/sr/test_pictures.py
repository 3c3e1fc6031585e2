"""Pictures keep their kind: transparency, grey, depth."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from picture_files import WEIGHTS, deep, opened, pixels
from PIL import Image
from scipy.ndimage import distance_transform_edt

import ape_sr
from ape_sr.errors import UserError
from ape_sr.pictures.planes import REACH, cover_hidden, from_planes, to_planes
from ape_sr.pictures.png import BAND_BYTES, write_png
from ape_sr.pictures.read import read_file
from ape_sr.upscaler import from_device

MAGENTA, GREEN = (255, 0, 255), (20, 120, 40)


class TestTransparency:
    """A green square on magenta that cannot be seen."""

    @pytest.fixture
    def square(self):
        square = np.zeros((40, 40, 4), np.uint8)
        square[..., :3] = MAGENTA
        square[10:30, 10:30] = (*GREEN, 255)
        return Image.fromarray(square)

    def check(self, path, tolerance=0):
        out = np.asarray(opened(path).convert("RGBA")).astype(int)
        assert out.shape == (80, 80, 4)
        assert out[0, 0, 3] == 0 and out[40, 40, 3] == 255
        assert not out[:16, :, 3].any() and (out[24:56, 24:56, 3] == 255).all(), "flat stays flat"
        seen = out[out[..., 3] > 0]
        assert (seen[:, 1] > seen[:, 0] + tolerance).all() and (seen[:, 1] > seen[:, 2]).all(), (
            "no magenta at the edges"
        )

    @pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
    def test_rgba(self, tmp_path, square, upscaled, suffix):
        square.save(tmp_path / f"in.{suffix}", lossless=True, exact=True)
        upscaled(tmp_path / f"in.{suffix}", tmp_path / "out.png")
        assert opened(tmp_path / "out.png").mode == "RGBA"
        self.check(tmp_path / "out.png")

    @pytest.mark.parametrize("suffix", ["webp", "tif", "gif"])
    def test_formats_that_keep_it(self, tmp_path, square, upscaled, suffix):
        square.save(tmp_path / "in.png")
        upscaled(tmp_path / "in.png", tmp_path / f"out.{suffix}")
        self.check(tmp_path / f"out.{suffix}")

    def test_palette(self, tmp_path, square, upscaled):
        image = Image.new("P", (40, 40), 0)
        image.putpalette([*MAGENTA, *GREEN])
        image.paste(1, (10, 10, 30, 30))
        for suffix in ("png", "gif"):
            image.save(tmp_path / f"in.{suffix}", transparency=0)
            upscaled(tmp_path / f"in.{suffix}", tmp_path / f"{suffix}.png")
            self.check(tmp_path / f"{suffix}.png")

    def test_colour_key(self, tmp_path, square, upscaled):
        square.convert("RGB").save(tmp_path / "in.png", transparency=MAGENTA)
        upscaled(tmp_path / "in.png", tmp_path / "out.png")
        self.check(tmp_path / "out.png")

    def test_grey_with_alpha(self, tmp_path, upscaled):
        levels = np.zeros((40, 40, 2), np.uint8)
        levels[10:30, 10:30] = (200, 255)
        Image.fromarray(levels).save(tmp_path / "in.png")
        upscaled(tmp_path / "in.png", tmp_path / "out.png")
        out = pixels(tmp_path / "out.png")
        assert out.shape == (80, 80, 2) and out[0, 0, 1] == 0
        expected = pixels_of_flat(200, upscaled, tmp_path)
        assert np.abs(out[..., 0][out[..., 1] > 0].astype(int) - expected).max() <= 1, "black does not shine in"

    def test_jpeg_has_white_behind(self, tmp_path, square, upscaled):
        square.save(tmp_path / "in.png")
        line = upscaled(tmp_path / "in.png", tmp_path / "out.jpg", "--quality", 100)
        out = np.asarray(opened(tmp_path / "out.jpg")).astype(int)
        assert out.shape == (80, 80, 3) and (out[0, 0] >= 253).all()
        assert line.endswith("transparency laid on white")

    def test_python_keeps_it(self, square):
        upscaler = ape_sr.load(WEIGHTS)
        picture = upscaler.upscale(square)
        assert picture.mode == "RGBA" and picture.getpixel((0, 0))[3] == 0
        assert np.array_equal(upscaler.upscale(np.asarray(square)), picture)
        assert upscaler.upscale(square, return_report=True)[1].exit_index.shape[0] == 2, "colours, and transparency"

    def test_opaque_costs_nothing(self, cat):
        upscaler = ape_sr.load(WEIGHTS)
        opaque = np.dstack([cat, np.full(cat.shape[:2], 200, np.uint8)])
        picture, report = upscaler.upscale(opaque, return_report=True)
        assert np.array_equal(picture[..., :3], upscaler.upscale(cat)) and (picture[..., 3] == 200).all()
        assert report.exit_index.shape[0] == 1

    def test_hidden_colours_are_covered(self):
        rng = np.random.default_rng(0)
        colours = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
        alpha = np.zeros((60, 90), np.uint8)
        alpha[20:30, 30:40] = 1
        covered = cover_hidden(colours, alpha)
        assert np.array_equal(covered[alpha > 0], colours[alpha > 0])
        assert np.array_equal(covered[25, 39 + 5], colours[25, 39])
        far = distance_transform_edt(alpha == 0) > REACH
        mean = colours[alpha > 0].mean(axis=0).round()
        assert (covered[far] == mean).all()


def pixels_of_flat(level, upscaled, folder):
    """The median of what the network makes of one flat grey."""
    Image.new("L", (40, 40), level).save(folder / "flat.png")
    upscaled(folder / "flat.png", folder / "flat_out.png")
    return int(np.median(pixels(folder / "flat_out.png")))


class TestGrey:
    @pytest.mark.parametrize("mode", ["L", "1", "P"])
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
    def test_one_channel(self, tmp_path, upscaled, mode, suffix):
        y, x = np.mgrid[0:60, 0:80]
        image = Image.fromarray(((x // 5 + y // 3) % 2 * 255).astype(np.uint8))
        image.convert(mode).save(tmp_path / "in.png")
        upscaled(tmp_path / "in.png", tmp_path / f"out.{suffix}")
        assert opened(tmp_path / f"out.{suffix}").mode == "L"
        assert pixels(tmp_path / f"out.{suffix}").shape == (120, 160, 1)

    def test_webp_has_no_colour_in_it(self, tmp_path, cat, upscaled):
        Image.fromarray(cat).convert("L").save(tmp_path / "in.png")
        upscaled(tmp_path / "in.png", tmp_path / "out.webp")
        assert np.ptp(np.asarray(opened(tmp_path / "out.webp")).astype(int), axis=2).max() <= 2

    def test_is_the_luma_of_what_the_network_gives(self, cat):
        grey = np.asarray(Image.fromarray(cat).convert("L"))
        upscaler = ape_sr.load(WEIGHTS)
        out = upscaler.upscale(grey[..., None])[..., 0].astype(int)
        luma = np.asarray(Image.fromarray(upscaler.upscale(np.dstack([grey] * 3))).convert("L")).astype(int)
        assert np.abs(out - luma).max() <= 1


class TestDepth:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("source, target", [("png", "png"), ("tif", "tif"), ("png", "tif"), ("tif", "png")])
    def test_16_bits_through(self, tmp_path, upscaled, channels, source, target):
        save_deep(tmp_path / f"in.{source}", deep(channels))
        assert np.array_equal(pixels(tmp_path / f"in.{source}"), deep(channels))
        upscaled(tmp_path / f"in.{source}", tmp_path / f"out.{target}")
        decode = imagecodecs.png_decode if target == "png" else lambda data: tifffile.imread(io.BytesIO(data))
        out = decode((tmp_path / f"out.{target}").read_bytes())
        assert out.dtype == np.uint16 and out.shape[:2] == (80, 128)
        colours = out.reshape(80, 128, -1)[..., : 1 if channels < 3 else 3]
        assert len(np.unique(colours)) > 256 and (colours % 257 != 0).any(), "finer than 8 bits"
        if channels % 2 == 0:
            assert out[0, 0, -1] == 0 and out[-1, -1, -1] == 65535

    def test_the_same_as_8_bits(self, cat):
        """Eight bits in sixteen give what eight give, but for rounding."""
        upscaler = ape_sr.load(WEIGHTS)
        fine = upscaler.upscale(cat.astype(np.uint16) * 257)
        assert np.abs(fine / 257 - upscaler.upscale(cat)).max() <= 0.502

    def test_the_loss_is_said(self, tmp_path, upscaled):
        save_deep(tmp_path / "in.png", deep(3))
        line = upscaled(tmp_path / "in.png", tmp_path / "out.jpg")
        assert line.endswith("8 bits per channel, as jpg has no more")

    def test_colour_key(self, tmp_path):
        save_deep(tmp_path / "in.png", deep(3), transparency=(5000, 5000, 5000))
        assert (pixels(tmp_path / "in.png")[..., 3] == 0).sum() == (deep(1) == 5000).sum()

    def test_multiplied_alpha_and_white_is_zero(self, tmp_path):
        image = deep(4)
        image[..., 3] = 32768
        tifffile.imwrite(tmp_path / "a.tif", image // 2, photometric="rgb", extrasamples=["assocalpha"])
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
            file.pages[0].asarray()
        half = image.copy() // 2
        half[..., 3] = 32768
        tifffile.imwrite(tmp_path / "a.tif", half, photometric="rgb", extrasamples=["assocalpha"])
        assert np.abs(pixels(tmp_path / "a.tif").astype(int) - image).max() <= 2
        tifffile.imwrite(tmp_path / "w.tif", 65535 - deep(1)[..., 0], photometric="miniswhite")
        assert np.array_equal(pixels(tmp_path / "w.tif"), deep(1))

    def test_more_is_refused(self, tmp_path):
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
        with pytest.raises(UserError, match=r"x\.tif: expected 8 or 16 bits per channel, got mode F"):
            read_file(tmp_path / "x.tif")


def save_deep(path, image, transparency=None):
    """Write a file of 16 bits with libraries that the project does not write with."""
    if path.suffix == ".tif":
        extra = ["unassalpha"] if image.shape[2] in (2, 4) else None
        photometric = "rgb" if image.shape[2] >= 3 else "minisblack"
        planar = "contig" if image.shape[2] > 1 else None
        image = image[..., 0] if image.shape[2] == 1 else image
        tifffile.imwrite(path, image, photometric=photometric, extrasamples=extra, planarconfig=planar)
        return
    data = imagecodecs.png_encode(image[..., 0] if image.shape[2] == 1 else image)
    if transparency is not None:
        chunk = b"tRNS" + struct.pack(">3H", *transparency)
        chunk = struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = data[:33] + chunk + data[33:]
    path.write_bytes(data)


class TestPng:
    """What `write_png` writes, other libraries read."""

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("shape", [(1, 1), (3, 700), (900, 1300)])
    def test_comes_back(self, channels, dtype, shape):
        from concurrent.futures import ThreadPoolExecutor

        image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (*shape, channels), dtype=dtype)
        image = np.sort(image, axis=1)  # smooth along rows
        assert shape[0] < 900 or channels * shape[0] * shape[1] > BAND_BYTES, "several bands"
        with ThreadPoolExecutor(3) as threads:
            for helpers in (None, threads):
                file = io.BytesIO()
                write_png(file, image, threads=helpers)
                decoded = imagecodecs.png_decode(file.getvalue())
                assert np.array_equal(decoded.reshape(image.shape), image)
        if dtype == np.uint8:
            file.seek(0)
            assert np.array_equal(np.asarray(Image.open(file)).reshape(image.shape), image)

    def test_size(self, cat):
        """Within 15 % of zlib's level 6, on what a network makes of a photo."""
        picture = ape_sr.load("edsr-12x32-x4").upscale(cat)
        ours, theirs = io.BytesIO(), io.BytesIO()
        write_png(ours, picture)
        Image.fromarray(picture).save(theirs, "png", compress_level=6)
        assert len(ours.getvalue()) < 1.15 * len(theirs.getvalue())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gpu_rounds_as_the_cpu_does(dtype, channels):
    planes = np.random.default_rng(0).uniform(-0.1, 1.1, (3, 50, 70)).astype(np.float32)
    here, there = (np.empty((50, 70, channels), dtype) for _ in range(2))
    from_planes(planes, 1.0, here)
    from_device(torch.from_numpy(planes), 1.0, there)
    assert np.abs(here.astype(int) - there).max() <= (channels == 1)


def test_planes_and_back(cat):
    for dtype, levels in ((np.uint8, cat), (np.uint16, cat.astype(np.uint16) * 257 + 3)):
        for rgb_range in (1.0, 255.0):
            out = np.empty_like(levels)
            from_planes(to_planes(levels, rgb_range)[0], rgb_range, out)
            assert np.array_equal(out, levels), (dtype, rgb_range)
    out = np.empty((1, 3, 3), np.uint8)
    planes = np.array([-1, 0.5 / 255, 1.5 / 255, 0.49 / 255, 2, 0.999, 0, 1, 0.5], np.float32).reshape(1, 3, 3)
    from_planes(planes.transpose(2, 0, 1).copy(), 1.0, out)
    assert out.ravel().tolist() == [0, 0, 2, 0, 255, 255, 0, 255, 128]
