"""Runs over folders: what is an input, what is passed over, what is done already, and what odd entries do."""

import fcntl
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from ape_sr.cli import main
from ape_sr.data.images import read_image, write_image
from ape_sr.files import atomic_path, remove_leftovers
from ape_sr.pictures.read import read_note
from ape_sr.pictures.resize import lanczos
from ape_sr.upscaler import Upscaler


@pytest.fixture
def run(weights):
    """The command with the tiny weights of scale 2; gives its status."""
    return lambda *arguments: main([str(argument) for argument in ("upscale", *arguments, "-n", weights)])


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def started(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "ape_sr", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


ALL = ["a_x2.png", "b_x2.png", "c_x2.png"]


class TestOddEntries:
    """One line, status 2, and all others are done."""

    def corrupt(folder):
        (folder / "odd.png").write_bytes(b"no picture")

    def dangling(folder):
        (folder / "odd.png").symlink_to(folder / "gone.png")

    def loop(folder):
        (folder / "odd.png").symlink_to(folder / "odd.png")

    def large(folder):
        Image.new("1", (3000, 3000)).save(folder / "odd.png")

    def cut(folder):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        write_image(folder / "odd.png", noise)
        (folder / "odd.png").write_bytes((folder / "odd.png").read_bytes()[:3000])

    FAULTS: ClassVar = {
        "corrupt": (corrupt, "odd.png: not an image file that can be read"),
        "dangling-link": (dangling, "odd.png: cannot be read: No such file or directory"),
        "link-to-itself": (loop, "odd.png: cannot be read: Too many levels of symbolic links"),
        "large": (large, "odd.png: 3000x3000 are more than 1000000 pixels; --max-pixels 9000000 allows them"),
        "cut": (cut, "odd.png: cannot be read as an image: "),
    }

    @pytest.mark.parametrize("case", FAULTS)
    def test_that_fail(self, tmp_path, photos, run, case, capsys):
        fault, message = self.FAULTS[case]
        fault(photos)
        assert run(photos, "-o", tmp_path / "out", "--max-pixels", 1_000_000) == 2
        assert files(tmp_path / "out") == ALL
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(errors) == 2 and message in errors[0]
        assert errors[1] == "ape-sr: error: 1 of 4 images could not be upscaled"

    def test_that_are_passed_over(self, tmp_path, photos, run, capsys):
        (photos / "odd.png").mkdir()
        (photos / "sub").mkdir()
        (photos / "._a.png").write_bytes(b"\0\5\26\7")
        (photos / "notes.txt").write_text("")
        (photos / "link").symlink_to(photos)
        os.mkfifo(photos / "pipe.png")
        assert run(photos, "-o", tmp_path / "out") == 0
        assert files(tmp_path / "out") == ALL
        passed = capsys.readouterr().err.splitlines()[-1]
        assert passed == ("passed over: 1 hidden, 1 links to folders, 2 of other kinds, 2 sub folders (-r takes them)")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    def test_folders_that_cannot_be_read(self, tmp_path, photos, run, capsys):
        (photos / "sub").mkdir(mode=0)
        assert run(photos, "-o", tmp_path / "out", "-r") == 2
        assert files(tmp_path / "out") == ALL
        assert "sub: cannot be read: Permission denied" in capsys.readouterr().err

    def test_a_file_that_vanishes(self, tmp_path, photos, run, capsys, monkeypatch):
        first = Upscaler.upscale

        def upscale(self, image, **options):
            for path in photos.glob("c.*"):
                path.unlink()
            return first(self, image, **options)

        for index in range(8):  # beyond what is read ahead
            (photos / f"b{index}.png").write_bytes((photos / "a.png").read_bytes())
        monkeypatch.setattr(Upscaler, "upscale", upscale)
        assert run(photos, "-o", tmp_path / "out") == 2
        assert len(files(tmp_path / "out")) == 10
        assert "c.webp: cannot be read: No such file or directory" in capsys.readouterr().err

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
    def test_too_little_memory(self, tmp_path, photos, run, capsys, monkeypatch, error):
        first = Upscaler.upscale

        def upscale(self, image, **options):
            if image.shape[0] == 60:
                raise error
            return first(self, image, **options)

        monkeypatch.setattr(Upscaler, "upscale", upscale)
        assert run(photos, "-o", tmp_path / "out") == 2
        assert files(tmp_path / "out") == ALL[1:]
        assert "a.png: too large for the memory there is" in capsys.readouterr().err


class TestNames:
    def test_equal_stems_get_a_result_each(self, tmp_path, photos, run, cat):
        write_image(photos / "a.webp", cat)
        assert run(photos, "-o", tmp_path / "out") == 0
        assert files(tmp_path / "out") == ["a_png_x2.png", "a_webp_x2.png", "b_x2.png", "c_x2.png"]
        assert read_image(tmp_path / "out" / "a_webp_x2.png").shape == (200, 240, 3)

    def test_sub_folders_are_mirrored(self, tmp_path, photos, run, cat):
        write_image(photos / "sub" / "deeper" / "a.png", cat)
        (photos / "sub" / "back").symlink_to(photos)
        assert run(photos, "-r", "-o", tmp_path / "out") == 0
        assert files(tmp_path / "out") == [*ALL, "sub/deeper/a_x2.png"]

    def test_positional_inputs_stand_beside_their_results(self, photos, run, capsys):
        assert run(photos / "a.png") == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"written: {photos / 'a_x2.png'}"
        assert run(photos / "b.bmp", photos / "c.webp") == 0
        assert files(photos) == ["a.png", "a_x2.png", "b.bmp", "b_x2.png", "c.webp", "c_x2.png"]

    @pytest.mark.parametrize("name", ["png", "jpg", "webp", "tif"])
    def test_formats(self, tmp_path, photos, run, name):
        options = ("--quality", 50) if name in ("jpg", "webp") else ()
        for _ in range(2):
            assert run(photos, "-o", tmp_path / "out", "--format", name, *options) == 0
        assert files(tmp_path / "out") == [f"{stem}_x2.{name}" for stem in "abc"]
        with Image.open(tmp_path / "out" / f"c_x2.{name}") as image:
            assert image.format == {"jpg": "JPEG", "tif": "TIFF"}.get(name, name.upper()) and image.size == (240, 200)

    def test_quality(self, tmp_path, photos, run):
        sizes = []
        for quality in (30, 60, 95):
            run(photos / "c.webp", "-o", tmp_path / "c.jpg", "--quality", quality)
            sizes.append((tmp_path / "c.jpg").stat().st_size)
        assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2

    def test_an_input_of_the_name_is_not_overwritten(self, photos, run, cat, capsys):
        write_image(photos / "a_x2.png", cat)
        assert run(photos) == 2
        assert np.array_equal(read_image(photos / "a_x2.png"), cat)
        assert files(photos) == ["a.png", "a_x2.png", "a_x2_x2.png", "b.bmp", "b_x2.png", "c.webp", "c_x2.png"]
        assert "a_x2.png is an input and would be overwritten" in capsys.readouterr().err


class TestOwnResults:
    @pytest.mark.parametrize("name", ["png", "jpg", "webp", "tif"])
    def test_are_no_inputs(self, photos, run, capsys, name):
        """Results beside the originals: the same command again, and another scale."""
        options = ("--format", name, "--exit-map")
        assert run(photos, "-o", photos, *options) == 0
        before = files(photos)
        capsys.readouterr()
        assert run(photos, "-o", photos, *options) == 0
        printed = capsys.readouterr()
        assert printed.out.count("done already") == 3 and "passed over: 6 results of ape-sr" in printed.err
        assert files(photos) == before
        assert run(photos, *options, "-s", 3) == 0
        assert files(photos) == sorted([*before, *(f"{s}_x3{k}" for s in "abc" for k in (f".{name}", "_exits.png"))])

    def test_may_be_given_by_name(self, photos, run):
        run(photos / "b.bmp")
        assert run(photos / "b_x2.png") == 0
        assert read_image(photos / "b_x2_x2.png").shape == (148, 212, 3)

    def test_of_any_size_are_found(self, tmp_path):
        """Above what Pillow opens: the header says 20000x20000."""
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)), (b"tEXt", b"ape-sr\0a note")]
        data = b"\x89PNG\r\n\x1a\n"
        for kind, content in [*chunks, (b"IDAT", b""), (b"IEND", b"")]:
            crc = struct.pack(">I", zlib.crc32(kind + content))
            data += struct.pack(">I", len(content)) + kind + content + crc
        (tmp_path / "large.png").write_bytes(data)
        assert read_note(tmp_path / "large.png") == "a note"
        (tmp_path / "large.png").write_bytes(data[:-4])
        assert read_note(tmp_path / "large.png") is None, "cut"


