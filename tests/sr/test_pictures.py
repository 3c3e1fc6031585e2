"""Pictures keep what they carry: transparency, grey, depth, profiles, EXIF data, frames."""

import io
import struct
import zlib
from functools import cache

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps
from scipy.ndimage import distance_transform_edt

import ape_sr
from ape_sr.cli import main
from ape_sr.errors import UserError
from ape_sr.pictures.frames import Carried, Frame
from ape_sr.pictures.planes import REACH, cover_hidden, from_planes, to_planes
from ape_sr.pictures.png import BAND_BYTES, write_png
from ape_sr.pictures.read import read_file, read_note
from ape_sr.pictures.write import write_picture
from ape_sr.upscaler import from_device

MAGENTA, GREEN = (255, 0, 255), (20, 120, 40)


@pytest.fixture(scope="session")
def weights() -> str:
    """Trained ones: colours stay what they are."""
    return "edsr-12x32-x2"


@pytest.fixture
def upscaled(weights, capsys):
    """Runs the command on one image; gives the line that it printed."""

    def run(source, target, *options) -> str:
        arguments = ["upscale", source, "-o", target, "-n", weights, *options]
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out.splitlines()[0]

    return run


def pixels(path) -> np.ndarray:
    (frame,) = read_file(path).frames
    return frame.pixels


