"""Pictures keep what they carry besides their pixels: profiles, EXIF data, frames, notes."""

import io
import struct
import zlib
from functools import cache

import numpy as np
import pytest
import tifffile
from picture_files import WEIGHTS, deep, opened, pixels
from PIL import Image, ImageCms, ImageOps

from ape_sr.cli import main
from ape_sr.errors import UserError
from ape_sr.pictures.frames import Carried, Frame
from ape_sr.pictures.png import write_png
from ape_sr.pictures.read import read_file, read_note
from ape_sr.pictures.write import write_picture


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
        write_picture(tmp_path / "in.png", [Frame(deep(3))], Carried(exif=exif(1).tobytes().removeprefix(b"Exif\0\0")))
        upscaled(tmp_path / "in.png", tmp_path / "out.tif")
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            tags = file.pages[0].tags
            assert tags.valueof(271) == "A maker" and tags.valueof(0x8769)["FNumber"] == pytest.approx(2.8)

    @pytest.mark.parametrize("big", [False, True])
    def test_directories_of_tiff(self, tmp_path, monkeypatch, big):
        """Results above 4 GB are BigTIFF, whose directories have another form."""
        if big:
            monkeypatch.setattr("ape_sr.pictures.tiff_write.BIG_BYTES", 0)
        data = exif(1)
        data.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + bytes(range(1, 200))
        data[0x8769] = data.get_ifd(0x8769) | {0xA005: {1: "R98"}}
        data[0x8825] = {1: "N", 2: (48.0, 51.0, 29.5)}
        given = Carried(exif=data.tobytes().removeprefix(b"Exif\0\0"))
        write_picture(tmp_path / "out.tif", [Frame(deep(3)), Frame(deep(3))], given)
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.is_bigtiff == big and len(file.pages) == 2
            tags = file.pages[0].tags
            assert tags.valueof(271) == "A maker" and tags.valueof(0x8769)["FNumber"] == pytest.approx(2.8)
            assert tags.valueof(0x8825)["GPSLatitude"] == (48, 1, 51, 1, 59, 2)
        with Image.open(tmp_path / "out.tif") as image:
            kept = image.getexif()
            assert float(kept.get_ifd(0x8769)[0x829D]) == pytest.approx(2.8)
            assert kept.get_ifd(0x8769)[0x9286].endswith(bytes(range(1, 200)))
            assert kept.get_ifd(0x8825)[2] == (48, 51, 29.5)
            place = kept.get_ifd(0x8769).get(0xA005)
        assert (place is None) == big  # left out there
        assert big or b"R98\0" in (tmp_path / "out.tif").read_bytes()[place : place + 14]

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

    def test_what_cannot_hold_them_says_so(self, tmp_path, frames, upscaled, capsys):
        frames[0].save(tmp_path / "in.tif", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
        for source, target, what in (("tif", "png", "4 pages"), ("gif", "jpg", "4 frames"), ("gif", "tif", "4 frames")):
            arguments = ["upscale", tmp_path / f"in.{source}", "-o", tmp_path / f"out.{target}", "-n", WEIGHTS]
            assert main(list(map(str, arguments))) == 2
            assert f"{target} cannot hold the {what} of the input" in capsys.readouterr().err
            assert not (tmp_path / f"out.{target}").exists()
            line = upscaled(tmp_path / f"in.{source}", tmp_path / f"out.{target}", "--first-frame")
            assert "first of 4 frames" in line

    def test_a_folder_takes_the_format_that_holds_them(self, tmp_path, frames):
        (tmp_path / "in").mkdir()
        frames[0].save(tmp_path / "in" / "a.tif", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / "in" / "b.gif", save_all=True, append_images=frames[1:])
        assert main(["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-n", WEIGHTS]) == 0
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x2.tif", "b_x2.png"]
        for name in ("a_x2.tif", "b_x2.png"):
            with Image.open(tmp_path / "out" / name) as image:
                assert image.n_frames == 4

    def test_a_preview_is_no_frame(self, tmp_path, cat, upscaled):
        """Cameras put a small version into JPEG files."""
        image = Image.fromarray(cat)
        image.save(tmp_path / "in.jpg", format="MPO", save_all=True, append_images=[image.resize((30, 25))])
        assert "frames" not in upscaled(tmp_path / "in.jpg", tmp_path / "out.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "avif"])
def test_notes_come_back(tmp_path, cat, suffix):
    note = '{"source": "a <b> & c.png", "bytes": 3}'
    path = tmp_path / f"x.{suffix}"
    write_picture(path, [Frame(cat)], note=note)
    assert read_note(path) == note
    Image.fromarray(cat).save(path)
    assert read_note(path) is None


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