class TestSizes:
    def sides(self, path):
        with Image.open(path) as image:
            return image.size

    @pytest.mark.parametrize(
        "options, name, size",
        [
            (("-s", 1.5), "x1.5", (180, 150)),
            (("-s", 3), "x3", (360, 300)),
            (("-s", 2), "x2", (240, 200)),
            (("--width", 100), "w100", (100, 83)),
            (("--height", 300), "h300", (360, 300)),
        ],
    )
    def test_with_weights(self, tmp_path, photos, run, options, name, size):
        """Their own scale, then Lanczos."""
        assert run(photos / "c.webp", "-o", tmp_path, *options) == 0
        assert self.sides(tmp_path / f"c_{name}.png") == size
        run(photos / "c.webp", "-o", tmp_path / "own.png")
        expected = lanczos(read_image(tmp_path / "own.png"), *size)
        assert np.array_equal(read_image(tmp_path / f"c_{name}.png"), expected)

    @pytest.mark.parametrize("factor, scale", [(1.2, 2), (2, 2), (2.5, 4), (4, 4)])
    def test_the_smallest_network_that_suffices(self, tmp_path, photos, factor, scale):
        source, out = str(photos / "b.bmp"), tmp_path / "out.png"
        assert main(["upscale", source, "-o", str(out), "-s", str(factor)]) == 0
        assert main(["upscale", source, "-o", str(tmp_path / "own.png"), "-n", f"edsr-12x32-x{scale}"]) == 0
        expected = lanczos(read_image(tmp_path / "own.png"), round(53 * factor), round(37 * factor))
        assert np.array_equal(read_image(out), expected)

    def test_each_picture_its_own(self, tmp_path, photos, capsys):
        arguments = ["upscale", str(photos), "-o", str(tmp_path / "out"), "--width", "150"]
        assert main(arguments) == 0
        assert {self.sides(path)[0] for path in (tmp_path / "out").iterdir()} == {150}
        capsys.readouterr()
        assert main(arguments) == 0
        assert capsys.readouterr().out.count("done already") == 3

    def test_16_bits_and_grey(self):
        image = np.linspace(0, 65535, 60 * 40).reshape(60, 40, 1).astype(np.uint16)
        small = lanczos(image, 20, 30)
        assert small.dtype == np.uint16 and small.shape == (30, 20, 1)
        assert np.abs(small[5:-5, 5:-5, 0] - image.reshape(30, 2, 20, 2).mean(axis=(1, 3))[5:-5, 5:-5]).max() < 40


