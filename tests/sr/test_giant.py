"""TIFF files by windows: the whole picture's own pixels, runs that are killed, and what files carry."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import ImageCms
from skimage import data
from support import DEVICE

import ape_sr.cli.windows as cli_windows
import ape_sr.giant.windows as giant
from ape_kernels.run.windows import Window
from ape_sr.cli import main
from ape_sr.giant.source import Source, why_not
from ape_sr.giant.target import Target
from ape_sr.pictures.read import read_file, read_note

SMALL = 6_000_000  # of RUN_BYTES: several windows
on_cpu = pytest.mark.skipif(DEVICE.type != "cpu", reason="other backends' windows are to rounding")
PART, JOURNAL = ".out.tif.windows.part", ".out.tif.windows.journal"


def drawn(height=1100, width=1500):
    """Flat areas, lines and a photograph, uint8 ``[height, width, 3]``."""
    y, x = np.mgrid[0:height, 0:width]
    flat = np.stack([40 + 30 * ((y // 170 + x // 230 + channel) % 5) for channel in range(3)], -1)
    flat[(y + 2 * x) % 97 < 4] = 15
    photo = data.astronaut()
    picture = np.where((y // 300 + x // 400)[..., None] % 2 == 0, flat, photo[y % 512, x % 512])
    return picture.astype(np.uint8)


def write(path, pixels, **options):
    options = {"compression": "zlib", "rowsperstrip": 64} | options
    tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", metadata=None, **options)
    return path


def run(*arguments):
    return main([str(argument) for argument in ("upscale", *arguments)])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(giant, "RUN_BYTES", SMALL)


@pytest.fixture
def scene(tmp_path):
    return write(tmp_path / "in.tif", drawn())


class TestPixels:
    @on_cpu
    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("options", [(), ("--budget", 0.3), ("--fidelity", "full")], ids=str)
    def test_are_the_plain_commands_own(self, scene, tmp_path, fitted_weights, small, capsys, options, threads):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3 - threads)
            assert run("-i", scene, "-o", tmp_path / "plain.tif", "-n", fitted_weights, *options) == 0
            plain = capsys.readouterr().out.splitlines()[0]
            torch.set_num_threads(threads)
            assert run("-i", scene, "-o", tmp_path / "out.tif", "-n", fitted_weights, "--windows", *options) == 0
        finally:
            torch.set_num_threads(before)
        expected, got = (tifffile.imread(tmp_path / name) for name in ("plain.tif", "out.tif"))
        assert got.shape == (2200, 3000, 3) and np.array_equal(got, expected)
        printed = capsys.readouterr()
        assert "6 windows" in printed.out and "upscaling x2 by 6 windows ..." in printed.err
        for words in plain.split(", "):
            if "computation" in words or "expected" in words:
                assert words in printed.out
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif", "plain.tif"]

    @on_cpu
    @pytest.mark.parametrize("channels", [1, 3])
    def test_in_16_bits(self, tmp_path, weights, small, channels):
        pixels = drawn(700, 800).astype(np.uint16) * 257
        write(tmp_path / "in.tif", pixels if channels == 3 else pixels[..., 0])
        assert run("-i", tmp_path / "in.tif", "-o", tmp_path / "plain.tif", "-n", weights) == 0
        assert run("-i", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "-n", weights, "--windows") == 0
        expected, got = (tifffile.imread(tmp_path / name) for name in ("plain.tif", "out.tif"))
        assert got.dtype == np.uint16 and np.array_equal(got, expected)

    def test_a_large_file_goes_this_way_by_itself(self, scene, tmp_path, weights, monkeypatch, capsys):
        monkeypatch.setattr(cli_windows, "LARGE", 1500 * 1100 - 1)
        assert run("-i", scene, "-o", tmp_path / "out.tif", "-n", weights, "--max-pixels", 10) == 0
        assert "by 1 window ..." in capsys.readouterr().err
        monkeypatch.setattr(cli_windows, "LARGE", 1500 * 1100)
        assert run("-i", scene, "-o", tmp_path / "out.tif", "-n", weights, "--max-pixels", 10) == 2
        monkeypatch.setattr(cli_windows, "LARGE", 10)
        write(tmp_path / "clear.tif", np.full((50, 60, 4), 255, np.uint8), extrasamples=["unassalpha"])
        assert run("-i", tmp_path / "clear.tif", "-o", tmp_path / "clear_x2.tif", "-n", weights) == 0
        assert tifffile.imread(tmp_path / "clear_x2.tif").shape == (100, 120, 4), "as before, where windows cannot"


STORED = {
    "strips": dict(),
    "tiles": dict(tile=(64, 48), compression="zlib", predictor=True),
    "one strip": dict(rowsperstrip=300, compression=None),
    "planes": dict(planarconfig="separate", tile=(64, 64)),
    "big-endian": dict(byteorder=">"),
    "BigTIFF, lzw": dict(bigtiff=True, compression="lzw", predictor=True),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("rows_alone", [False, True])
def test_windows_of_a_file_are_its_pixels(tmp_path, stored, dtype, rows_alone, monkeypatch):
    pixels = drawn(300, 410).astype(dtype) * (257 if dtype == np.uint16 else 1)
    path = write(tmp_path / "in.tif", np.moveaxis(pixels, 2, 0) if stored == "planes" else pixels, **STORED[stored])
    assert why_not(path) is None
    if rows_alone:
        monkeypatch.setattr("ape_sr.giant.source.SEGMENT_BYTES", 1000)
        if STORED[stored].get("compression", "zlib") is not None:
            assert "expected compressed strips of at most" in why_not(path)
            return
    source = Source(path)
    assert (source.height, source.width, source.channels, source.dtype) == (300, 410, 3, dtype)
    for window in (Window(0, 0, 300, 410), Window(37, 60, 100, 333), Window(299, 409, 1, 1)):
        expected = pixels[window.top : window.bottom, window.left : window.right]
        assert np.array_equal(source.read(window), expected)
    source.close()


def test_where_white_is_nothing(tmp_path):
    grey = drawn(90, 80)[..., 0]
    tifffile.imwrite(tmp_path / "in.tif", grey, photometric="miniswhite", metadata=None)
    (frame,) = read_file(tmp_path / "in.tif").frames
    assert np.array_equal(Source(tmp_path / "in.tif").read(Window(0, 0, 90, 80)), frame.pixels)


class TestInterruptions:
    def killed(self, scene, out, weights, number):
        """The command, ended by a signal once two of its windows are in the journal; what it wrote to stderr."""
        program = (
            "import sys, time, ape_sr.giant.windows as giant; from ape_sr.giant.target import Target;"
            f"giant.RUN_BYTES = {SMALL}; put = Target.put;"
            "Target.put = lambda *a: (put(*a), time.sleep(0.5));"  # so that not all are done before the signal
            "from ape_sr.__main__ import main; sys.exit(main())"
        )
        arguments = ["upscale", "-i", scene, "-o", out, "-n", weights, "--windows"]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.PIPE, text=True
        )
        journal, deadline = out.with_name(JOURNAL), time.monotonic() + 120
        while not (journal.exists() and len(journal.read_bytes().splitlines()) > 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        printed = process.communicate(timeout=60)[1]
        assert not out.exists() and out.with_name(PART).exists()
        return process.returncode, printed

    def test_a_killed_run_goes_on(self, scene, tmp_path, weights, small, monkeypatch, capsys):
        out = tmp_path / "out.tif"
        status, _ = self.killed(scene, out, weights, signal.SIGKILL)
        assert status == -signal.SIGKILL
        kept = len((tmp_path / JOURNAL).read_bytes().splitlines()) - 1
        assert 2 <= kept < 6
        with open(tmp_path / PART, "ab") as part, open(tmp_path / JOURNAL, "ab") as journal:
            part.write(b"half a tile")
            journal.write(b'{"window": 5, "tiles": [[')
        computed = []
        compute = giant.Cut.compute
        monkeypatch.setattr(giant.Cut, "compute", lambda *args: computed.append(args[1]) or compute(*args))
        assert run("-i", scene, "-o", out, "-n", weights, "--windows") == 0
        assert len(computed) == 6 - kept
        printed = capsys.readouterr()
        assert f"6 windows, {kept} of them done before ..." in printed.err and "6 windows" in printed.out
        assert run("-i", scene, "-o", tmp_path / "plain.tif", "-n", weights) == 0
        assert np.array_equal(tifffile.imread(out), tifffile.imread(tmp_path / "plain.tif"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif", "plain.tif"]
        computed.clear()
        capsys.readouterr()
        assert run("-i", scene, "-o", out, "-n", weights, "--windows") == 0
        assert capsys.readouterr().out == "in.tif: done already\n" and not computed

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_says_how_to_go_on(self, scene, tmp_path, weights, number, status):
        got, printed = self.killed(scene, tmp_path / "out.tif", weights, number)
        assert got == status
        kept = len((tmp_path / JOURNAL).read_bytes().splitlines()) - 1
        assert f"{kept} of 6 windows are kept; give the same command again and it goes on" in printed
        assert "Traceback" not in printed

    def test_another_image_is_begun_anew(self, scene, tmp_path, weights, small, capsys):
        self.killed(scene, tmp_path / "out.tif", weights, signal.SIGKILL)
        write(scene, drawn()[::-1])
        assert run("-i", scene, "-o", tmp_path / "out.tif", "-n", weights, "--windows") == 0
        assert "done before" not in capsys.readouterr().err
        assert run("-i", scene, "-o", tmp_path / "plain.tif", "-n", weights) == 0
        assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), tifffile.imread(tmp_path / "plain.tif"))

    def test_a_damaged_part_counts_up_to_the_damage(self, scene, tmp_path, weights, small, capsys):
        self.killed(scene, tmp_path / "out.tif", weights, signal.SIGKILL)
        os.truncate(tmp_path / PART, (tmp_path / PART).stat().st_size - 100_000)  # as after a power failure
        assert run("-i", scene, "-o", tmp_path / "out.tif", "-n", weights, "--windows") == 0
        assert run("-i", scene, "-o", tmp_path / "plain.tif", "-n", weights) == 0
        assert np.array_equal(tifffile.imread(tmp_path / "out.tif"), tifffile.imread(tmp_path / "plain.tif"))

    def test_one_process_at_a_time(self, scene, tmp_path, weights, small, monkeypatch, capsys):
        put, inside = Target.put, []

        def meanwhile(*args):
            if not inside:
                inside.append(run("-i", scene, "-o", tmp_path / "out.tif", "-n", weights, "--windows"))
            put(*args)

        monkeypatch.setattr(Target, "put", meanwhile)
        assert run("-i", scene, "-o", tmp_path / "out.tif", "-n", weights, "--windows") == 0
        assert inside == [2] and "out.tif: another process is writing it" in capsys.readouterr().err

    def test_a_file_that_ends_early(self, tmp_path, weights, small, capsys):
        path = write(tmp_path / "in.tif", drawn(), compression=None)
        os.truncate(path, path.stat().st_size - 1_000_000)
        assert run("-i", path, "-o", tmp_path / "out.tif", "-n", weights, "--windows") == 2
        assert f"error: {path}: cannot be read as an image: it ends in the middle" in capsys.readouterr().err
        assert not (tmp_path / "out.tif").exists()


class TestTags:
    KEYS = (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1)  # projected; then what a pixel's coordinates are

    def carried(self, tmp_path, weights, *tags, **options):
        write(tmp_path / "in.tif", drawn(60, 50), extratags=[(*tag, True) for tag in tags], **options)
        assert run("-i", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "-n", weights, "--windows") == 0
        with tifffile.TiffFile(tmp_path / "out.tif") as file:
            assert file.is_bigtiff and file.pages[0].is_tiled
            return {code: file.pages[0].tags.valueof(code) for code in (34675, *(tag[0] for tag in tags))}

    @pytest.mark.parametrize(("kind", "shift"), [(1, 0.0), (2, 0.5)], ids=["areas", "points"])
    def test_the_place_on_a_map(self, tmp_path, weights, kind, shift):
        found = self.carried(
            tmp_path,
            weights,
            (33550, 12, 3, (0.5, 0.25, 7.0)),
            (33922, 12, 12, (0.0, 0.0, 0.0, 1000.0, 2000.0, 0.0, 10.0, 20.0, 0.0, 1005.0, 1995.0, 0.0)),
            (34264, 12, 16, (0.5, 0, 0, 1000, 0, -0.25, 0, 2000, 0, 0, 0, 0, 0, 0, 0, 1)),
            (34735, 3, 12, (*self.KEYS, kind)),
            (34736, 12, 1, 6378137.0),
            (34737, 2, 0, "WGS 84|"),
            (42113, 2, 0, "0"),
        )
        assert found[33550] == (0.25, 0.125, 7.0)
        ties = (shift, shift, 0, 1000, 2000, 0, 20 + shift, 40 + shift, 0, 1005, 1995, 0)
        assert found[33922] == ties
        assert found[34735] == (*self.KEYS, kind) and found[34736] == (6378137.0,)
        assert found[34737] == "WGS 84|" and found[42113] == "0"
        matrix = np.array(found[34264]).reshape(4, 4)
        for point, place in (((0, 0), (1000, 2000)), ((10, 20), (1005, 1995))):
            now = matrix @ (2 * point[0] + shift, 2 * point[1] + shift, 0, 1)
            assert tuple(now[:2]) == place, "the same point of the image is at the same place"

    def test_texts_profile_and_note(self, tmp_path, weights):
        icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        found = self.carried(tmp_path, weights, (315, 2, 0, "somebody"), iccprofile=icc)
        assert found[315] == "somebody" and found[34675] == icc
        assert read_note(tmp_path / "out.tif") is not None


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (("--exit-map",), "expected no --exit-map"),
            (("-s", 1.5), "expected the scale of the network, 2"),
            (("--width", 300), "expected the scale of the network, 2"),
            (("--threshold", 0.5), "expected a network that runs images on shared feature maps: "),
        ],
        ids=str,
    )
    def test_of_options(self, tmp_path, weights, capsys, options, line):
        path = write(tmp_path / "in.tif", drawn(60, 50))
        assert run("-i", path, "-o", tmp_path / "out.tif", "-n", weights, "--windows", *options) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"ape-sr: error: windows: {line}") and printed.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]

    def test_of_other_files(self, tmp_path, photos, weights, capsys):
        tiff = write(tmp_path / "in.tif", drawn(60, 50))
        for arguments, line in (
            ((photos, "-o", tmp_path / "out"), "expected one TIFF file as the input, got a folder or several"),
            ((tiff, "-o", tmp_path / "out.png"), "expected an output file ending in .tif, got out.png"),
            ((photos / "a.png", "-o", tmp_path / "o.tif"), f"{photos / 'a.png'}: it is no TIFF file that can be read"),
        ):
            assert run(*arguments, "-n", weights, "--windows") == 2
            assert capsys.readouterr().err == f"ape-sr: error: windows: {line}\n"

    @pytest.mark.parametrize(
        ("shape", "options", "line"),
        [
            ((50, 60, 4), dict(photometric="rgb", extrasamples=["unassalpha"]), "without transparency"),
            ((50, 60, 2), dict(photometric="minisblack", planarconfig="contig"), "without transparency"),
            ((50, 60, 4), dict(photometric="separated"), "expected grey or RGB, got SEPARATED"),
            ((2, 50, 60), dict(photometric="minisblack"), "it has 2 pages"),
            ((50, 60), dict(photometric="minisblack", dtype="float32"), "expected 8 or 16 bits"),
            ((50, 60), dict(photometric="minisblack", extratags=[(274, 3, 1, 6, True)]), "expected an upright image"),
        ],
        ids=str,
    )
    def test_of_what_is_in_a_file(self, tmp_path, shape, options, line):
        pixels = np.full(shape, 9, options.pop("dtype", "uint8"))
        tifffile.imwrite(tmp_path / "in.tif", pixels, metadata=None, **options)
        assert line in why_not(tmp_path / "in.tif")


def test_sides_hold_whole_tiles_and_little_is_run_twice():
    for step, margin, scale, pixel_bytes in ((144, 288, 4, 3), (144, 288, 2, 6), (48, 96, 1, 1), (240, 960, 4, 3)):
        side, tile = giant.sides_of(step, margin, scale, pixel_bytes)
        assert side % step == 0 and tile % 16 == 0 and side * scale % tile == 0
        if side > giant.LEAST + step:
            assert (side + 2 * margin) ** 2 * scale**2 * pixel_bytes <= giant.RUN_BYTES
