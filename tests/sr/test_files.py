"""Reading and writing pictures, where formats and file systems have their say."""

import numpy as np
import pytest
from PIL import Image

from ape_sr.data.images import list_images, read_image, write_image
from ape_sr.errors import UserError
from ape_sr.files import atomic_path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_formats_come_back(tmp_path, cat, suffix):
    write_image(tmp_path / f"cat.{suffix}", cat)
    assert np.array_equal(read_image(tmp_path / f"cat.{suffix}"), cat)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_stay_close(tmp_path, cat, suffix):
    write_image(tmp_path / f"cat.{suffix}", cat)
    assert np.abs(read_image(tmp_path / f"cat.{suffix}").astype(int) - cat).mean() < 2.5


def test_a_photo_held_sideways_is_turned_upright(tmp_path, cat):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    Image.fromarray(cat).save(tmp_path / "cat.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "cat.png"), np.rot90(cat, -1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, cat, mode):
    Image.fromarray(cat).convert(mode).save(tmp_path / "cat.tif")
    assert read_image(tmp_path / "cat.tif").shape == cat.shape


def cut(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


FAULTS = {
    "empty": (lambda path: path.write_bytes(b""), "not an image file that can be read"),
    "cut": (cut, "cannot be read as an image"),
    "folder": (lambda path: path.mkdir(), "cannot be read as an image"),
    "missing": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_files_that_are_no_pictures_are_named(tmp_path, case):
    fault, message = FAULTS[case]
    fault(tmp_path / "x.png")
    with pytest.raises(UserError, match=rf"x\.png: {message}"):
        read_image(tmp_path / "x.png")


def test_a_picture_too_large_for_its_format(tmp_path):
    with pytest.raises(UserError, match=r"x\.webp: cannot be written"):
        write_image(tmp_path / "x.webp", np.zeros((1, 20000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"x\.txt: cannot be written"), atomic_path(tmp_path / "file" / "x.txt"):
        pass


def test_a_failure_keeps_what_was_there(tmp_path):
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "x.txt") as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "old"


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="folder: expected images"):
        list_images(tmp_path)