def test_limits_of_the_format_come_before_the_first_patch(tmp_path, run, monkeypatch, capsys):
    monkeypatch.setattr(Upscaler, "upscale", lambda *_, **__: pytest.fail("the network has run"))
    Image.new("L", (8192, 2)).save(tmp_path / "a.png")
    Image.new("L", (2, 32751)).save(tmp_path / "b.png")
    assert run(tmp_path / "a.png", "-o", tmp_path / "a.webp") == 2
    message = "a.webp: cannot be written: webp holds at most 16383 pixels a side, the result has 16384x4"
    assert message in capsys.readouterr().err
    assert run(tmp_path / "b.png", "-o", tmp_path / "b.jpg") == 2
    assert "jpg holds at most 65500 pixels a side, the result has 4x65502" in capsys.readouterr().err


class TestPartFiles:
    def test_of_others_are_left_alone(self, tmp_path):
        held, left = tmp_path / ".x.png.17.part", tmp_path / ".x.png.18.part"
        other = tmp_path / ".y.png.19.part"
        for path in (held, left, other):
            path.write_bytes(b"half")
        with open(held) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            remove_leftovers([tmp_path / "x.png"])
        assert files(tmp_path) == [held.name, other.name]

    def test_are_held_while_they_are_written(self, tmp_path):
        with atomic_path(tmp_path / "x.png") as temporary:
            temporary.write_bytes(b"whole")
            remove_leftovers([tmp_path / "x.png"])
        assert (tmp_path / "x.png").read_bytes() == b"whole" and files(tmp_path) == ["x.png"]

    def test_folders_are_searched_once(self, tmp_path, photos, run, monkeypatch):
        searched = []
        scandir = os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: searched.append(path) or scandir(path))
        run(photos, "-o", tmp_path / "out")
        assert searched.count(tmp_path / "out") == 1

    def test_two_processes_on_one_folder(self, tmp_path, photos, weights, cat):
        for index in range(30):
            write_image(photos / f"m{index}.png", np.tile(cat, (2, 2, 1)))
        both = [started("upscale", photos, "-o", tmp_path / "out", "-n", weights) for _ in range(2)]
        for process in both:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
        assert len(files(tmp_path / "out")) == 33 and not list((tmp_path / "out").glob(".*"))


