"""`ape-sr video`: interruptions, and how it goes on after them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="av is not installed; it is in the extra `video`")

from video_files import (  # noqa: E402
    LOSSLESS,
    assert_same,
    left_beside,
    moving_object,
    options,
    read_video,
    run,
    write_video,
)

from ape_sr.video import work  # noqa: E402

UPSCALE_VIDEO = work.upscale_video


def test_it_goes_on(clip, tmp_path, weights, monkeypatch, short_segments, capsys):
    """At the segment that was not finished, to the same file, byte by byte."""
    whole, output = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    assert run(clip, whole, weights) == 0
    computed = stop_after(monkeypatch, 6)
    assert run(clip, output, weights) == 130
    assert not output.exists()
    assert left_beside(output) == [".out.mp4.segments"]
    assert sorted(os.listdir(tmp_path / ".out.mp4.segments")) == ["000000", "000000.json", "note.json"]
    stop_after(monkeypatch, None)
    capsys.readouterr()
    assert run(clip, output, weights) == 0
    printed = capsys.readouterr()
    assert "going on after 4 frames" in printed.err and ", 6 frames in " in printed.out
    assert output.read_bytes() == whole.read_bytes()
    assert left_beside(output) == [] and computed


def test_another_setting_starts_over(clip, tmp_path, weights, monkeypatch, short_segments, capsys):
    stop_after(monkeypatch, 6)
    assert run(clip, tmp_path / "out.mkv", weights) == 130
    stop_after(monkeypatch, None)
    capsys.readouterr()
    assert run(clip, tmp_path / "out.mkv", weights, "--crf", 30) == 0
    assert ", 10 frames in " in capsys.readouterr().out


def test_an_interruption_does_not_show_with_a_tolerance(tmp_path, fitted_weights, monkeypatch, short_segments):
    rng = np.random.default_rng(2)
    source = tmp_path / "in.mkv"
    ground = rng.integers(0, 240, (96, 240, 3), np.uint8)
    write_video(source, [ground + np.uint8(number) for number in range(10)])
    lossless = (*LOSSLESS, "--reuse-tolerance", 5)
    assert run(source, tmp_path / "whole.mkv", fitted_weights, *lossless) == 0
    stop_after(monkeypatch, 6)
    assert run(source, tmp_path / "out.mkv", fitted_weights, *lossless) == 130
    stop_after(monkeypatch, None)
    assert run(source, tmp_path / "out.mkv", fitted_weights, *lossless) == 0
    assert_same(read_video(tmp_path / "out.mkv").frames, read_video(tmp_path / "whole.mkv").frames)


def test_nothing_stays_before_the_first_segment(clip, tmp_path, weights, monkeypatch):
    stop_after(monkeypatch, 3)
    assert run(clip, tmp_path / "out.mkv", weights) == 130
    assert not (tmp_path / "out.mkv").exists() and left_beside(tmp_path / "out.mkv") == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("where", ["in a segment", "joining"])
def test_a_signal(tmp_path, weights, end, where):
    """As Ctrl-C does it, and as nobody can catch it: no file, and the same command makes the same as if without."""
    source, whole, output = tmp_path / "in.mkv", tmp_path / "whole.mp4", tmp_path / "out.mp4"
    write_video(source, moving_object(10, 48, 64))
    command = [sys.executable, "-c", STOPPING, where, "video", "-n", weights, "-i", source, "-o"]
    command = list(map(str, command))
    process = subprocess.Popen([*command, str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == f"{where}\n"
    process.send_signal(end)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if end == signal.SIGINT else -end)
    assert "Traceback" not in errors and not output.exists()

    done = 1 if where == "in a segment" else 3
    kept = {"note.json", *(f"{number:06d}{end}" for number in range(done) for end in ("", ".json"))}
    part = f".out.mp4.{process.pid}.part" if where == "joining" else f".{1:06d}.{process.pid}.part"
    folder = tmp_path / ".out.mp4.segments"
    beside, inside = {".out.mp4.segments"}, kept
    if end == signal.SIGKILL:
        (beside if where == "joining" else inside).add(part)
    assert set(left_beside(output)) == beside and set(os.listdir(folder)) == inside

    command[3] = "never"
    again = subprocess.run([*command, str(output)], capture_output=True, text=True)
    assert again.returncode == 0 and f"going on after {4 * done} frames" in again.stderr
    assert left_beside(output) == []
    assert subprocess.run([*command, str(whole)], capture_output=True).returncode == 0
    assert output.read_bytes() == whole.read_bytes() and len(read_video(output).frames) == 10


@pytest.mark.parametrize(
    "suffix, coded",
    [
        (".mp4", {"x264-params": "keyint=8:min-keyint=8:scenecut=0:open-gop=1:bframes=3"}),
        (".mkv", {"x264-params": "keyint=8:min-keyint=8:scenecut=0:open-gop=1:bframes=3"}),
        (".mp4", {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=0"}),
    ],
)
def test_what_is_done_is_not_decoded_again(tmp_path, weights, monkeypatch, short_segments, suffix, coded):
    """At a variable rate too. Were it decoded, it would stop at frames that are damaged meanwhile."""
    source, whole, output = tmp_path / f"in{suffix}", tmp_path / "whole.mp4", tmp_path / "out.mp4"

    write_video(
        source,
        moving_object(60),
        lambda n: 300 + 512 * n + 37 * n * n,
        codec="libx264",
        pixel_format="yuv420p",
        set_up=options(coded),
    )
    assert run(source, whole, weights) == 0
    stop_after(monkeypatch, 50)
    assert run(source, output, weights) == 130
    stop_after(monkeypatch, None)
    damage(source, 10, 20)
    assert run(source, tmp_path / "other.mp4", weights) == 2
    assert run(source, output, weights) == 0
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "name, coded",
    [
        ("in.h264", {}),  # without times, in which nothing can be sought
        ("in.ts", {"x264-params": "keyint=8"}),  # without an index
        ("in.mkv", {"x264-params": "keyint=20:intra-refresh=1:bframes=0"}),  # of which no frame is whole by itself
        ("in.mp4", {"x264-params": "keyint=250"}),
    ],
)
def test_going_on_where_seeking_is_hard(tmp_path, weights, monkeypatch, short_segments, name, coded):
    source, whole, output = tmp_path / name, tmp_path / "whole.mp4", tmp_path / "out.mp4"
    write_video(source, moving_object(50), codec="libx264", pixel_format="yuv420p", set_up=options(coded))
    assert run(source, whole, weights) == 0
    stop_after(monkeypatch, 42)
    assert run(source, output, weights) == 130
    stop_after(monkeypatch, None)
    assert run(source, output, weights) == 0
    assert output.read_bytes() == whole.read_bytes()


def test_going_on_where_the_file_lies_about_keyframes(tmp_path, weights, monkeypatch, short_segments):
    """It says that all frames are some; what comes from such a one is not what came before the interruption."""
    whole, output = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    set_up = options({"x264-params": "keyint=40:min-keyint=40:scenecut=0:bframes=0"})
    write_video(tmp_path / "true.mkv", moving_object(50), codec="libx264", pixel_format="yuv420p", set_up=set_up)
    with av.open(str(tmp_path / "true.mkv")) as true, av.open(str(tmp_path / "in.mkv"), "w") as lie:
        stream = lie.add_stream_from_template(true.streams.video[0], opaque=True)
        for packet in true.demux(video=0):
            if packet.size:
                packet.is_keyframe, packet.stream = True, stream
                lie.mux(packet)
    assert run(tmp_path / "in.mkv", whole, weights) == 0
    stop_after(monkeypatch, 30)
    assert run(tmp_path / "in.mkv", output, weights) == 130
    stop_after(monkeypatch, None)
    assert run(tmp_path / "in.mkv", output, weights) == 0
    assert output.read_bytes() == whole.read_bytes() and len(read_video(output).frames) == 50


def test_going_on_at_times_that_do_not_rise(tmp_path, weights, monkeypatch, short_segments):
    """Of a picture that stands still, whose frames nothing but their times tells apart."""
    source, whole, output = tmp_path / "in.mkv", tmp_path / "whole.mp4", tmp_path / "out.mp4"
    write_video(source, [moving_object(1)[0]] * 30, lambda number: 6 * number)
    assert run(source, whole, weights) == 0
    stop_after(monkeypatch, 22)
    assert run(source, output, weights) == 130
    stop_after(monkeypatch, None)
    assert run(source, output, weights) == 0
    assert output.read_bytes() == whole.read_bytes() and len(read_video(output).frames) == 30


# The command with segments of four frames, which waits for a signal at a place that it names.
STOPPING = """
import sys, time
from ape_sr.video import segments, work, writing
from ape_sr.video.enlarge import Enlarger

