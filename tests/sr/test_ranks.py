"""Several processes: training in step, folders shared; and runs that are killed."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

from ape_sr.checkpoint import load_model
from ape_sr.cli import main
from ape_sr.data.images import read_image, write_image
from ape_sr.distributed import Ranks, ranks_from_environment
from ape_sr.errors import UserError


def command(*arguments: object) -> list[str]:
    return [str(argument) for argument in arguments]


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*launcher, "-m", "ape_sr", *arguments), capture_output=True, text=True, env=environment, timeout=300
    )


def test_two_processes_train_as_one(tmp_path, photos):
    size = ("-s", 2, "--blocks", 2, "--feats", 8, "--exit-every", 1, "--patch", 32, "--batch", 4)
    arguments = ("train", "-i", photos, *size, "--steps", 8, "--lr", 1e-3, "--device", "cpu")
    assert main(command(*arguments, "-o", tmp_path / "one")) == 0
    result = torchrun(*arguments, "-o", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("weights:") == 1, "one of them speaks"
    curves = []
    for run in ("one", "two"):
        header, *rows = csv.reader((tmp_path / run / "log.csv").read_text().splitlines())
        curves.append(np.array([row[3:] for row in rows], dtype=float))  # after step, seconds and rate
    assert header[3] == "loss" and len(curves[0]) == 8
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4, atol=1e-5)
    one, two = (load_model(tmp_path / run / "model.safetensors").state_dict() for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=name)
    refused = main(command(*arguments, "-o", tmp_path / "two", "--batch", 3))
    assert refused == 2, "the folder holds the run of both"


@pytest.fixture
def many(tmp_path, cat):
    folder = tmp_path / "many"
    for i in range(40):
        write_image(folder / f"{i:02}.png", np.tile(cat, (2, 2, 1)))
    return folder


def test_processes_share_a_folder(tmp_path, photos, weights, monkeypatch, capsys):
    arguments = command("upscale", "-i", photos, "-o", tmp_path / "out", "-n", weights)
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert main(arguments) == 0
        done.append([line.split(":")[0] for line in capsys.readouterr().out.splitlines()])
    assert done == [["a.png", "c.webp"], ["b.bmp"]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x2.png", "b_x2.png", "c_x2.png"]


def test_a_killed_folder_goes_on_where_it_stopped(tmp_path, many, weights, capsys):
    out = tmp_path / "out"
    arguments = command("upscale", "-i", many, "-o", out, "-n", weights)
    process = subprocess.Popen([sys.executable, "-m", "ape_sr", *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out.exists() and len(list(out.glob("[0-9]*.png"))) > 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    (out / ".39_x2.png.1.part").write_bytes(b"half a picture")  # as a kill while writing leaves it
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9]*.png")}
    assert 3 < len(before) < 40
    for name in before:
        assert read_image(out / name).shape == (400, 480, 3)
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert Counter("done already" in line for line in lines) == {True: len(before), False: 40 - len(before)}
    assert sorted(path.name for path in out.iterdir()) == [f"{i:02}_x2.png" for i in range(40)]
    assert all((out / name).stat().st_mtime_ns == modified for name, modified in before.items())


def test_what_has_changed_is_done_again(tmp_path, photos, fitted_weights, cat, capsys):
    arguments = command("upscale", "-i", photos, "-o", tmp_path / "out", "-n", fitted_weights)
    main(arguments)
    write_image(photos / "a.png", cat[:40, :40])
    (tmp_path / "out" / "b_x2.png").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(arguments) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split(":")[0] for line in lines if "done already" in line] == ["c.webp"]
    assert re.match(r"2 images in \d+.\d\d s, 1 done already; of the parts ", printed.err.splitlines()[-1])
    assert main(arguments) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "3 of 3 images done already"
    for options in (
        ["--threshold", "0.2"],
        ["--budget", "0.5"],
        ["--fidelity", "40"],
        ["--fidelity", "full"],
        ["--exit-map"],
    ):
        assert main([*arguments, *options]) == 0
        assert "done already" not in capsys.readouterr().out, options
        assert main([*arguments, *options]) == 0
        assert capsys.readouterr().out.count("done already") == 3, options


@pytest.mark.parametrize("rank, world", [("2", "2"), ("x", "2"), ("0", "0")])
def test_a_nonsense_environment_is_named(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match=f"expected what torchrun sets, got RANK={rank}, WORLD_SIZE={world}"):
        ranks_from_environment()


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks_from_environment() == Ranks(0, 1, 0)
