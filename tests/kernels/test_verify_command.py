"""``python -m ape_kernels verify`` and what else stands behind ``python -m ape_kernels``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import DEVICE
from test_verify import PLANTED, SMALL, TORCH, fresh, gone, plant

from ape_kernels.verify import command

__all__ = ["fresh", "plant"]  # the fixtures


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_ended_it_leaves_no_process_and_no_folder(tmp_path, number, status):
    """As a script with a time limit, or Ctrl-C, ends it."""
    started = [sys.executable, "-m", "ape_kernels", "verify", "--device", str(DEVICE)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    streams = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    run = subprocess.Popen(started, env=environment, **streams)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("ape-verify-*/output.txt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    run.send_signal(number)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == status and "Traceback" not in errors
    assert children and all(gone(int(pid)) for pid in children)
    assert not list(tmp_path.glob("ape-verify-*"))


def test_table_and_status(plant, monkeypatch, capsys):
    spoilt = textwrap.dedent(PLANTED.format(spoil="sr[0] = 0")) + textwrap.dedent("""
        def run_image(packed, sharing, image, depths, picture):
            honest.run_image(packed, sharing, image, depths, picture)
            picture.out[0] = 0
    """)
    able = TORCH | plant("wrong", spoilt)
    monkeypatch.setattr(command, "PROGRAMS", {"small": SMALL})
    monkeypatch.setattr(command, "modules_able", lambda *_: (able, {"absent": "is not built"}))
    arguments = ["--device", str(DEVICE), "--dtype", "float32", "--patch-size", "8"]
    assert command.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    patches, images = lines[:5], lines[5:]
    assert "patches of 8x8" in patches[0] and "images on shared feature maps" in images[0]
    absent = patches.pop()
    assert absent.split(None, 4) == ["small", "float32", "absent", "-", "is not built"], "told once"
    for head, torch_, wrong in (patches[1:], images[1:]):
        assert head.split() == ["program", "dtype", "backend", "right", "ms", "per", "patch", "why", "not"]
        assert torch_.split()[:4] == ["small", "float32", "torch", "yes"] and float(torch_.split()[4]) > 0
        assert wrong.split()[:4] == ["small", "float32", "wrong", "no"] and "pixels off" in wrong
    monkeypatch.setattr(command, "modules_able", lambda *_: (TORCH, {"absent": "is not built"}))
    assert command.main(arguments) == 0, "all that can run are right"


def test_bad_arguments(capsys):
    for arguments, line in (
        (["--patch-size", "0"], "--patch-size: expected at least 1, got 0"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
        assert line in capsys.readouterr().err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ape_kernels", *arguments], capture_output=True, text=True)


def test_without_arguments_the_environment_is_shown():
    shown = run()
    assert shown.returncode == 0 and shown.stdout.startswith("ape_kernels ")
    shown = run("verify", "--help").stdout
    assert "--patch-size" in shown and "candidate" not in shown


def test_another_command_is_refused():
    refused = run("verfy")
    assert refused.returncode == 2 and not refused.stdout
    assert "invalid choice: 'verfy' (choose from" in refused.stderr
    assert "verify" in run("--help").stdout
