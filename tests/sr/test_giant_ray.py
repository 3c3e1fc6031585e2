"""A giant picture on a Ray cluster: the same file however many work at it, and whatever becomes of them."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage import data

pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-dev.txt")

import ray
from ray.cluster_utils import Cluster as Machines

import ape_sr.giant.windows as giant
from ape_sr.cli import main
from ape_sr.giant import cluster as giant_cluster
from ape_sr.giant.target import Target
from ape_sr.many.cluster import Cluster

SMALL = 2_000_000  # of RUN_BYTES: several windows
MACHINE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def machines():
    """A machine with a core, to which this process is connected; tests may add another."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    machines = Machines(initialize_head=True, head_node_args=MACHINE)
    ray.init(address=machines.address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield machines
    ray.shutdown()
    machines.shutdown()


def in_small_windows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(giant, "RUN_BYTES", SMALL)
    patch.setattr(giant, "LEAST", 96)
    patch.setattr(giant, "TILE", 128)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    in_small_windows(monkeypatch)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "in.tif"
    pixels = np.tile(data.astronaut()[:300, :350], (2, 2, 1))
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), compression="deflate")
    return path


@pytest.fixture(scope="module")
def plain(scene, fitted_weights) -> bytes:
    """The file without a cluster."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        in_small_windows(patch)
        assert run(scene, scene.parent / "plain.tif", fitted_weights) == 0
    windows = int(printed.getvalue().split(" windows")[0].split()[-1])
    assert windows >= 6
    return (scene.parent / "plain.tif").read_bytes()


@pytest.fixture
def actors(monkeypatch) -> list:
    """Those that were started."""
    started, real = [], Cluster.actors

    @contextmanager
    def told(*arguments):
        with real(*arguments) as started[:]:
            yield list(started)

    monkeypatch.setattr(Cluster, "actors", told)
    return started


def run(scene: Path, out: Path, weights: Path, *options: object) -> int:
    return main([str(each) for each in ("upscale", "-i", scene, "-o", out, "-n", weights, "--windows", *options)])


def kill_after(monkeypatch, count: int, actors: list) -> None:
    """The workers' processes end when so many windows are written; Ray starts them again."""
    put, seen = Target.put, []

    def killing(*arguments):
        put(*arguments)
        seen.append(1)
        if len(seen) == count:
            for actor in actors:
                ray.kill(actor, no_restart=False)

    monkeypatch.setattr(Target, "put", killing)


@pytest.mark.parametrize("options", [("--fidelity", 40), ("--budget", 0.5)])
def test_one_worker(scene, tmp_path, fitted_weights, machines, options, capsys):
    assert run(scene, tmp_path / "other.tif", fitted_weights, *options) == 0
    assert run(scene, tmp_path / "out.tif", fitted_weights, *options, "--ray") == 0
    assert "1 worker on 1 machine" in capsys.readouterr().err
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "other.tif").read_bytes()


def test_workers_that_end_are_replaced(scene, tmp_path, fitted_weights, plain, machines, actors, monkeypatch):
    kill_after(monkeypatch, 1, actors)
    assert run(scene, tmp_path / "out.tif", fitted_weights, "--ray") == 0
    assert (tmp_path / "out.tif").read_bytes() == plain


def test_a_window_that_ends_its_workers_is_given_up(
    scene, tmp_path, fitted_weights, plain, machines, actors, monkeypatch, capsys
):
    """What was done before is kept, and the command goes on, on a cluster or without one."""
    with monkeypatch.context() as patch:
        patch.setattr(giant_cluster, "KILLS", 1)
        kill_after(patch, 2, actors)
        assert run(scene, tmp_path / "out.tif", fitted_weights, "--ray") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "given up, 1 workers were lost in one window" in lines[-1]
    assert any("give the same command again and it goes on" in line for line in lines)
    assert not (tmp_path / "out.tif").exists()
    assert run(scene, tmp_path / "out.tif", fitted_weights, "--ray") == 0
    assert "of them done before" in capsys.readouterr().err
    assert (tmp_path / "out.tif").read_bytes() == plain


def test_a_worker_that_would_do_otherwise_is_refused(scene, tmp_path, fitted_weights, machines, monkeypatch, capsys):
    """Here, because the environment that the worker has says so."""
    monkeypatch.setenv("APE_BACKEND", "torch")
    assert run(scene, tmp_path / "whole.tif", fitted_weights, "--ray", "--backend", "cpu") == 0
    from ape_sr.cli import upscale

    settings = upscale.Networks.settings
    monkeypatch.setattr(upscale.Networks, "settings", lambda self: settings(self) | {"backend": "cuda"})
    assert run(scene, tmp_path / "out.tif", fitted_weights, "--ray") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "as where the command was given: backend cuda, got torch" in line


def test_two_workers(scene, tmp_path, fitted_weights, plain, machines, capsys):
    machines.add_node(**MACHINE)
    assert run(scene, tmp_path / "out.tif", fitted_weights, "--ray") == 0
    assert "2 workers on 2 machines" in capsys.readouterr().err
    assert (tmp_path / "out.tif").read_bytes() == plain


def test_a_machine_that_goes(scene, tmp_path, fitted_weights, plain, machines, monkeypatch, capsys):
    """Its windows run on the other; its worker cannot be started again, as there is no room."""
    machine = max(machines.worker_nodes, key=str, default=None) or machines.add_node(**MACHINE)
    put, seen = Target.put, []

    def removing(*arguments):
        put(*arguments)
        seen.append(1)
        if len(seen) == 1:
            machines.remove_node(machine, allow_graceful=False)

    monkeypatch.setattr(Target, "put", removing)
    assert run(scene, tmp_path / "out.tif", fitted_weights, "--ray") == 0
    assert "2 workers on 2 machines" in capsys.readouterr().err
    assert (tmp_path / "out.tif").read_bytes() == plain


def test_a_killed_command_goes_on(scene, tmp_path, fitted_weights, plain, machines, capsys):
    program = (
        "import sys, time, ape_sr.giant.windows as giant; from ape_sr.giant.target import Target;"
        f"giant.RUN_BYTES, giant.LEAST, giant.TILE = {SMALL}, 96, 128; put = Target.put;"
        "Target.put = lambda *a: (put(*a), time.sleep(0.5));"
        "from ape_sr.__main__ import main; sys.exit(main())"
    )
    out, journal = tmp_path / "out.tif", tmp_path / ".out.tif.windows.journal"
    arguments = ["upscale", "-i", scene, "-o", out, "-n", fitted_weights, "--windows", "--ray", machines.address]
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not out.exists()
    assert run(scene, out, fitted_weights, "--ray") == 0
    assert "of them done before" in capsys.readouterr().err
    assert out.read_bytes() == plain