segments.LENGTH = work.LENGTH = 4
where = sys.argv.pop(1)
calls = {"in a segment": 0, "joining": 0}

def waits(place, number, function):
    def call(*arguments):
        calls[place] += 1
        if place == where and calls[place] == number:
            time.sleep(0.5)  # what is written behind is written
            print(where, flush=True)
            time.sleep(600)
        return function(*arguments)
    return call

Enlarger.__call__ = waits("in a segment", 7, Enlarger.__call__)
writing.copied_packets = waits("joining", 2, writing.copied_packets)  # they are looked at before, too
from ape_sr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def damage(path: Path, first: int, last: int) -> None:
    """Overwrite frames; the file's size and time stay."""
    was = path.stat()
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for place, size in packets[first:last]:
        data[place + 5 : place + size] = bytes(size - 5)
    path.write_bytes(data)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int | None) -> list[int]:
    """Ctrl-C comes when so many frames are computed; None: never."""
    seen: list[int] = []

    def upscale(source, output, encoding, enlarger, held, progress):
        def told(done: int) -> None:
            seen.append(done)
            progress(done)
            if count is not None and done == count:
                time.sleep(0.3)  # what is written behind is written
                raise KeyboardInterrupt

        return UPSCALE_VIDEO(source, output, encoding, enlarger, held, told)

    monkeypatch.setattr(work, "upscale_video", upscale)
    return seen
