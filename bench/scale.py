"""Folders on a Ray cluster of this machine against the plain command; the figures of docs/scale.md.

    python bench/scale.py photographs FOLDER    # crops of the pictures in FOLDER: speed, and what it costs
    python bench/scale.py tiny                  # 64x64 pixels: what a picture costs beside its pixels, and memory
    python bench/scale.py recovery              # how long the work of a killed worker stands still

Commands are run in turn, so that whatever else the machine does troubles all of them alike; figures are medians.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Look:
    """At a process and all below it. done: pictures until then. cpu: seconds until then. Resident megabytes now."""

    done: int
    cpu: float
    driver: int
    worker: int


@dataclass
class Run:
    """One run of the command. at: when each picture's line came, in seconds from the start. seconds: to the end.

    share: of the computation, mean of the pictures. megabytes: of a result, mean too.
    """

    at: list[float]
    seconds: float
    looks: list[Look]
    share: float
    megabytes: float

    @property
    def rate(self) -> float:
        """Pictures per second, from the first that was done to the last."""
        return (len(self.at) - 1) / (self.at[-1] - self.at[0])

    @property
    def cpu(self) -> float:
        """Processor seconds per picture, amid the run: without what it takes to start."""
        some = [look for look in self.looks if 0.1 * len(self.at) <= look.done <= 0.95 * len(self.at)]
        return (some[-1].cpu - some[0].cpu) / (some[-1].done - some[0].done)


class Watch(threading.Thread):
    """Looks at a process and all below it now and then."""

    def __init__(self, pid: int, done: list[float]) -> None:
        super().__init__(daemon=True)
        self.pid, self.done = pid, done
        self.cpu: dict[int, float] = {}
        self.looks: list[Look] = []
        self.workers: set[int] = set()

    def run(self) -> None:
        while Path(f"/proc/{self.pid}").exists():
            sizes = {}
            done = len(self.done)
            for pid in family(self.pid):
                try:
                    text = Path(f"/proc/{pid}/stat").read_text()
                    name, fields = text.partition("(")[2].rpartition(")")[::2]
                    fields = fields.split()
                    self.cpu[pid] = (int(fields[11]) + int(fields[12])) / TICKS
                    sizes[pid] = int(fields[21]) * PAGE >> 20
                    if name.startswith("ray::Upsc"):
                        self.workers.add(pid)
                except (OSError, IndexError):
                    continue
            worker = max((sizes[pid] for pid in self.workers if pid in sizes), default=0)
            self.looks.append(Look(done, sum(self.cpu.values()), sizes.get(self.pid, 0), worker))
            time.sleep(0.1)


def family(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass
    return found


def command(source: Path, count: int, *options: str, cores: int, kill_at: int = 0) -> Run:
    """Upscale a folder into a new one. cores: that it may use. kill_at: kill a worker after so many pictures."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "ape_sr", "upscale", source, "-o", folder, *options]
        allowed = set(sorted(os.sched_getaffinity(0))[:cores])
        started = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, line)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        at, shares = list[float](), list[float]()
        watch = Watch(process.pid, at)
        watch.start()
        for text in process.stdout or ():
            if " -> " in text:
                at.append(time.perf_counter() - started)
                shares.append(float(text.partition("% of the computation")[0].rpartition(" ")[2]) / 100)
                if len(at) == kill_at:
                    os.kill(min(watch.workers), signal.SIGKILL)
        assert process.wait() == 0 and len(at) == count, f"{len(at)} of {count}"
        watch.join()
        size = statistics.mean(path.stat().st_size for path in Path(folder).glob("*.png")) / 1e6
        return Run(at, time.perf_counter() - started, watch.looks, statistics.mean(shares), size)


def crops(pictures: list[Image.Image], folder: Path, count: int, width: int, height: int) -> Path:
    """A folder of random parts of those pictures that are large enough."""
    pictures = [picture for picture in pictures if picture.width >= width and picture.height >= height]
    choice = random.Random(1)
    folder.mkdir()
    for number in range(count):
        picture = pictures[number % len(pictures)]
        x, y = choice.randint(0, picture.width - width), choice.randint(0, picture.height - height)
        picture.crop((x, y, x + width, y + height)).save(folder / f"{number:06}.png", compress_level=1)
    return folder


def own() -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(p)) for p in (data.coffee(), data.astronaut(), data.chelsea())]


def rounds(source: Path, args: argparse.Namespace) -> None:
    cases = {
        "plain, 2 threads": ([], 2),
        "--ray, 1 worker": (["--ray"], 1),
        "--ray, 2 workers": (["--ray"], 2),
    }
    runs: dict[str, list[Run]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, (options, cores) in cases.items():
            runs[name].append(command(source, args.count, *options, cores=cores))
            last = runs[name][-1]
            print(
                f"  {name}: {last.rate:.3f}/s, {last.seconds:.1f} s in all, {last.cpu:.4f} s of processors each, "
                f"{max(look.worker for look in last.looks)} MB",
                flush=True,
            )
    base = runs["plain, 2 threads"]
    print(f"{base[0].share:.1%} of the computation, {base[0].megabytes:.1f} MB a result")
    print("| command | pictures/s | of plain | processor seconds per picture | of plain | start to end, s |")
    for name, several in runs.items():
        rate = statistics.median(run.rate for run in several)
        share = statistics.median(run.rate / plain.rate for run, plain in zip(several, base, strict=True))
        cpu = statistics.median(run.cpu for run in several)
        cost = statistics.median(run.cpu / plain.cpu for run, plain in zip(several, base, strict=True))
        whole = statistics.median(run.seconds for run in several)
        print(f"| {name} | {rate:.2f} | {share:.2f} | {cpu:.4f} | {cost:.2f} | {whole:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("photographs", "tiny", "recovery"))
    parser.add_argument("folder", type=Path, nargs="?", help="of photographs")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--size", help="of the pictures (640x480, tiny 64x64)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        width, height = map(int, (args.size or {"photographs": "640x480"}.get(args.what, "64x64")).split("x"))
        if args.what == "photographs":
            pictures = [Image.open(path).convert("RGB") for path in sorted(args.folder.iterdir())]
            source = crops(pictures, Path(folder) / "in", args.count, width, height)
            rounds(source, args)
        elif args.what == "tiny":
            source = crops(own(), Path(folder) / "in", args.count, width, height)
            if args.rounds > 1:
                rounds(source, args)
                return
            run = command(source, args.count, "--ray", cores=2)
            print(
                f"{args.count} pictures: {run.rate:.1f}/s, {run.seconds:.0f} s; megabytes of driver and largest worker:"
            )
            for share in (0.05, 0.25, 0.5, 0.75, 0.999):
                look = next(look for look in run.looks if look.done >= share * args.count)
                print(f"  {share:.0%}: {look.driver}, {look.worker}")
        else:
            source = crops(own(), Path(folder) / "in", args.count, 200, 200)
            for _ in range(args.rounds):
                half = args.count // 2
                run = command(source, args.count, "--ray", cores=1, kill_at=half)
                print(f"  {run.at[half] - run.at[half - 1]:.2f} s without a result, else {1 / run.rate:.3f} s")


if __name__ == "__main__":
    main()
