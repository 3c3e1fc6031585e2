"""The commands that measure and train networks, as a user calls them."""

import csv
import json

import numpy as np
import pytest
from skimage import data
from support import spread_network

from ape_kernels import APEForward
from ape_sr.checkpoint import load_model, save_model
from ape_sr.cli import main
from ape_sr.data.images import read_image, write_image
from ape_sr.models import NETWORKS
from ape_sr.weights import shipped_weights


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestEvaluate:
    def test_high_resolution_pictures_alone(self, tmp_path, photos, weights, capsys):
        arguments = ("-i", photos, "-n", weights, "--threshold", 0, 0.4, "--json", tmp_path / "out.json")
        assert run("evaluate", *arguments) == 0
        out = capsys.readouterr().out
        assert "3 images, scale 2" in out
        names = ["bicubic", "plain", "threshold 0", "threshold 0.4"]
        assert [line.split("  ")[0] for line in out.splitlines()[2:]] == names
        rows = json.loads((tmp_path / "out.json").read_text())["rows"]
        assert [row["threshold"] for row in rows] == [None, None, 0, 0.4]
        assert rows[2]["mean"]["flops_share"] == 1
        assert rows[3]["mean"]["body_share"] < 1
        assert len(rows[3]["images"]) == 3

    def test_curves_maps_and_table(self, tmp_path, photos, fitted_weights):
        out = tmp_path / "out"
        policies = ("--threshold", 0, 0.4, "--budget", 0.5, "--fidelity", 32, "full")
        wanted = ("--csv", out / "t.csv", "--plot", out / "p.png", "--exit-maps", out / "maps")
        assert run("evaluate", "-i", photos, "-n", fitted_weights, *policies, *wanted) == 0
        table = list(csv.DictReader((out / "t.csv").read_text().splitlines()))
        by_method = {row["method"]: row for row in table}
        methods = ["fidelity 32", "full", "budget 0.5", "threshold 0", "threshold 0.4"]
        assert list(by_method) == ["bicubic", "plain", *methods]
        assert float(by_method["budget 0.5"]["flops_share"]) <= 0.5 and by_method["plain"]["flops_share"] == ""
        assert int(by_method["fidelity 32"]["interpolated"]) > 0 and float(by_method["full"]["flops_share"]) == 1
        row = by_method["threshold 0.4"]
        assert float(row["paper_share"]) > float(row["flops_share"]), "a dearer tail cannot be saved"
        assert np.ptp(read_image(out / "p.png")) == 255
        names = [f"{name}_{method.replace(' ', '_')}.png" for name in "abc" for method in methods]
        assert files(out / "maps") == sorted(names)

    @pytest.mark.parametrize("name, method", [("weights", "full"), ("fitted_weights", "fidelity 48")])
    def test_without_settings_it_is_what_upscale_does(self, photos, request, name, method, capsys):
        assert run("evaluate", "-i", photos, "-n", request.getfixturevalue(name)) == 0
        lines = capsys.readouterr().out.splitlines()[2:]
        assert [line.split("  ")[0] for line in lines] == ["bicubic", "plain", method]

    def test_half_a_pair_is_named(self, photos, weights, cat, capsys):
        write_image(photos / "d_HR.png", cat)
        for name in ("a.png", "b.bmp", "c.webp"):
            (photos / name).unlink()
        assert run("evaluate", "-i", photos, "-n", weights) == 2
        assert "d_HR.png: expected d_LR.png beside it" in capsys.readouterr().err

    def test_a_bad_picture_is_a_line_and_the_others_count(self, tmp_path, photos, weights, capsys):
        (photos / "bad.png").write_bytes(b"no picture")
        out = tmp_path / "out.json"
        assert run("evaluate", "-i", photos, "-n", weights, "--json", out) == 2
        printed = capsys.readouterr()
        assert "3 images, scale 2" in printed.out and len(json.loads(out.read_text())["rows"][0]["images"]) == 3
        assert printed.err.splitlines() == [
            f"ape-sr: error: {photos / 'bad.png'}: not an image file that can be read",
            "ape-sr: error: 1 of 4 images could not be taken; the figures are of the others",
        ]

    def test_a_picture_too_small_for_the_border_is_named(self, tmp_path, weights, cat, capsys):
        write_image(tmp_path / "small.png", cat[:20, :20])
        assert run("evaluate", "-i", tmp_path, "-n", weights) == 2
        assert "small.png: expected sides of at least 28 pixels, got 20x20" in capsys.readouterr().err


