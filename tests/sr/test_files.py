"""Reading and writing pictures, where formats and file systems have their say."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ape_sr.cli import calibrate, evaluate, fit, main, train
from ape_sr.data.images import list_images, read_image, write_image
from ape_sr.errors import UserError
from ape_sr.files import atomic_path, check_writable
from ape_sr.upscaler import Upscaler


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
    "folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
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


def below_a_file(tmp_path, name):
    (tmp_path / "file").touch()
    return tmp_path / "file" / name, "Not a directory|File exists"


def a_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name, "expected a file name, got the folder"


def where_nothing_can_be_made(tmp_path, name):
    return Path("/proc") / name, "No such file or directory|Operation not permitted|Permission denied"


def where_no_folder_can_be_made(tmp_path, name):
    return Path("/proc/none") / name, "No such file or directory|Operation not permitted|Permission denied"


def too_long(tmp_path, name):
    return tmp_path / f"{'x' * 300}{name}", "File name too long"


def read_only(tmp_path, name):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o555)
    return tmp_path / "locked" / name, "Permission denied"


PLACES = (below_a_file, a_folder, where_nothing_can_be_made, where_no_folder_can_be_made, too_long, read_only)
WORK = {  # arguments before the output; what must not begin; the output's suffix
    "upscale": (["upscale", "{photo}", "-o"], (Upscaler, "upscale"), ".png"),
    "upscale-exit-map": (["upscale", "{photo}", "--exit-map", "-o"], (Upscaler, "upscale"), ".png"),
    "fit": (["fit", "{photos}", "-o"], (fit, "choose_pictures"), ".safetensors"),
    "calibrate": (["calibrate", "-i", "{photos}", "-o"], (calibrate, "evaluate"), ".safetensors"),
    "csv": (["evaluate", "-i", "{photos}", "--csv"], (evaluate, "evaluate"), ".csv"),
    "json": (["evaluate", "-i", "{photos}", "--json"], (evaluate, "evaluate"), ".json"),
    "plot": (["evaluate", "-i", "{photos}", "--plot"], (evaluate, "evaluate"), ".png"),
    "exit-maps": (["evaluate", "-i", "{photos}", "--exit-maps"], (evaluate, "evaluate"), ""),
    "train": (["train", "-i", "{photos}", "-o"], (train, "CropSampler"), ""),
}


INTO_FOLDERS = ("upscale", "upscale-exit-map", "exit-maps", "train")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
@pytest.mark.parametrize(
    ("command", "place"),
    [(command, place) for command in WORK for place in PLACES if place is not a_folder or command not in INTO_FOLDERS],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_where_nothing_can_be_written_nothing_begins(
    command, place, tmp_path, photos, fitted_weights, monkeypatch, capsys
):
    before, work, suffix = WORK[command]
    monkeypatch.setattr(*work, lambda *_, **__: pytest.fail("the work has begun"))
    path, message = place(tmp_path, f"out{suffix}")
    there = sorted(tmp_path.rglob("*"))
    arguments = [text.format(photo=photos / "a.png", photos=photos) for text in before]
    weights = [] if command == "train" else ["-n", fitted_weights]
    assert main([str(argument) for argument in (*arguments, path, *weights)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.search(f"^ape-sr: error: (output|out|{command}): .*({message})", line), line
    assert sorted(tmp_path.rglob("*")) == there


def test_a_check_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b" / "x.png", "output")
    check_writable(tmp_path / "a" / "b", "output", folder=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.png").write_bytes(b"picture")
    check_writable(tmp_path / "x.png", "output")
    assert (tmp_path / "x.png").read_bytes() == b"picture"
