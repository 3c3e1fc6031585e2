"""The command as a user calls it."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch
from support import spread_network

from ape_kernels import APEForward
from ape_kernels.plan.plan import LEAST, MOST
from ape_sr.checkpoint import load_model, save_model
from ape_sr.cli import arguments, main
from ape_sr.data.images import read_image, to_image, to_tensor, write_image


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestUpscale:
    def test_one_picture(self, tmp_path, photos, weights, capsys):
        assert run("upscale", "-i", photos / "a.png", "-o", tmp_path / "big.png", "-n", weights) == 0
        expected = APEForward(load_model(weights))(to_tensor(read_image(photos / "a.png")))
        assert np.array_equal(read_image(tmp_path / "big.png"), to_image(expected))
        printed = capsys.readouterr()
        line, written = printed.out.splitlines()
        assert printed.err == "a.png: upscaling x2 ...\n"
        assert written == f"written: {tmp_path / 'big.png'}"
        for part in ("a.png: 70x60 -> 140x120", "% of the computation", "mean exit", "of 0..3", "backend cpu"):
            assert part in line

    def test_a_folder_with_exit_maps(self, tmp_path, photos, weights):
        assert run("upscale", "-i", photos, "-o", tmp_path / "out", "-n", weights, "--exit-map") == 0
        names = [f"{stem}_x2{kind}.png" for stem in "abc" for kind in ("", "_exits")]
        assert files(tmp_path / "out") == sorted(names)
        assert read_image(tmp_path / "out" / "c_x2.png").shape == (200, 240, 3)
        exits = read_image(tmp_path / "out" / "c_x2_exits.png")
        assert exits.shape[0] > 200, "a legend stands below the picture"

    @pytest.mark.parametrize(
        "option", [("--threshold", 0), ("--min-gain-db", 0), ("--fidelity", "full")], ids=["threshold", "gain", "full"]
    )
    def test_full_depth(self, tmp_path, photos, fitted_weights, option, capsys):
        assert run("upscale", "-i", photos / "a.png", "-o", tmp_path / "big.png", "-n", fitted_weights, *option) == 0
        assert "100.0% of the computation" in capsys.readouterr().out
        sr = load_model(fitted_weights)(to_tensor(read_image(photos / "a.png")))
        difference = np.abs(read_image(tmp_path / "big.png").astype(int) - to_image(sr))
        assert difference.max() <= 1, "the network's own picture, to rounding"

    def test_a_budget_is_kept(self, tmp_path, photos, fitted_weights, capsys):
        picture = (photos / "c.webp", "-o", tmp_path, "-n", fitted_weights)
        shares = []
        for budget in (0.3, 0.6, 1):
            assert run("upscale", "-i", *picture, "--budget", budget) == 0
            shares.append(float(capsys.readouterr().out.split("%")[0].split()[-1]))
        assert shares == sorted(shares) and shares[0] <= 30 and shares[-1] == 100

    def test_more_fidelity_costs_more(self, tmp_path, photos, fitted_weights, capsys):
        picture = (photos / "c.webp", "-o", tmp_path, "-n", fitted_weights)
        shares = []
        for option in (("--fidelity", 36), ("--fidelity", 42), (), ("--fidelity", 60)):
            assert run("upscale", "-i", *picture, *option) == 0
            line = capsys.readouterr().out.splitlines()[0]
            shares.append(float(line.split("%")[0].split()[-1]))
            assert "dB expected to full depth" in line or (shares[-1] == 100 and "computation, full depth" in line)
        assert shares == sorted(shares) and shares[0] < shares[1] < shares[2] < 100

    def test_a_later_exit_costs_more(self, tmp_path, photos, weights, capsys):
        shares = []
        for threshold in (0, 0.3, 1):
            run("upscale", "-i", photos / "c.webp", "-o", tmp_path, "-n", weights, "--threshold", threshold)
            shares.append(float(capsys.readouterr().out.split("%")[0].split()[-1]))
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > shares[-1]

    @pytest.mark.parametrize("dtype", ["fp16", "bf16"])
    def test_half_precision_gives_nearly_the_same(self, tmp_path, photos, weights, dtype):
        for name in ("fp32", dtype):
            arguments = ("-i", photos / "b.bmp", "-o", tmp_path / f"{name}.png", "-n", weights, "--threshold", 0)
            assert run("upscale", *arguments, "--dtype", name, "--backend", "torch" if name == "fp16" else "auto") == 0
        full, half = (read_image(tmp_path / f"{name}.png").astype(int) for name in ("fp32", dtype))
        assert np.abs(half - full).mean() < 1

    @pytest.mark.parametrize("picture", ["any", "white"])
    def test_values_that_overflow_in_fp16_are_said(self, tmp_path, capsys, picture):
        """And no black picture is written: whether every picture overflows, or only bright ones do."""
        model = spread_network(2, 2, 8, None)
        if picture == "any":
            model.head[0].weight.mul_(1e6)
        else:
            for parameter in model.body.parameters():
                parameter.zero_()
            model.head[0].weight.fill_(65504 / 10)  # noise less the mean sums up to a few, white to 15 and more
        model.tail[1].weight.mul_(1e-6)
        save_model(tmp_path / "loud.safetensors", model)
        write_image(tmp_path / "in.png", np.full((20, 20, 3), 255, np.uint8))
        arguments = ("-i", tmp_path / "in.png", "-o", tmp_path / "x.png", "-n", tmp_path / "loud.safetensors")
        assert run("upscale", *arguments, "--dtype", "fp16", "--backend", "torch") == 2
        said = "holds the network's values; in torch.float16" if picture == "any" else "fp32 or bf16 for this network"
        assert said in capsys.readouterr().err
        assert not (tmp_path / "x.png").exists()
        assert run("upscale", *arguments) == 0

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss counts bytes")
    def test_memory_is_the_picture_and_a_little(self, tmp_path):
        """The picture in its own depth, a quarter of it, and 500 MB, of which PyTorch takes most."""
        height, width = 1500, 2000
        smooth = np.add.outer(np.arange(height), np.arange(width)) * 255 / (height + width)
        write_image(tmp_path / "large.png", np.repeat(smooth[..., None], 3, 2).astype(np.uint8))
        script = (  # a process between, as a process begins with the highest memory of the one that it comes from
            "import os, subprocess, sys; process = subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3); "
            "_, status, usage = os.wait4(process.pid, 0); print(status, usage.ru_maxrss)"
        )
        command = [sys.executable, "-m", "ape_sr", "upscale", tmp_path / "large.png", "-o", tmp_path / "out.png"]
        done = subprocess.run([sys.executable, "-c", script, *map(str, command)], capture_output=True, text=True)
        status, peak = map(int, done.stdout.split())
        assert status == 0
        picture = 16 * height * width * 3
        assert peak * 1024 < 1.25 * picture + 500e6

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_terminal_sees_how_far_it_is(self, tmp_path, cat, weights, count):
        """Also within one picture, with the time that is left."""
        for i in range(count):
            write_image(tmp_path / "in" / f"{i}.png", np.tile(cat, (8, 8, 1)))
        source = tmp_path / "in" / "0.png" if count == 1 else tmp_path / "in"
        reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        command = [sys.executable, "-m", "ape_sr", "upscale", source, "-o", tmp_path / "out", "-n", weights]
        process = subprocess.Popen(list(map(str, command)), stderr=writer, stdout=subprocess.DEVNULL)
        os.close(writer)
        told = b""
        with contextlib.suppress(OSError):  # at the end, on Linux
            while part := os.read(reader, 1 << 16):
                told += part
        os.close(reader)
        assert process.wait() == 0
        shares = [int(share) for share in re.findall(rb"(\d+)%\|", told)]
        assert shares == sorted(shares) and shares[-1] == 100
        assert any(0 < share % (100 // count) < 100 // count for share in shares), "within a picture"
        assert re.search(rb"of %d images, 0\d:\d\d, 0\d:\d\d left" % count, told)

    def test_a_corrupt_file_does_not_stop_the_others(self, tmp_path, photos, weights, capsys):
        (photos / "bad.png").write_bytes(b"no picture")
        assert run("upscale", "-i", photos, "-o", tmp_path / "out", "-n", weights) == 2
        assert files(tmp_path / "out") == ["a_x2.png", "b_x2.png", "c_x2.png"]
        errors = capsys.readouterr().err
        assert "bad.png: not an image file that can be read" in errors
        assert "1 of 4 images could not be upscaled" in errors

    def test_an_input_is_never_overwritten(self, photos, weights, capsys):
        assert run("upscale", "-i", photos / "a.png", "-o", photos / "a.png", "-n", weights) == 2
        assert "is an input and would be overwritten" in capsys.readouterr().err

    def test_interruption_leaves_nothing_half_written(self, tmp_path, photos, weights, cat):
        for i in range(200):
            write_image(photos / f"many_{i}.png", np.tile(cat, (2, 2, 1)))
        out = tmp_path / "out"
        command = [sys.executable, "-m", "ape_sr", "upscale", "-i", photos, "-o", out, "-n", weights]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (out.exists() and len(files(out)) > 3) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert 3 <= len(files(out)) < 203  # the fourth may have been one in the making
        for path in out.iterdir():
            assert path.suffix == ".png" and not path.name.startswith("."), path
            read_image(path)


def test_shipped_weights_are_the_default(tmp_path, photos, capsys):
    assert run("upscale", "-i", photos / "b.bmp", "-o", tmp_path / "big.png") == 0
    assert "53x37 -> 212x148" in capsys.readouterr().out


def test_info_and_module_print_the_same(capsys):
    assert run("info") == 0
    printed = capsys.readouterr().out
    module = subprocess.run([sys.executable, "-m", "ape_kernels"], capture_output=True, text=True, check=True).stdout
    assert module.splitlines()[0] == printed.splitlines()[0]
    for backend in ("backend cpu", "backend cuda", "backend torch"):
        assert backend in printed and backend in module


def test_info_says_which_weights_carry_a_fit(weights, fitted_weights, capsys):
    assert run("info", "-n", weights, fitted_weights) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split(":")[0].split("/")[-1].split()[-1] for line in lines] == [
        "edsr-12x32-x2",
        "edsr-12x32-x4",
        "tiny_x2.safetensors",
        "fitted_x2.safetensors",
    ]
    assert lines[2].endswith(": no fit; images run to full depth") and lines[3].endswith(": fit, 48 dB by default")
    assert run("info", "-n", "nowhere.pth") == 2


def test_without_arguments_the_help_is_printed(capsys):
    assert run() == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for word in ("usage: ape-sr", "upscale", "evaluate", "calibrate", "train", "info"):
        assert word in printed.out


def test_the_entry_point_is_installed():
    result = subprocess.run([sys.executable, "-m", "ape_sr", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ape-sr ")


BAD_CALLS = {
    "unknown-command": (["enlarge"], "invalid choice: 'enlarge'"),
    "no-input": (["upscale", "-o", "x.png"], "input: expected an image or a folder of images, got none"),
    "input-too-long": (["upscale", "i" * 300, "-o", "x.png"], "i: File name too long"),
    "output-without-o": (["upscale", "{photo}", "x.png"], "input: no such file or folder: x.png (the output is given with -o)"),
    "unknown-option": (["upscale", "{photo}", "-o", "x.png", "--fidelty", "45"], "unrecognized arguments: --fidelty 45 (--help lists those there are)"),
    "missing-input": (["upscale", "-i", "none.png", "-o", "x.png"], "input: no such file or folder: none.png"),
    "threshold-too-large": (["upscale", "-i", "{photo}", "-o", "x.png", "--threshold", "2"], "expected a number from 0 to 1, got 2"),
    "threshold-no-number": (["upscale", "-i", "{photo}", "-o", "x.png", "--threshold", "low"], "expected a number from 0 to 1, got low"),
    "budget-without-a-fit": (["upscale", "-i", "{photo}", "-o", "x.png", "-n", "{weights}", "--budget", "0.1"], "budget: expected a model that carries a fit, as ape_kernels.fit_exits(model, images) and `ape-sr fit` make it"),
    "fidelity-without-a-fit": (["upscale", "-i", "{photo}", "-o", "x.png", "-n", "{weights}", "--fidelity", "45"], "fidelity: expected a model that carries a fit"),
    "fidelity-no-number": (["upscale", "-i", "{photo}", "-o", "x.png", "--fidelity", "high"], "argument --fidelity: expected dB from 20 to 80, full or auto, got high"),
    "fidelity-too-low": (["upscale", "-i", "{photo}", "-o", "x.png", "--fidelity", "7"], "argument --fidelity: expected dB from 20 to 80, full or auto, got 7"),
    "fidelity-and-budget": (["upscale", "-i", "{photo}", "-o", "x.png", "--fidelity", "45", "--budget", "0.5"], "not allowed with argument"),
    "plot-no-png": (["evaluate", "-i", "{photos}", "-n", "{weights}", "--plot", "x.pdf"], "plot: expected a name ending in .png, got x.pdf"),
    "groups-of-edsr": (["train", "-i", "{photos}", "-o", "x", "--groups", "2"], "groups: expected with another network, as edsr has none, got 2"),
    "negative-gain": (["upscale", "-i", "{photo}", "-o", "x.png", "--min-gain-db", "-1"], "expected"),
    "both-policies": (["upscale", "-i", "{photo}", "-o", "x.png", "--threshold", "0", "--min-gain-db", "0"], "not allowed with"),
    "unknown-backend": (["upscale", "-i", "{photo}", "-o", "x.png", "--backend", "tpu"], "backend: expected auto, cpu, cuda, torch, triton, got 'tpu'"),
    "unknown-dtype": (["upscale", "-i", "{photo}", "-o", "x.png", "--dtype", "fp8"], "dtype: expected one of fp32, fp16, bf16, got 'fp8'"),
    "backend-that-cannot": (["upscale", "-i", "{photo}", "-o", "x.png", "--backend", "cuda"], "backend: cuda cannot run"),
    "fp16-on-a-cpu": (["upscale", "-i", "{photo}", "-o", "x.png", "--dtype", "fp16"], "dtype: expected fp32 or bf16 on a CPU, got fp16"),
    "backend-without-dtype": (["upscale", "-i", "{photo}", "-o", "x.png", "--backend", "cpu", "--dtype", "fp16"], "cpu cannot run: computes in torch.float32"),
    "other-scale": (["evaluate", "-i", "{photos}", "-n", "{weights}", "-s", "3"], "scale: expected 2, the scale of"),
    "scale-without-weights": (["upscale", "-i", "{photo}", "-o", "x.png", "-s", "7"], "scale: expected a result of at most 4 times the size"),
    "width-without-weights": (["upscale", "-i", "{photo}", "-o", "x.png", "--width", "700"], "a.png: expected a result of at most 4 times the size, the largest scale that comes with the package, got 10 times"),
    "width-and-scale": (["upscale", "-i", "{photo}", "-o", "x.png", "--width", "70", "-s", "2"], "not allowed with argument"),
    "quality-of-png": (["upscale", "-i", "{photo}", "-o", "x.png", "--quality", "90"], "quality: expected with --format jpg or webp"),
    "quality-too-high": (["upscale", "-i", "{photo}", "-o", "x.jpg", "--quality", "101"], "quality: expected a number from 1 to 100, got 101"),
    "format-of-a-file": (["upscale", "-i", "{photo}", "-o", "x.png", "--format", "jpg"], "format: expected png, as the output is x.png, got jpg"),
    "several-to-a-file": (["upscale", "{photo}", "{photos}", "-o", "x.png"], "output: expected a folder, as there are several inputs, got x.png"),
    "too-many-pixels": (["upscale", "{photo}", "-o", "x.png", "--max-pixels", "4199"], "a.png: 70x60 are more than 4199 pixels; --max-pixels 4200 allows them"),
    "missing-weights": (["upscale", "-i", "{photo}", "-o", "x.png", "-n", "no.safetensors"], "weights: no such file: no.safetensors"),
    "picture-for-weights": (["upscale", "-i", "{photo}", "-o", "x.png", "-n", "{photo}"], "weights: expected a file name ending in .safetensors, .pth"),
    "folder-to-file": (["upscale", "-i", "{photos}", "-o", "x.png", "-n", "{weights}"], "output: expected a folder, as the input is one"),
    "unknown-suffix": (["upscale", "-i", "{photo}", "-o", "x.gif2", "-n", "{weights}"], "output: expected a file name ending in"),
    "output-below-a-file": (["upscale", "-i", "{photo}", "-o", "{weights}/x.png", "-n", "{weights}"], "cannot be written: File exists"),
    "folder-to-a-folder-below-a-file": (["upscale", "-i", "{photos}", "-o", "{weights}/out", "-n", "{weights}"], "cannot be written: Not a directory"),
    "json-below-a-file": (["evaluate", "-i", "{photos}", "-n", "{weights}", "--json", "{weights}/x.json"], "json: "),
    "evaluate-no-folder": (["evaluate", "-i", "{photo}"], "expected an existing folder"),
    "train-no-folder": (["train", "-i", "none", "-o", "run"], "expected an existing folder, got none"),
    "train-patch": (["train", "-i", "{photos}", "-o", "run", "--patch", "30"], "patch: expected a multiple of the scale 4, got 30"),
    "train-patch-under-the-border": (["train", "-i", "{photos}", "-o", "run", "--patch", "20"], "patch: expected at least 21 at scale 4, got 20"),
    "train-device": (["train", "-i", "{photos}", "-o", "run", "--device", "tpu"], "device: tpu cannot be used"),
    "train-images-too-small": (["train", "-i", "{photos}", "-o", "run", "--patch", "400"], "data: expected images of at least 400x400"),
    "train-interval": (["train", "-i", "{photos}", "-o", "run", "--blocks", "4", "--exit-every", "3"], "exit_interval: expected a divisor of n_resblocks = 4, got 3"),
    "train-init-of-other-size": (["train", "-i", "{photos}", "-o", "run", "--init", "{weights}"], "init: head.0.weight: expected (64, 3, 3, 3), got (8, 3, 3, 3)"),
    "train-regressor-of-nothing": (["train", "-i", "{photos}", "-o", "run", "--regressor-only"], "regressor-only: expected --init"),
    "train-plain-regressor": (["train", "-i", "{photos}", "-o", "run", "--plain", "--regressor-only", "--blocks", "4", "--feats", "8", "-s", "2", "--patch", "32", "--init", "{weights}"], "init: regressor.2.weight: expected no such weight"),
    "train-plain-with-exits": (["train", "-i", "{photos}", "-o", "run", "--plain", "--exit-every", "4"], "exit-every: expected without --plain, which has no exits, got 4"),
    "train-plain-that-looks-ahead": (["train", "-i", "{photos}", "-o", "run", "--plain", "--target", "look-ahead"], "target: expected without --plain, which has no exits, got look-ahead"),
    "train-no-minutes": (["train", "-i", "{photos}", "-o", "run", "--minutes", "0"], "expected a number above 0, got 0"),
    "train-lr-of-two-folders": (["train", "-i", "{photos}", "-i", "{photos}", "-o", "run", "--lr-data", "{photos}"], "lr-data: expected with one folder of images, got 2"),
    "train-no-steps": (["train", "-i", "{photos}", "-o", "run", "--steps", "0"], "expected a whole number of at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_print_one_line_and_write_nothing(case, photos, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD_CALLS[case]
    values = {"photo": photos / "a.png", "photos": photos, "weights": weights}
    before = files(tmp_path)
    assert main([argument.format(**values) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ape-sr: error: ")
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert files(tmp_path) == before


def test_an_unknown_backend_in_the_environment_is_named(photos, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("APE_BACKEND", "tpu")
    assert run("upscale", "-i", photos / "a.png", "-o", tmp_path / "x.png", "-n", weights) == 2
    assert "ape-sr: error: backend: expected auto" in capsys.readouterr().err


def test_fidelities_are_those_of_the_kernels():
    assert arguments.FIDELITIES == (LEAST, MOST)


def test_nan_weights_are_refused(tmp_path, photos, weights, capsys):
    model = load_model(weights)
    with torch.no_grad():
        model.head[0].weight[0, 0, 0, 0] = float("nan")
    save_model(tmp_path / "nan.safetensors", model)
    assert run("upscale", "-i", photos / "a.png", "-o", tmp_path / "x.png", "-n", tmp_path / "nan.safetensors") == 2
    assert "tensor head.0.weight holds NaN or infinity" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["upscale", "--help"], ["video", "--help"]], ids=" ".join
)
def test_help_does_not_wait_for_pytorch(arguments):
    script = "import sys; from ape_sr.__main__ import main; sys.argv[1:] = {}\ntry: main()\nexcept SystemExit: pass\n"
    script += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script.format(arguments)], check=True, stdout=subprocess.DEVNULL)
