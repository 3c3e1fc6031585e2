"""Folders on a Ray cluster of two machines, which these tests break on purpose; and what is left of them."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-dev.txt")

import ray
from ray.cluster_utils import Cluster as Machines

import ape_sr
from ape_sr.cli import main
from ape_sr.data.images import write_image
from ape_sr.extras import how_to_install
from ape_sr.many import run as many_run
from ape_sr.many.cluster import Cluster, Setting
from ape_sr.many.handing import KILLS, GivenUp, hand_out
from ape_sr.many.worker import Upscaling

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have this file
MACHINE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on the loopback interface, with a bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        system = s3fs.S3FileSystem(use_listings_cache=False)
        system.mkdir("pictures")
        yield system
    server.stop()


@pytest.fixture(scope="module")
def machines(bucket):
    """Two machines with a core each, to which this process is connected."""
    machines = Machines(initialize_head=True, head_node_args=MACHINE)
    machines.add_node(**MACHINE)
    ray.init(address=machines.address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield machines
    ray.shutdown()
    machines.shutdown()


@pytest.fixture
def many(tmp_path, cat) -> Path:
    """A folder of twelve pictures of different sizes."""
    for i in range(12):
        write_image(tmp_path / "many" / f"{i:02}.png", cat[: 40 + 5 * i, : 30 + 7 * i])
    return tmp_path / "many"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in ("upscale", *arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.parquet"}


def report_of(folder: Path) -> dict[str, dict]:
    from pyarrow.parquet import read_table

    return {Path(row["source"]).name: row for row in read_table(folder / "report.parquet").to_pylist()}


def without_seconds(line: str) -> list[str]:
    return [word for word in line.split(", ") if not word.endswith(" s")]


class Doubling:
    """A worker of numbers, which does as a job says."""

    def __init__(self, setting, folder):
        self.folder = folder

    def ready(self):
        pass

    def stop(self):
        pass

    def run(self, jobs):
        for job in jobs:
            with open(self.folder / f"{job}.begun", "a") as file:
                file.write(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}\n")
            if job == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            if job == 17:
                raise ValueError("seventeen is odd")
            time.sleep(0.02)
            yield 2 * job


def begun(folder: Path, job: int) -> list[list[str]]:
    return [line.split() for line in (folder / f"{job}.begun").read_text().splitlines()]


class TestHandingOut:
    def test_a_job_that_kills_its_process_is_given_up_and_no_other(self, machines, tmp_path):
        with Cluster(False, gpus=False).actors(Doubling, tmp_path) as actors:
            assert len(actors) == 2, "a worker per core"
            results = list(hand_out(actors, range(60)))
        given_up = {job: record.line for job, record in results if isinstance(record, GivenUp)}
        assert given_up.keys() == {13, 17}
        assert "it ended its process" in given_up[13] and "ValueError: seventeen is odd" in given_up[17]
        assert sorted(job for job, _ in results) == list(range(60)), "each once"
        assert all(record == 2 * job for job, record in results if job not in given_up)
        assert len({pid for pid, _ in begun(tmp_path, 13)}) == KILLS + 1, "once among others"

    def test_a_killed_process_and_a_lost_machine(self, machines, tmp_path):
        third = machines.add_node(**MACHINE)
        machines.wait_for_nodes()
        jobs, results = range(1000, 1300), []
        with Cluster(False, gpus=False).actors(Doubling, tmp_path) as actors:
            assert len(actors) == 3
            for job, record in hand_out(actors, jobs):
                results.append((job, record))
                if len(results) == 40:
                    pid, _ = begun(tmp_path, job)[-1]
                    os.kill(int(pid), signal.SIGKILL)
                if len(results) == 120:
                    machines.remove_node(third, allow_graceful=False)
        assert sorted(results) == [(job, 2 * job) for job in jobs]
        assert len({begun(tmp_path, job)[-1][1] for job in jobs}) == 3, "all machines took part"

    def test_memory_does_not_grow_with_the_jobs(self, machines):
        class Quick(Doubling):
            def run(self, jobs):
                yield from jobs

        def megabytes():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

        at = []
        with Cluster(False, gpus=False).actors(Quick, None) as actors:
            for number, _ in enumerate(hand_out(actors, range(5000))):
                if number % 500 == 499:
                    at.append(megabytes())
        assert len(at) == 10 and at[-1] - at[1] < 20, at

    def test_workers_that_cannot_begin(self, machines):
        class Unready(Doubling):
            def ready(self):
                raise ape_sr.UserError("weights: no such file")

        class Broken(Doubling):
            def __init__(self, setting, folder):
                raise OSError("no such library")

        for kind, message in (
            (Unready, "weights: no such file"),
            (Broken, "ray: no worker .*: OSError: no such library"),
        ):
            with (
                Cluster(False, gpus=False).actors(kind, None) as actors,
                pytest.raises(ape_sr.UserError, match=f"^{message}$"),
            ):
                list(hand_out(actors, range(5)))


def test_another_version_on_a_machine():
    worker = Upscaling(Setting(torch.get_num_threads(), os.getcwd(), {}, "9.9.9"), argparse.Namespace(), False)
    with pytest.raises(ape_sr.UserError, match=r"^ray: expected version 9\.9\.9 of ape-kernels on .*, got 0"):
        worker.ready()


class Poisoned(Upscaling):
    """Some pictures end its process, as too little memory would, when half of the result is on the disk."""

    def ready(self):
        from ape_sr.files import atomic_path

        super().ready()
        write = self._work.write

        def poisoned(job, result, helpers):
            if not job.name.startswith("poison"):
                return write(job, result, helpers)
            with atomic_path(job.picture) as path:
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)

        self._work.write = poisoned


class TestFolders:
    def test_files_lines_and_status_of_the_plain_command(self, machines, tmp_path, many, weights, capsys):
        (many / "corrupt.png").write_bytes((many / "00.png").read_bytes()[:200])
        os.mkfifo(many / "pipe.png")
        plain = (many, "-n", weights, "--exit-map", "--threshold", 0.4)
        assert run(*plain, "-o", tmp_path / "plain") == 2
        expected = capsys.readouterr()
        assert run(*plain, "-o", tmp_path / "ray", "--ray") == 2
        got = capsys.readouterr()
        assert contents(tmp_path / "ray") == contents(tmp_path / "plain") and len(contents(tmp_path / "ray")) == 24
        assert sorted(map(without_seconds, got.out.splitlines())) == sorted(
            map(without_seconds, expected.out.splitlines())
        )
        lines = got.err.splitlines()
        assert lines[0] == "2 workers on 2 machines, 1 thread each"
        assert [line for line in lines if "error" in line or "passed" in line] == [
            line for line in expected.err.splitlines() if "error" in line or "passed" in line
        ]
        rows = report_of(tmp_path / "ray")
        assert len(rows) == 13
        row = rows["11.png"]
        assert (row["state"], row["width"], row["height"], row["error"]) == ("done", 107, 95, None)
        assert row["picture"] == str(tmp_path / "ray" / "11_x2.png") and row["seconds"] > 0 and 0 < row["share"] <= 1
        assert sum(row["exits"]) > 1 and row["fidelity"] is None, "no plan with a threshold"
        assert rows["corrupt.png"]["state"] == "failed" and "corrupt.png: " in rows["corrupt.png"]["error"]
        assert rows["corrupt.png"]["width"] is None
        assert run(*plain, "-o", tmp_path / "ray", "--ray") == 2
        assert "12 of 13 images were done already; report: " in capsys.readouterr().err

    def test_a_picture_that_ends_its_process(self, machines, tmp_path, many, fitted_weights, monkeypatch, capsys):
        (many / "poison.png").write_bytes((many / "11.png").read_bytes())
        monkeypatch.setattr(many_run, "Upscaling", Poisoned)
        told = []
        outcome = ape_sr.upscale_many(
            many, tmp_path / "ray", tell=lambda job, record, _: told.append(job.name), weights=fitted_weights
        )
        assert outcome.states["failed"] == 1 and len(told) == len(set(told)) == 13
        (line,) = outcome.failures
        assert line.startswith(f"{many / 'poison.png'}: given up after 3 attempts alone")
        (many / "poison.png").unlink()
        assert run(many, "-o", tmp_path / "plain", "-n", fitted_weights) == 0
        assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
        assert all(row["fidelity"] > 20 for row in report_of(tmp_path / "ray").values() if row["state"] == "done")

    def test_a_killed_driver_and_an_object_store(self, machines, bucket, tmp_path, many, weights, capsys):
        for i in range(12, 60):
            (many / f"{i}.png").write_bytes((many / f"{i % 12:02}.png").read_bytes())
        bucket.put(f"{many}/", "pictures/in/", recursive=True)
        options = ("-n", str(weights), "--ray", machines.address)
        command = [sys.executable, "-m", "ape_sr", "upscale", "s3://pictures/in", "-o", "s3://pictures/out", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        process.kill()
        process.communicate(timeout=60)
        assert " -> " in first
        before = {name: bucket.info(name)["LastModified"] for name in bucket.find("pictures/out")}
        assert len(before) > 0
        assert run("s3://pictures/in", "-o", "s3://pictures/out", "-n", weights, "--ray") == 0
        printed = capsys.readouterr()
        assert len(before) <= printed.out.count("done already") < 60
        names = [name for name in bucket.find("pictures/out") if name.endswith(".png")]
        assert len(names) == 60 and not [name for name in names if "part" in name]
        assert all(bucket.info(name)["LastModified"] == modified for name, modified in before.items())
        assert run("s3://pictures/in", "-o", tmp_path / "plain", "-n", weights) == 0
        assert {Path(name).name: bucket.cat(name) for name in names} == contents(tmp_path / "plain")


def test_an_interruption_leaves_nothing_behind(tmp_path, cat, weights):
    """Of a cluster of this machine alone, which is the command's own."""
    for i in range(200):
        write_image(tmp_path / "in" / f"{i:03}.png", np.tile(cat, (2, 2, 1)))
    (tmp_path / "t").mkdir()
    command = [
        sys.executable,
        "-m",
        "ape_sr",
        "upscale",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "-n",
        weights,
        "--ray",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert " -> " in process.stdout.readline()
    family = descendants(process.pid)
    assert any("raylet" in name for name in family.values())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = errors.splitlines()
    assert len(lines) == 2 and "on this machine, 1 thread each" in lines[0] and lines[1] == "ape-sr: interrupted"
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert 0 < len(names) < 200 and not [name for name in names if "part" in name]
    deadline = time.monotonic() + 10
    while (left := [pid for pid in family if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, {pid: family[pid] for pid in left}


def descendants(pid: int) -> dict[int, str]:
    """Names of all processes below one."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            found |= descendants(int(child))
    return found


@pytest.mark.parametrize(
    "address, message",
    [
        ("photos", "ray: expected no address, auto or HOST:PORT, got photos; put --ray behind the inputs"),
        ("127.0.0.1:9", "ray: 127.0.0.1:9 cannot be reached: [Errno 111] Connection refused"),
    ],
)
def test_a_cluster_that_is_none(tmp_path, many, weights, address, message, capsys):
    assert run(many, "-o", tmp_path / "out", "-n", weights, "--ray", address) == 2
    assert capsys.readouterr().err == f"ape-sr: error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_without_ray(tmp_path, many, weights, monkeypatch, capsys):
    monkeypatch.setattr("ape_sr.many.cluster.find_spec", lambda name: None)
    assert run(many, "-o", tmp_path / "out", "-n", weights, "--ray") == 2
    hint = how_to_install("ray", "pyarrow", "fsspec")
    assert capsys.readouterr().err == f"ape-sr: error: ray: needs ray, pyarrow, fsspec; run: {hint}\n"


def test_arguments_of_the_python_interface(tmp_path, many):
    with pytest.raises(TypeError, match=r"settings: expected recursive, .*, got colour"):
        ape_sr.upscale_many(many, tmp_path / "out", colour=1)
    with pytest.raises(ape_sr.UserError, match="fidelity: expected dB from 20 to 80, full or auto, got 1"):
        ape_sr.upscale_many(many, tmp_path / "out", fidelity=1)