class TestCalibrate:
    def test_stores_the_largest_threshold_within_the_loss(self, tmp_path, capsys):
        write_image(tmp_path / "photos" / "cat.png", data.chelsea())
        photos, out = tmp_path / "photos", tmp_path / "own.safetensors"
        assert run("calibrate", "-i", photos, "-n", shipped_weights(4), "-o", out, "--max-loss-db", 0.05) == 0
        threshold = 1 - load_model(out).exit_threshold
        assert 0 < threshold < 1
        tried = (0, threshold, min(1, threshold + 0.004))
        run("evaluate", "-i", photos, "-n", out, "--threshold", *tried, "--json", tmp_path / "a.json")
        rows = json.loads((tmp_path / "a.json").read_text())["rows"][2:]
        full, at, above = (row["mean"]["psnr_y"] for row in rows)
        assert full - at <= 0.05 < full - above
        assert APEForward(load_model(out)).threshold == pytest.approx(threshold)

    def test_meets_a_share_of_the_flops(self, tmp_path, photos, weights, capsys):
        out = tmp_path / "own.safetensors"
        assert run("calibrate", "-i", photos, "-n", weights, "-o", out, "--flops-share", 0.8) == 0
        threshold = 1 - load_model(out).exit_threshold
        tried = (max(0, threshold - 0.004), threshold)
        run("evaluate", "-i", photos, "-n", out, "--threshold", *tried, "--json", tmp_path / "a.json")
        below, at = (row["mean"]["flops_share"] for row in json.loads((tmp_path / "a.json").read_text())["rows"][2:])
        assert at <= 0.8 < below
        assert run("calibrate", "-i", photos, "-n", weights, "-o", out, "--flops-share", 0.01) == 2
        assert "flops-share: expected at least 0." in capsys.readouterr().err

    def test_a_bad_image_is_said_once_and_the_others_count(self, tmp_path, photos, capsys):
        weights, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
        save_model(weights, spread_network(2, 2, 8, 1))
        (photos / "bad.png").write_bytes(b"no picture")
        assert run("calibrate", "-i", photos, "-n", weights, "-o", out, "--flops-share", 0.9) == 2
        printed = capsys.readouterr()
        assert printed.err.count("bad.png: not an image file") == 1
        assert "1 of 4 images could not be taken; the threshold is the others'" in printed.err
        assert "written:" in printed.out and out.exists()

    def test_a_plain_network_is_refused(self, tmp_path, photos, capsys):
        save_model(tmp_path / "plain.safetensors", spread_network(2, 2, 8, None))
        assert (
            run("calibrate", "-i", photos, "-n", tmp_path / "plain.safetensors", "-o", tmp_path / "x.safetensors") == 2
        )
        assert "weights: expected a network with exits" in capsys.readouterr().err


def test_train_then_upscale(tmp_path, photos, capsys):
    """The paper's two phases, three steps each, then the result in use."""
    common = ("-i", photos, "-s", 2, "--blocks", 2, "--feats", 8, "--patch", 32, "--batch", 2, "--steps", 3)
    assert run("train", *common, "-i", photos, "-o", tmp_path / "plain", "--plain", "--minutes", 5) == 0
    assert "6 images (0 smaller than 32x32 left out)" in capsys.readouterr().out
    weights = tmp_path / "plain" / "model.safetensors"
    (photos / "bad.png").write_bytes(b"no picture")
    assert run("train", *common, "-o", tmp_path / "exits", "--init", weights, "--exit-every", 1) == 0
    weights = tmp_path / "exits" / "model.safetensors"
    printed = capsys.readouterr()
    assert f"error: {photos / 'bad.png'}: not an image file that can be read; left out" in printed.err
    assert "3 images (0 smaller than 32x32 left out)" in printed.out
    assert load_model(weights).exit_interval == 1
    assert run("upscale", "-i", photos / "a.png", "-o", tmp_path / "x.png", "-n", weights) == 0
    assert read_image(tmp_path / "x.png").shape == (120, 140, 3)


@pytest.mark.parametrize("network", ["rcan", "vdsr", "ecbsr", "compact", "rrdb", "swinir"])
def test_train_builds_every_network(tmp_path, photos, network):
    size = ("-s", 4, "--blocks", 4, "--feats", 16, "--patch", 32, "--batch", 1, "--steps", 1)
    extra = ("--groups", 2) if network == "rcan" else ()
    assert (
        run("train", "-i", photos, "-o", tmp_path, "--network", network, *size, *extra, "--target", "look-ahead") == 0
    )
    model = load_model(tmp_path / "model.safetensors")
    assert type(model) is NETWORKS[network]
    stages = APEForward(model).program.stages
    assert len(stages) == (
        1 if network in ("rcan", "vdsr") else 2
    )  # two groups; four convolutions, two between the ends


def test_train_with_an_exit_before_the_first_block(tmp_path, photos, capsys):
    size = ("-s", 2, "--blocks", 2, "--feats", 8, "--patch", 32, "--batch", 2, "--steps", 2)
    arguments = ("train", "-i", photos, "-o", tmp_path, *size, "--head-exit")
    assert run(*arguments) == 2
    assert "head_exit: expected with the target look-ahead, got paper" in capsys.readouterr().err
    assert run(*arguments, "--target", "look-ahead") == 0
    assert len(APEForward(load_model(tmp_path / "model.safetensors")).program.stages) == 2
