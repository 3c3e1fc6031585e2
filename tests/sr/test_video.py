"""`ape-sr video`: the pictures, what else the file holds, and what is refused."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import ape_sr
from ape_sr.checkpoint import save_model
from ape_sr.data.images import write_image
from ape_sr.extras import how_to_install
from ape_sr.models.rcan import RCAN

av = pytest.importorskip("av", reason="av is not installed; it is in the extra `video`")

from picture_files import WEIGHTS  # noqa: E402
from video_files import (  # noqa: E402
    LOSSLESS,
    SUBTITLES,
    alone,
    assert_same,
    left_beside,
    moving_object,
    options,
    read_video,
    run,
    write_video,
)

from ape_sr.video import segments  # noqa: E402


@pytest.fixture(scope="module")
def patch_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that reads whole patches, and so cannot share their feature maps."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "rcan.safetensors"
    save_model(path, RCAN(2, 1, 1, 16, 4).eval())
    return path


class TestPictures:
    @pytest.mark.parametrize("fidelity", ["full", 40])
    def test_every_frame_is_what_it_is_alone(self, tmp_path, fitted_weights, fidelity, capsys):
        """Coded by x264, where still ground repeats exactly if no frame is coded between others; a part is reused."""
        source, output = tmp_path / "in.mp4", tmp_path / "out.mkv"
        set_up = options({"x264-params": "bframes=0"})
        write_video(source, moving_object(6, 96, 960), codec="libx264", pixel_format="yuv420p", set_up=set_up)
        assert run(source, output, fitted_weights, *LOSSLESS, "--fidelity", fidelity) == 0
        expected = alone(source, fitted_weights, fidelity=None if fidelity == "full" else fidelity)
        assert_same(read_video(output).frames, expected)
        line = capsys.readouterr().out.splitlines()[0]
        assert line.startswith("in.mp4: 960x96 -> 1920x192, 6 frames in ")
        reused = float(line.split("% of the picture reused")[0].split()[-1])
        assert 10 < reused < 95

    def test_networks_on_patches(self, clip, tmp_path, patch_weights, capsys):
        """No cells, and so nothing to reuse, but all else."""
        assert run(clip, tmp_path / "out.mkv", patch_weights, *LOSSLESS) == 0
        assert_same(read_video(tmp_path / "out.mkv").frames, alone(clip, patch_weights))
        assert "cells" not in capsys.readouterr().out

    def test_noise_below_the_tolerance_is_reused(self, tmp_path, fitted_weights, capsys):
        rng = np.random.default_rng(1)
        still = rng.integers(3, 250, (96, 480, 3), np.uint8)
        source = tmp_path / "in.mkv"
        write_video(source, [still + rng.integers(0, 3, still.shape, np.uint8) for _ in range(4)])
        shares = []
        for tolerance in (0, 2):
            assert run(source, tmp_path / "o.mkv", fitted_weights, *LOSSLESS, "--reuse-tolerance", tolerance) == 0
            line = capsys.readouterr().out.splitlines()[0]
            shares.append(float(line.split("% of the picture reused")[0].split()[-1]))
        assert shares == [0, 75], "the first of four frames is computed"
        first, *others = read_video(tmp_path / "o.mkv").frames
        assert all(np.array_equal(first, other) for other in others)

    def test_more_than_8_bits_stay(self, tmp_path, weights):
        source, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
        deep = [frame.astype(np.uint16) * 257 for frame in moving_object(2)]
        write_video(source, deep, pixel_format="gbrp16le")
        assert run(source, output, weights, *LOSSLESS) == 0
        upscaler = ape_sr.load(weights)
        with av.open(str(output)) as container:
            got = [frame.to_ndarray(format="rgb48le") for frame in container.decode(video=0)]
        assert_same(got, [upscaler.upscale(frame) for frame in deep])
        assert run(source, output, weights) == 0
        with av.open(str(output)) as container:
            assert container.streams.video[0].pix_fmt == "yuv420p10le"

    @pytest.mark.parametrize("codec", ["h264", "h265"])
    def test_colours_are_kept(self, tmp_path, codec):
        """Also where a player would take another matrix for the larger picture: the file says which."""
        source, output = tmp_path / "in.mp4", tmp_path / "out.mp4"
        colours = ((250, 10, 20), (20, 200, 30), (30, 40, 240))
        flat = [np.full((400, 64, 3), colour, np.uint8) for colour in colours]
        write_video(source, flat, codec="libx264", pixel_format="yuv420p")
        assert run(source, output, Path(WEIGHTS), "--codec", codec) == 0
        for frame, shown, colour in zip(read_video(output).frames, read_video(source).frames, colours, strict=True):
            assert np.abs(frame[400, 64].astype(int) - shown[200, 32]).max() <= 6, colour
        with av.open(str(output)) as container:
            context = container.streams.video[0].codec_context
            assert (context.colorspace, context.color_range) == (6, 1)

    def test_turned_frames_are_upright(self, tmp_path, weights):
        source, output = tmp_path / "in.mp4", tmp_path / "out.mkv"
        upright = moving_object(2)
        turned = [np.rot90(frame, -1) for frame in upright]
        write_video(
            source,
            turned,
            codec="libx264rgb",
            pixel_format="rgb24",
            set_up=lambda stream: stream.set_display_rotation(90),
        )
        assert run(source, output, weights, *LOSSLESS) == 0
        held = read_video(output)
        assert held.frames[0].shape == (192, 256, 3)
        assert_same(held.frames, alone(source, weights))
        assert np.abs(held.frames[0].astype(int) - ape_sr.load(weights).upscale(upright[0])).mean() < 8

    def test_one_frame_in_files_of_any_name(self, tmp_path, weights, capsys):
        """FFmpeg takes some names for protocols, and others for patterns; folders are made."""
        source, output = tmp_path / "12:30 %d é.mkv", tmp_path / "none" / "yet" / "file:out%03d.mkv"
        write_video(tmp_path / "in.mkv", moving_object(1))
        (tmp_path / "in.mkv").rename(source)
        assert run(source, output, weights, *LOSSLESS) == 0
        assert_same(read_video(output).frames, alone(source, weights))
        assert ", 1 frame in " in capsys.readouterr().out

    def test_odd_sizes_and_pixels_that_are_not_square(self, tmp_path, weights):
        source, output = tmp_path / "in.mkv", tmp_path / "out.mp4"
        write_video(
            source,
            [frame[:95, :127] for frame in moving_object(3)],
            codec="libx264",
            pixel_format="yuv444p",
            set_up=lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", 2),
        )
        assert run(source, output, weights) == 0
        with av.open(str(output)) as container:
            (stream,) = container.streams.video
            assert (stream.width, stream.height, stream.sample_aspect_ratio) == (254, 190, 2)


class TestTheRest:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    @pytest.mark.parametrize("codec", ["h264", "h265"])
    def test_times_of_frames_are_kept(self, tmp_path, weights, suffix, codec, short_segments):
        """A variable rate, over several segments that have frames between frames; Matroska has milliseconds."""
        source, output = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
        write_video(
            source, moving_object(11), lambda n: 300 + 512 * n + 37 * n * n, codec="libx264", pixel_format="yuv420p"
        )
        assert run(source, output, weights, "--codec", codec) == 0
        given, got = read_video(source), read_video(output)
        assert len(got.times) == 11
        worst = max(abs(a - b) for a, b in zip(given.times, got.times, strict=True))
        assert worst == 0 if suffix == ".mp4" else worst <= 0.0005
        with av.open(str(output)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        if suffix == ".mkv":  # which has no times of decoding
            return
        order = [(packet.dts, packet.pts) for packet in packets]
        assert all(a < b for (a, _), (b, _) in pairwise(order))
        assert all(dts <= pts for dts, pts in order)

    def test_times_that_do_not_rise(self, tmp_path, weights):
        """Matroska rounds these to the same milliseconds; no frame is lost."""
        source, output = tmp_path / "in.mkv", tmp_path / "out.mp4"
        write_video(source, moving_object(8), lambda number: 6 * number)
        given = read_video(source).times
        assert len(set(given)) < 8
        assert run(source, output, weights) == 0
        got = read_video(output).times
        assert len(set(got)) == 8 and max(abs(a - b) for a, b in zip(given, got, strict=True)) <= 0.01

    def test_sound_subtitles_and_words_are_copied(self, tmp_path, weights):
        text, source, output = tmp_path / "text.srt", tmp_path / "in.mkv", tmp_path / "out.mkv"
        text.write_text(SUBTITLES)
        write_video(source, moving_object(20), sound="aac", subtitles=text, set_up=name)
        assert run(source, output, weights) == 0
        given, got = read_video(source), read_video(output)
        assert given.sounds and got.sounds == given.sounds
        assert len(given.texts) == 2 and got.texts == given.texts
        with av.open(str(output)) as container:
            assert container.metadata["title"] == "A title"
            assert [stream.type for stream in container.streams] == ["video", "audio", "subtitle"]

    def test_subtitles_of_text_are_converted(self, tmp_path, weights):
        """MP4 holds others than Matroska; there and back they say the same at the same time."""
        text, source = tmp_path / "text.srt", tmp_path / "in.mkv"
        text.write_text(SUBTITLES)
        write_video(source, moving_object(20), subtitles=text)
        assert run(source, tmp_path / "there.mp4", weights) == 0
        with av.open(str(tmp_path / "there.mp4")) as container:
            assert [stream.codec_context.name for stream in container.streams.subtitles] == ["mov_text"]
            shown = [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(subtitles=0) if p.size > 2]
        assert [(time, data[2:7]) for time, data in shown] == [(0.04, b"Hello"), (0.5, b"World")]
        assert run(tmp_path / "there.mp4", tmp_path / "back.mkv", weights) == 0
        given, got = read_video(source), read_video(tmp_path / "back.mkv")
        assert got.texts == given.texts == [(0.04, b"Hello"), (0.5, b"<i>World</i>")]
        with av.open(str(tmp_path / "back.mkv")) as container:
            ends = [p.pts + p.duration for p in container.demux(subtitles=0) if p.size]
        assert ends == [400, 900]


def name(stream) -> None:
    stream.container.metadata["title"] = "A title"


class TestRefusals:
    """One line, status 2, and no file."""

    def refused(self, capsys, source: Path, output: Path, weights: Path, *options: object) -> str:
        assert run(source, output, weights, *options) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("ape-sr: error: ")]
        assert len(errors) == 1 and lines[-1] == errors[0]
        assert not output.is_file() and left_beside(output) == []
        return errors[0].removeprefix("ape-sr: error: ")

    def test_arguments(self, clip, tmp_path, weights, patch_weights, capsys):
        out = tmp_path / "out.mkv"
        assert "expected a name ending in .mkv, .mp4, .mov, got out.avi" in self.refused(
            capsys, clip, tmp_path / "out.avi", weights
        )
        assert "crf: expected a whole number from 0 to 51, got 60" in self.refused(
            capsys, clip, out, weights, "--crf", 60
        )
        assert "crf: expected with --codec h264 or h265" in self.refused(
            capsys, clip, out, weights, "--crf", 6, *LOSSLESS
        )
        assert "reuse-tolerance: expected at most 255 levels, got 300" in self.refused(
            capsys, clip, out, weights, "--reuse-tolerance", 300
        )
        assert "reuse-tolerance: expected 0 for a network that runs on patches" in self.refused(
            capsys, clip, out, patch_weights, "--reuse-tolerance", 3
        )
        assert "device: " in self.refused(capsys, clip, out, weights, "--device", "cuda:99")
        assert "scale: expected 2" in self.refused(capsys, clip, out, weights, "-s", 4)
        (tmp_path / "folder").mkdir()
        assert "output: expected a file, got the folder" in self.refused(capsys, clip, tmp_path / "folder", weights)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
    def test_where_nothing_can_be_written(self, clip, weights, monkeypatch, capsys):
        monkeypatch.setattr("ape_sr.cli.video.open_network", lambda *_, **__: pytest.fail("the work has begun"))
        assert run(clip, "/proc/x.mkv", weights) == 2
        assert "output: /proc/x.mkv cannot be written: " in capsys.readouterr().err

    def test_the_input_is_never_overwritten(self, clip, weights, capsys):
        before = clip.read_bytes()
        assert run(clip, clip, weights) == 2
        assert "is the input and would be overwritten" in capsys.readouterr().err
        assert clip.read_bytes() == before

    def test_sources(self, tmp_path, clip, weights, capsys):
        out = tmp_path / "out.mkv"
        assert "none.mp4: cannot be read as a video: No such file" in self.refused(
            capsys, tmp_path / "none.mp4", out, weights
        )
        (tmp_path / "text.mp4").write_text("no video")
        assert "text.mp4: cannot be read as a video: Invalid data" in self.refused(
            capsys, tmp_path / "text.mp4", out, weights
        )
        text = tmp_path / "text.srt"
        text.write_text(SUBTITLES)
        assert "text.srt: expected a video, got a file without one" in self.refused(capsys, text, out, weights)
        write_video(tmp_path / "sound.mkv", moving_object(9), sound="wavpack")
        line = self.refused(capsys, tmp_path / "sound.mkv", tmp_path / "out.mp4", weights)
        assert line == "output: .mp4 cannot hold the audio stream 1 of sound.mkv (wavpack); try .mkv, .mov"
        assert "f%d.png: cannot be read as a video: No such file" in self.refused(
            capsys, tmp_path / "f%d.png", out, weights
        )

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
    def test_pictures(self, tmp_path, cat, weights, capsys, suffix):
        write_image(tmp_path / f"cat{suffix}", cat)
        assert self.refused(capsys, tmp_path / f"cat{suffix}", tmp_path / "out.mkv", weights).endswith(
            "expected a video, got a picture; `ape-sr upscale` is for these"
        )

    def test_pictures_too_large_for_the_codec(self, tmp_path, weights, capsys):
        """Before any is computed."""
        source = tmp_path / "wide.mkv"
        write_video(source, [np.zeros((16, 8500, 3), np.uint8)])
        line = self.refused(capsys, source, tmp_path / "out.mkv", weights)
        assert line == "codec: h264 encodes no pictures of 17000x32"

    def test_damage_on_the_way(self, tmp_path, weights, capsys, short_segments):
        """What was finished before stays for the next try."""
        source, output = tmp_path / "in.mp4", tmp_path / "out.mkv"
        write_video(source, moving_object(10))
        data = np.frombuffer(source.read_bytes(), np.uint8).copy()
        data[len(data) * 6 // 10 : len(data) * 65 // 100] ^= 255
        source.write_bytes(data.tobytes())
        assert run(source, output, weights) == 2
        assert "in.mp4: damaged after 0.20 s: Invalid data" in capsys.readouterr().err
        assert not output.exists() and (tmp_path / ".out.mkv.segments" / "000000").is_file()

    def test_a_source_that_was_cut_off(self, clip, tmp_path, weights, capsys):
        """Its frames are there, and it is said that there should be more."""
        source = tmp_path / "cut.mkv"
        source.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
        assert run(source, tmp_path / "out.mkv", weights) == 0
        assert "cut.mkv: ends after 5 frames, where about 10 were expected" in capsys.readouterr().err

    def test_interlaced(self, tmp_path, weights, capsys):
        source = tmp_path / "in.mkv"
        write_video(
            source,
            moving_object(3),
            codec="libx264",
            pixel_format="yuv420p",
            set_up=options({"x264-params": "interlaced=1"}),
        )
        assert "expected whole frames, got interlaced ones" in self.refused(
            capsys, source, tmp_path / "out.mkv", weights
        )

    def test_two_processes_on_one_output(self, clip, tmp_path, weights, capsys):
        with segments.Segments(tmp_path / "out.mkv", "another"):
            assert run(clip, tmp_path / "out.mkv", weights) == 2
        assert "is being written by another process" in capsys.readouterr().err

    def test_without_av(self, clip, tmp_path, weights, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "av", None)
        assert self.refused(capsys, clip, tmp_path / "out.mkv", weights) == (
            f"video: needs av; run: {how_to_install('av')}"
        )