def opened(path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


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

    def test_python_keeps_it(self, square, weights):
        upscaler = ape_sr.load(weights)
        picture = upscaler.upscale(square)
        assert picture.mode == "RGBA" and picture.getpixel((0, 0))[3] == 0
        assert np.array_equal(upscaler.upscale(np.asarray(square)), picture)
        assert upscaler.upscale(square, return_report=True)[1].exit_index.shape[0] == 2, "colours, and transparency"

    def test_opaque_costs_nothing(self, cat, weights):
        upscaler = ape_sr.load(weights)
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

    def test_is_the_luma_of_what_the_network_gives(self, cat, weights):
        grey = np.asarray(Image.fromarray(cat).convert("L"))
        upscaler = ape_sr.load(weights)
        out = upscaler.upscale(grey[..., None])[..., 0].astype(int)
        luma = np.asarray(Image.fromarray(upscaler.upscale(np.dstack([grey] * 3))).convert("L")).astype(int)
        assert np.abs(out - luma).max() <= 1


def deep(channels: int) -> np.ndarray:
    """uint16 ``[40, 64, channels]``, a slope with steps finer than 8 bits; alpha of 65535 but for a corner."""
    y, x = np.mgrid[0:40, 0:64]
    slope = (5000 + (y * 64 + x) // 4).astype(np.uint16)
    image = np.repeat(slope[..., None], channels, axis=2)
    if channels % 2 == 0:
        image[..., -1] = 65535
        image[:8, :8, -1] = 0
    return image


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

    def test_the_same_as_8_bits(self, cat, weights):
        """Eight bits in sixteen give what eight give, but for rounding."""
        upscaler = ape_sr.load(weights)
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
    """By libraries that the project does not write with."""
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


@cache
def swapped_profile() -> bytes:
    """A profile in which red and green are exchanged."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = icc.index(b"rXYZ"), icc.index(b"gXYZ")
    icc[red : red + 4], icc[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(icc)


class TestProfile:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
    def test_goes_along_unchanged(self, tmp_path, cat, upscaled, suffix):
        Image.fromarray(cat).save(tmp_path / "in.png", icc_profile=swapped_profile())
        upscaled(tmp_path / "in.png", tmp_path / f"out.{suffix}")
        assert opened(tmp_path / f"out.{suffix}").info["icc_profile"] == swapped_profile()

    def test_of_16_bits(self, tmp_path, upscaled):
        tifffile.imwrite(tmp_path / "in.tif", deep(3), photometric="rgb", iccprofile=swapped_profile())
        upscaled(tmp_path / "in.tif", tmp_path / "out.png")
        assert opened(tmp_path / "out.png").info["icc_profile"] == swapped_profile()

    def test_of_other_colours_is_followed(self, tmp_path, cat, upscaled):
        """A profile for RGB makes no sense in a grey picture; a grey one's is kept."""
        grey = Image.fromarray(cat).convert("L")
        grey.save(tmp_path / "in.png", icc_profile=swapped_profile())
        upscaled(tmp_path / "in.png", tmp_path / "out.png")
        assert "icc_profile" not in opened(tmp_path / "out.png").info

    def test_cmyk_becomes_rgb(self, tmp_path, cat, upscaled):
        Image.fromarray(cat).convert("CMYK").save(tmp_path / "in.jpg", icc_profile=b"damaged")
        upscaled(tmp_path / "in.jpg", tmp_path / "out.png")
        out = opened(tmp_path / "out.png")
        assert out.mode == "RGB" and "icc_profile" not in out.info


def exif(orientation=6) -> Image.Exif:
    data = Image.Exif()
    data[0x010F] = "A maker"
    data[0x0112] = orientation
    data.get_ifd(0x8769)[0x829D] = 2.8  # aperture
    data[0x8769] = data.get_ifd(0x8769)
    return data


class TestExif:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
    def test_kept_but_for_orientation(self, tmp_path, cat, upscaled, suffix):
        Image.fromarray(cat).save(tmp_path / "in.jpg", exif=exif())
        upscaled(tmp_path / "in.jpg", tmp_path / f"out.{suffix}")
        out = opened(tmp_path / f"out.{suffix}")
        assert out.size == (200, 240), "turned once"
        kept = out.getexif()
        assert kept[0x010F] == "A maker" and kept.get(0x0112, 1) == 1
        assert float(kept.get_ifd(0x8769)[0x829D]) == pytest.approx(2.8)

    def test_of_16_bits_in_tiff(self, tmp_path, upscaled):
        save_deep(tmp_path / "deep.png", deep(3))
        write_picture(tmp_path / "in.png", [Frame(deep(3))], Carried(exif=exif(1).tobytes().removeprefix(b"Exif\0\0")))
        upscaled(tmp_path / "in.png", tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            tags = file.pages[0].tags
            assert tags.valueof(271) == "A maker" and tags.valueof(0x8769)["FNumber"] == pytest.approx(2.8)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
    def test_every_orientation(self, tmp_path, cat, orientation, suffix):
        path = tmp_path / f"in.{suffix}"
        Image.fromarray(cat).save(path, exif=exif(orientation), lossless=True)
        with Image.open(path) as image:
            assert np.array_equal(pixels(path), np.asarray(ImageOps.exif_transpose(image)))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_orientation_of_16_bits(self, tmp_path, orientation):
        extra = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(tmp_path / "in.tif", deep(3), photometric="rgb", extratags=extra)
        small = Image.fromarray((deep(3) >> 8).astype(np.uint8))
        small.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(small))
        assert np.array_equal(pixels(tmp_path / "in.tif") >> 8, expected)

    @pytest.mark.parametrize("damage", ["cut", "no-structure", "orientation-9", "loop"])
    def test_damaged_never_fails(self, tmp_path, cat, upscaled, damage):
        data = exif(9 if damage == "orientation-9" else 6).tobytes()
        if damage == "cut":
            data = data[:20]
        elif damage == "no-structure":
            data = b"Exif\0\0" + bytes(range(200))
        elif damage == "loop":
            data = data[:10] + b"\xff\xff\xff\xff" + data[14:]
        Image.fromarray(cat).save(tmp_path / "in.jpg", exif=data)
        for suffix in ("png", "jpg", "tif"):
            upscaled(tmp_path / "in.jpg", tmp_path / f"out.{suffix}")
            assert opened(tmp_path / f"out.{suffix}").size in ((240, 200), (200, 240))


class TestFrames:
    @pytest.fixture
    def frames(self):
        return [Image.new("RGB", (40, 30), (60 * i, 90, 30)) for i in range(4)]

    DURATIONS = (40, 80, 120, 160)

    @pytest.mark.parametrize("source", ["gif", "webp", "png", "avif"])
    @pytest.mark.parametrize("target", ["png", "gif", "webp", "avif"])
    def test_animations(self, tmp_path, frames, upscaled, source, target):
        path, out = tmp_path / f"in.{source}", tmp_path / f"out.{target}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=self.DURATIONS, loop=3)
        line = upscaled(path, out)
        assert ", 4 frames, " in line
        with Image.open(out) as image:
            assert image.n_frames == 4 and image.size == (80, 60)
            durations, reds = [], []
            for index in range(4):
                image.seek(index)
                image.load()
                durations.append(image.info["duration"])
                reds.append(image.convert("RGB").getpixel((40, 30))[0])
            assert durations == list(self.DURATIONS)
            assert np.diff(reds).min() > 30, "each frame its own"
            if "avif" not in (source, target):
                gif = (source == "gif") - (target == "gif")  # says how often it is repeated
                assert image.info["loop"] == 3 + gif

    def test_transparent_animation(self, tmp_path, upscaled):
        frames = [Image.new("RGBA", (40, 30)) for _ in range(3)]
        for index, frame in enumerate(frames):
            frame.paste((200, 30, 30, 255), (10 * index, 5, 10 * index + 10, 25))
        frames[0].save(tmp_path / "in.png", save_all=True, append_images=frames[1:], duration=50)
        for suffix in ("png", "webp", "gif"):
            upscaled(tmp_path / "in.png", tmp_path / f"out.{suffix}")
            with Image.open(tmp_path / f"out.{suffix}") as image:
                for index in range(3):
                    image.seek(index)
                    alpha = np.asarray(image.convert("RGBA"))[30, :, 3] > 127
                    assert alpha[20 * index + 10] and alpha.sum() in range(16, 25), (suffix, index)

    def test_pages(self, tmp_path, cat, upscaled):
        pages = [Image.fromarray(cat), Image.fromarray(cat[:50]), Image.fromarray(cat).convert("L")]
        pages[0].save(tmp_path / "in.tif", save_all=True, append_images=pages[1:])
        upscaled(tmp_path / "in.tif", tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert [page.shape for page in file.pages] == [(200, 240, 3), (100, 240, 3), (200, 240)]

    def test_what_cannot_hold_them_says_so(self, tmp_path, frames, weights, upscaled, capsys):
        frames[0].save(tmp_path / "in.tif", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
        for source, target, what in (("tif", "png", "4 pages"), ("gif", "jpg", "4 frames"), ("gif", "tif", "4 frames")):
            arguments = ["upscale", tmp_path / f"in.{source}", "-o", tmp_path / f"out.{target}", "-n", weights]
            assert main(list(map(str, arguments))) == 2
            assert f"{target} cannot hold the {what} of the input" in capsys.readouterr().err
            assert not (tmp_path / f"out.{target}").exists()
            line = upscaled(tmp_path / f"in.{source}", tmp_path / f"out.{target}", "--first-frame")
            assert "first of 4 frames" in line

    def test_a_folder_takes_the_format_that_holds_them(self, tmp_path, frames, weights):
        (tmp_path / "in").mkdir()
        frames[0].save(tmp_path / "in" / "a.tif", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / "in" / "b.gif", save_all=True, append_images=frames[1:])
        assert main(["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-n", str(weights)]) == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x2.tif", "b_x2.png"]
        for name in ("a_x2.tif", "b_x2.png"):
            with Image.open(tmp_path / "out" / name) as image:
                assert image.n_frames == 4

    def test_a_preview_is_no_frame(self, tmp_path, cat, upscaled):
        """Cameras put a small version into JPEG files."""
        image = Image.fromarray(cat)
        image.save(tmp_path / "in.jpg", format="MPO", save_all=True, append_images=[image.resize((30, 25))])
        assert "frames" not in upscaled(tmp_path / "in.jpg", tmp_path / "out.png")


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

    def test_size(self, cat, weights):
        """Within 15 % of zlib's level 6, on what a network makes of a photo."""
        picture = ape_sr.load("edsr-12x32-x4").upscale(cat)
        ours, theirs = io.BytesIO(), io.BytesIO()
        write_png(ours, picture)
        Image.fromarray(picture).save(theirs, "png", compress_level=6)
        assert len(ours.getvalue()) < 1.15 * len(theirs.getvalue())


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "avif"])
def test_notes_come_back(tmp_path, cat, suffix):
    note = '{"source": "a <b> & c.png", "bytes": 3}'
    path = tmp_path / f"x.{suffix}"
    write_picture(path, [Frame(cat)], note=note)
    assert read_note(path) == note
    Image.fromarray(cat).save(path)
    assert read_note(path) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gpu_rounds_as_the_cpu_does(dtype, channels):
    planes = np.random.default_rng(0).uniform(-0.1, 1.1, (3, 50, 70)).astype(np.float32)
    here, there = (np.empty((50, 70, channels), dtype) for _ in range(2))
    from_planes(planes, 1.0, here)
    from_device(torch.from_numpy(planes), 1.0, there)
    assert np.abs(here.astype(int) - there).max() <= (channels == 1)


def test_an_animation_of_16_bits_is_not_cut(tmp_path):
    """An APNG whose frames Pillow would read as 8 bits."""
    file = io.BytesIO()
    write_png(file, deep(3))
    data = file.getvalue()
    control = struct.pack(">IIIIIHHBB", 0, 64, 40, 0, 0, 1, 10, 0, 0)
    chunks = [(b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", control)]
    extra = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    (tmp_path / "in.png").write_bytes(data[:33] + extra + data[33:])
    with pytest.raises(UserError, match="expected 8 bits per channel in an animation, got 16; --first-frame takes one"):
        list(read_file(tmp_path / "in.png").frames)
    (frame,) = read_file(tmp_path / "in.png", first_frame=True).frames
    assert np.array_equal(frame.pixels, deep(3))


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
