"""Where the time of `ape-sr upscale` goes: each part alone, and the whole command.

    python bench/command.py PHOTOS

Seconds of processor time, so that other work on the machine counts little: the parts one after the other on every
picture of the folder, with Pillow's PNG beside ours. Then the command in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image

import ape_sr
from ape_sr.data.images import list_images
from ape_sr.pictures.png import write_png
from ape_sr.pictures.read import read_file

PARTS = ("read", "network", "PNG by Pillow", "PNG by ape-sr")


def measure_parts(paths: list[Path], weights: str) -> tuple[Counter[str], Counter[str]]:
    """Seconds of each part, and bytes of both kinds of PNG."""
    upscaler = ape_sr.load(weights)
    (frame,) = read_file(paths[0]).frames
    upscaler.upscale(frame.pixels[:64, :64])  # what the first call alone does
    seconds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for path in paths:
        started = time.process_time()
        (frame,) = read_file(path).frames
        seconds["read"] += time.process_time() - started
        started = time.process_time()
        picture = upscaler.upscale(frame.pixels)
        seconds["network"] += time.process_time() - started
        for part in PARTS[2:]:
            file = io.BytesIO()
            started = time.process_time()
            if part == "PNG by Pillow":
                Image.fromarray(picture.squeeze()).save(file, "png")
            else:
                write_png(file, picture)
            seconds[part] += time.process_time() - started
            sizes[part] += len(file.getvalue())
    return seconds, sizes


def run_command(folder: Path, weights: str) -> str:
    """The whole command, from start to end, and what it says of its parts, which run beside each other."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "ape_sr", "upscale", str(folder), "-o", out, "-n", weights]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"the command failed: {status}")
    processor = usage.ru_utime + usage.ru_stime
    found = re.search(r"images in ([\d.]+) s; .*network ([\d.]+) s, writing ([\d.]+) s", said)
    assert found is not None, said
    images, *parts = map(float, found.groups())
    rate = len(list_images(folder)) / images
    return (
        f"{seconds:.1f} s, {processor:.1f} s of the processor, at most {usage.ru_maxrss / 1e6:.2f} GB of memory; "
        f"without its start {images:.1f} s ({rate:.3g} pictures a second), {images / max(parts):.2f} times the "
        "longer of network and writing"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", "--weights", default="edsr-12x32-x4")
    args = parser.parse_args()
    paths = list_images(args.folder)
    seconds, sizes = measure_parts(paths, args.weights)
    before = sum(seconds[part] for part in ("read", "network", "PNG by Pillow"))
    after = sum(seconds[part] for part in ("read", "network", "PNG by ape-sr"))
    print(f"| {len(paths)} pictures | seconds of the processor | share with Pillow's PNG | share with ours |")
    print("| --- | ---: | ---: | ---: |")
    for part in PARTS:
        shares = [f"{seconds[part] / total:.0%}" for total in (before, after)]
        if part in PARTS[2:]:
            shares[part == "PNG by Pillow"] = ""
        print(f"| {part} | {seconds[part]:.1f} | {shares[0]} | {shares[1]} |")
    size = sizes["PNG by ape-sr"] / sizes["PNG by Pillow"]
    print(f"\nSize of the PNG files: {size:.3f} of Pillow's. The command: {run_command(args.folder, args.weights)}.")


if __name__ == "__main__":
    main()
