"""bench/gpu.py without a GPU: a dry run of its measuring steps, and an interruption in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, str(ROOT / "bench" / "gpu.py")]
MEASURING = ["environment", "build", *(f"{name}-time" for name in ("cuda", "torch", "triton", "compile"))]
MEASURING += [*(f"{name}-images" for name in ("cuda", "torch", "triton")), "ncu-worker", "ncu-image-pair", "auto"]
SECONDS = 240


def lines(out: Path) -> list[dict]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(out: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*SCRIPT, str(out), "--dry-run", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_every_measuring_step_writes_its_rows(tmp_path):
    run = start(tmp_path, "--only", ",".join(MEASURING))
    printed, _ = run.communicate(timeout=SECONDS)
    records = lines(tmp_path)
    ended = {record["step"]: record["ended"] for record in records if record["kind"] == "step"}
    assert run.returncode == 0, printed
    assert set(ended.values()) <= {"ok", "skipped: ncu is not installed"}, printed
    assert set(ended) == set(MEASURING)
    assert not [record for record in records if record["kind"] == "refused"], printed
    rows = {record["row"] for record in records if record["kind"] == "row"}
    assert {"cuda", "cuda in a CUDA graph", "triton", "torch fp16 channels_last"} <= rows
    assert {f"{name}, shared maps" for name in ("cuda", "triton", "ape_kernels torch")} <= rows
    exits = {record["exits"] for record in records if record["kind"] == "row"}
    assert {"full depth", "50% of the body", "all leave after stage 0"} <= exits
    assert "half interpolated, a checkerboard" in exits
    assert [record["what"] for record in records if record["kind"] == "auto"] == ["image", "patches"]
    assert all(record["tflop"] > 0 and len(record["ms"]) >= 5 for record in records if record["kind"] == "row")
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "log.txt", "table.txt"}
    assert "x own full depth" in printed and "auto, first image: " in printed
    assert (tmp_path / "table.txt").read_text().strip() in printed


@pytest.mark.parametrize("step", ["profile", "profile-image"])
def test_what_the_profiler_looks_at_runs(tmp_path, step):
    folders = os.pathsep.join(str(ROOT / name) for name in ("", "python", "tests"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders}
    command = [sys.executable, str(ROOT / "bench" / "gpu_steps.py"), step, str(tmp_path), "--dry-run"]
    subprocess.run(command, env=environment, check=True, timeout=SECONDS)


def test_an_interruption_keeps_what_was_measured_and_leaves_no_process(tmp_path):
    run = start(tmp_path, "--only", "cuda-time,torch-time")
    ends = time.monotonic() + SECONDS
    while not any(record["kind"] == "row" for record in lines(tmp_path)):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 143
    kept = [record for record in lines(tmp_path) if record["kind"] == "row"]
    assert kept
    assert kept[0]["row"] in printed, "the table is printed all the same"
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    assert not left
    time.sleep(0.3)
    assert [record for record in lines(tmp_path) if record["kind"] == "row"] == kept, "nothing measures on"


def test_a_line_cut_off_by_an_interruption_does_not_spoil_the_table(tmp_path):
    row = dict(
        kind="row", row="cuda", network="N", patches=1, exits="full depth", ms=[2.0], tflop=0.1, product_tflops=500
    )
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:40])
    printed = subprocess.run([*SCRIPT, str(tmp_path), "--table"], capture_output=True, text=True, check=True).stdout
    assert "2.000 ms" in printed
    assert "10% of the product's" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "cuda-tim"], "--only: expected some of environment, .*got \\['cuda-tim'\\]"),
        ([], "no NVIDIA GPU"),
    ],
    ids=["unknown-step", "no-gpu"],
)
def test_what_cannot_run_is_said_in_one_line(tmp_path, arguments, message):
    environment = {**os.environ, "PATH": str(tmp_path)}  # no nvidia-smi there
    dry = ["--dry-run"] if arguments else []
    run = subprocess.run(
        [*SCRIPT, str(tmp_path / "out"), *dry, *arguments], capture_output=True, text=True, env=environment
    )
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    assert re.search(message, run.stderr)
