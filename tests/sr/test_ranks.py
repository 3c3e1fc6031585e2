"""Several processes: training in step, folders shared; and runs that are killed."""

import csv
import os
import re
import signal
import socket
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


# The command, which writes a checkpoint after every step, and of which a process may be killed at a step.
TRAINING = """
import functools, os, signal, sys
from ape_sr.cli import main, train
from ape_sr.data.crops import CropSampler

train.TrainingConfig = functools.partial(train.TrainingConfig, save_seconds=0)

def batch(self, step, size, real=CropSampler.batch):
    if os.environ.get("DIES_AT") == str(step) and os.environ.get("RANK", "1") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, step, size)

CropSampler.batch = batch
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


class TestKilledTraining:
    """A process is killed at the sixth of eight steps; given once more, the command ends as if nothing had been."""

    @pytest.fixture
    def program(self, tmp_path):
        (tmp_path / "training.py").write_text(TRAINING)
        return tmp_path / "training.py"

    @pytest.fixture
    def arguments(self, photos):
        size = ("-s", 2, "--blocks", 2, "--feats", 8, "--exit-every", 1, "--patch", 32, "--batch", 4)
        return ("train", "-i", photos, *size, "--steps", 8, "--lr", 1e-3, "--schedule", "cosine", "--device", "cpu")

    def nodes(self, program, arguments, folders, **variables):
        """Two machines with a process each, as torchrun sees it, and their folders; the statuses and what they say."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", **variables}
        agents = [
            subprocess.Popen(
                command(
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node-rank", number),
                    *("--nproc-per-node", 1, "--master-addr", "127.0.0.1", "--master-port", port),
                    *(program, *arguments, "-o", folder),
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            for number, folder in enumerate(folders)
        ]
        said = [agent.communicate(timeout=300)[0] for agent in agents]
        return [agent.returncode for agent in agents], said

    def losses(self, folder):
        return [row[:1] + row[2:] for row in csv.reader((folder / "log.csv").read_text().splitlines())]

    def assert_same(self, folder, whole):
        """The losses, and every bit of the weights."""
        assert self.losses(folder) == self.losses(whole)
        one, other = (load_model(each / "model.safetensors").state_dict() for each in (folder, whole))
        assert all(torch.equal(one[name], value) for name, value in other.items())

    def test_one_process(self, tmp_path, program, arguments):
        once = command(sys.executable, program, *arguments, "-o")
        assert subprocess.run([*once, str(tmp_path / "whole")], capture_output=True).returncode == 0
        killed = [*once, str(tmp_path / "killed")]
        ended = subprocess.run(killed, capture_output=True, env=os.environ | {"DIES_AT": "5"})
        assert ended.returncode == -signal.SIGKILL
        assert len(self.losses(tmp_path / "killed")) == 1 + 5
        with open(tmp_path / "killed" / "log.csv", "a") as log:
            log.write("3")  # half a line, of step 39 say
        assert subprocess.run(killed, capture_output=True).returncode == 0
        self.assert_same(tmp_path / "killed", tmp_path / "whole")

    def test_two_nodes(self, tmp_path, program, arguments):
        """They share no folder, and do as one node of two processes does."""
        whole = torchrun(*arguments, "-o", tmp_path / "whole")
        assert whole.returncode == 0, whole.stderr
        folders = tmp_path / "first", tmp_path / "second"
        statuses, _ = self.nodes(program, arguments, folders, DIES_AT="5")
        assert all(statuses)
        assert not folders[1].exists() and len(self.losses(folders[0])) == 1 + 5
        statuses, said = self.nodes(program, arguments, folders)
        assert statuses == [0, 0], said
        assert "weights: " in said[0] and "weights: " not in said[1]
        assert not folders[1].exists()
        self.assert_same(folders[0], tmp_path / "whole")

    def test_nodes_with_other_pictures(self, tmp_path, program, arguments, photos):
        other = tmp_path / "other"
        other.mkdir()
        (other / "a.png").write_bytes((photos / "a.png").read_bytes())
        changed = f"import os, sys; os.environ['RANK'] == '1' and sys.argv.extend(['-i', {str(other)!r}])\n"
        program.write_text(changed + TRAINING)
        statuses, said = self.nodes(program, arguments, (tmp_path / "first", tmp_path / "second"))
        assert all(statuses)
        assert all("data: expected the same in all processes, got 3 images of " in each for each in said)


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