class TestProcess:
    @pytest.fixture
    def many(self, tmp_path, cat):
        for index in range(150):
            write_image(tmp_path / "many" / f"{index:03}.png", np.tile(cat, (3, 3, 1)))
        return tmp_path / "many"

    def wait_for(self, folder, count):
        deadline = time.monotonic() + 60
        while not (folder.exists() and len(files(folder)) > count) and time.monotonic() < deadline:
            time.sleep(0.02)

    @pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_ends_without_a_part_file(self, tmp_path, many, weights, number, status):
        out = tmp_path / "out"
        process = started("upscale", many, "-o", out, "-n", weights)
        self.wait_for(out, 3)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status and "Traceback" not in errors
        assert 3 <= len(files(out)) < 150 and not list(out.glob(".*"))

    def test_a_reader_that_goes(self, tmp_path, photos, weights):
        """As of ``| head -1``: the work is done all the same."""
        process = started("upscale", photos, "-o", tmp_path / "out", "-n", weights)
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0 and "Traceback" not in errors and "BrokenPipe" not in errors
        assert files(tmp_path / "out") == ALL

    @pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-", "> /dev/full", "> /dev/full 2> /dev/full"])
    def test_nobody_hears_it(self, tmp_path, photos, weights, closed):
        """Streams that are closed, and full disks: the work is done all the same."""
        if "full" in closed and not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        arguments = shlex.join(
            map(str, (sys.executable, "-m", "ape_sr", "upscale", photos, "-o", tmp_path / "out", "-n", weights))
        )
        done = subprocess.run(f"{arguments} {closed}", shell=True, capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr and "Error" not in done.stderr
        assert files(tmp_path / "out") == ALL

    @pytest.mark.parametrize("closed, status", [(">&-", 0), ("> /dev/full", 2)])
    def test_nobody_hears_of_the_environment(self, closed, status):
        if "full" in closed and not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        done = subprocess.run(
            f"{shlex.quote(sys.executable)} -m ape_sr info {closed}", shell=True, capture_output=True, text=True
        )
        assert done.returncode == status
        assert done.stderr == ("" if status == 0 else "ape-sr: error: output: No space left on device\n")

    def test_a_home_that_cannot_be_written(self, tmp_path, cat, weights):
        """Caches of fonts and alike are nobody's concern."""
        write_image(tmp_path / "a.png", cat)
        environment = os.environ | {
            "HOME": "/proc/none",
            "XDG_CACHE_HOME": "",
            "XDG_CONFIG_HOME": "",
            "MPLCONFIGDIR": "",
        }
        process = started("upscale", tmp_path / "a.png", "--exit-map", "-n", weights, env=environment)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and errors == "a.png: upscaling x2 ...\n"

    def test_a_terminal_of_ascii(self, tmp_path, cat, weights):
        write_image(tmp_path / "\u00fc.png", cat)
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        process = started("upscale", tmp_path / "\u00fc.png", "-n", weights, env=environment)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and out.startswith("\\xfc.png: "), errors

    @pytest.mark.parametrize("after", [0.25, 0.5, 1.0])
    def test_ctrl_c_while_it_starts(self, tmp_path, photos, weights, after):
        process = started("upscale", photos, "-o", tmp_path / "out", "-n", weights)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors and process.returncode in (130, 0)

    @pytest.mark.parametrize("option", ["--help", "--version"])
    def test_starts_without_pytorch(self, option):
        code = f"import sys, ape_sr.cli as c\ntry: c.main(['{option}'])\nexcept SystemExit: print(sorted(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "'argparse'" in done.stdout
        for module in ("torch", "numpy", "PIL", "ape_kernels"):
            assert f"'{module}'" not in done.stdout, module

    def test_the_help_names_the_formats(self, capsys):
        with pytest.raises(SystemExit):
            main(["upscale", "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        for word in ("png, jpg, jpeg, jfif, webp, tif, tiff, bmp, gif, avif", "--recursive", "laid on white"):
            assert word in printed
