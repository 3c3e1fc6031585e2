"""Reading, computing and writing beside each other: in order, within bounds, and what a stop leaves."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ape_kernels import PatchGrid
from ape_sr.errors import UserError
from ape_sr.exit_map import LEGEND, MAX_PIXELS, draw_exit_map
from ape_sr.pipeline import AHEAD, HELD_BYTES, Stages, run_stages


def stages(**others):
    plain = {
        "read": lambda job: [job],
        "weigh": lambda job, item: 1,
        "compute": lambda job, item: item[0],
        "write": lambda job, result, helpers: f"{result} written",
    }
    return Stages(**plain | others)


def test_in_order():
    def write(job, result, helpers):
        time.sleep(0.05 if job == 0 else 0)
        return f"{result} written"

    assert [done.line for done in run_stages(range(9), stages(write=write))] == [f"{n} written" for n in range(9)]


@pytest.mark.parametrize("stage", ["read", "weigh", "compute", "write"])
def test_a_fault_ends_its_job_alone(stage):
    first = getattr(stages(), stage)

    def faulty(job, *arguments):
        if job == 3:
            raise UserError("three is odd")
        return first(job, *arguments)

    results = list(run_stages(range(6), stages(**{stage: faulty})))
    assert [done.job for done in results] == list(range(6))
    assert [str(done.error) for done in results if done.error] == ["three is odd"] and results[3].error is not None


def test_done_already_needs_no_network():
    def read(job):
        return "done already" if job % 2 else [job]

    computed = []
    run = stages(read=read, compute=lambda job, item: computed.append(job))
    lines = [done.line for done in run_stages(range(4), run)]
    assert computed == [0, 2] and lines[1::2] == ["done already"] * 2


def test_they_run_beside_each_other():
    """Three parts of 50 ms, eight times: 1.2 s after each other."""

    def slow(result):
        time.sleep(0.05)
        return result

    run = stages(
        read=lambda job: slow([job]), compute=lambda job, item: slow(job), write=lambda job, result, helpers: slow("")
    )
    started = time.perf_counter()
    assert len(list(run_stages(range(8), run))) == 8
    assert time.perf_counter() - started < 0.9


def test_memory_is_bounded():
    """Results that wait to be written hold at most so many bytes, and few images are read ahead."""
    lock, held, read = threading.Lock(), [0], [0]
    most = [0, 0]
    weight = HELD_BYTES // 3

    def read_one(job):
        with lock:
            read[0] += 1
            most[1] = max(most[1], read[0])
        return [job]

    def compute(job, item):
        with lock:
            read[0] -= 1
            held[0] += weight
            most[0] = max(most[0], held[0])
        return job

    def write(job, result, helpers):
        time.sleep(0.02)
        with lock:
            held[0] -= weight
        return ""

    list(run_stages(range(12), stages(read=read_one, weigh=lambda *_: weight, compute=compute, write=write)))
    assert most[0] <= HELD_BYTES and most[1] <= AHEAD + 1


def test_a_stop_waits_for_what_is_being_written():
    begun, ended = threading.Event(), threading.Event()

    def write(job, result, helpers):
        begun.set()
        time.sleep(0.1)
        ended.set()
        return ""

    results = run_stages(iter(range(10**9)), stages(write=write))
    threading.Thread(target=lambda: None).start()
    next(results)
    begun.wait(5)
    results.close()
    assert ended.is_set() and not [thread for thread in threading.enumerate() if thread.name.startswith("write")]


def test_peak_memory_of_the_command(tmp_path):
    """What the network gives, float32, and the picture: 15 bytes per pixel of RGB, and a tenth. No copies of either."""
    code = f"""
import resource, sys, torch
from PIL import Image
from ape_sr.cli import main
from ape_sr.upscaler import Upscaler
Image.effect_mandelbrot((1400, 1300), (-2, -1.5, 1, 1.5), 20).convert("RGB").save("{tmp_path}/large.png")
Image.new("RGB", (60, 40)).save("{tmp_path}/small.png")
Upscaler._run, run = (lambda self, images: (
    torch.zeros(1, 3, *(4 * side for side in images.shape[2:])), run(self, images[..., :48, :48])[1])), Upscaler._run
peaks = []
for name in ("small", "large"):
    assert main(["upscale", f"{tmp_path}/{{name}}.png", "-o", f"{tmp_path}/{{name}}_out.png"]) == 0
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print((peaks[1] - peaks[0]) / (16 * 1400 * 1300))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 15 * 1.1


def test_exit_maps_have_at_most_4_megapixels():
    """A picture of 11 megapixels: halved, and its patches with it."""
    picture = np.full((2800, 4000, 3), 100, np.uint8)
    picture[:, 2000:] = 200
    grid = PatchGrid(700, 1000, 240, 4, 4)
    exits = np.zeros(grid.shape, int)
    exits[:, exits.shape[1] // 2 :] = 5
    drawn = draw_exit_map(picture, exits, grid, 6, 0.5)
    assert drawn.shape == (1400 + LEGEND, 2000, 3) and MAX_PIXELS >= 1400 * 2000
    left, right = drawn[10:40, 10:40].reshape(-1, 3).mean(axis=0), drawn[10:40, -40:-10].reshape(-1, 3).mean(axis=0)
    assert np.abs(left - right).max() > 40
    deep = picture.astype(np.uint16) * 257
    assert np.abs(draw_exit_map(deep, exits, grid, 6, 0.5).astype(int) - drawn).max() <= 1
