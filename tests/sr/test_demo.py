"""`ape-sr demo`: what the page shows and refuses, by its function and in a browser."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from picture_files import WEIGHTS

import ape_sr
from ape_sr.cli import main
from ape_sr.data.images import write_image
from ape_sr.extras import how_to_install

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == f"ape-sr: error: demo: needs gradio; run: {how_to_install('gradio')}\n"


@pytest.fixture
def photo(tmp_path: Path, cat: np.ndarray) -> Path:
    write_image(tmp_path / "cat.png", np.tile(cat, (2, 2, 1)))
    return tmp_path / "cat.png"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path / "text.png"


def line_of_the_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one with which `ape-sr upscale` refuses, files by their names alone."""
    assert main(["upscale", *map(str, arguments)]) == 2
    line = capsys.readouterr().err.splitlines()[-1].removeprefix("ape-sr: error: ")
    return re.sub(r"/\S*/", "", line)


class TestFunction:
    @pytest.fixture
    def demo(self):
        pytest.importorskip("gradio", reason="gradio is not installed; it is in the extra `demo`")
        from ape_sr.demo import Demo

        network = argparse.Namespace(
            weights=None, scale=None, exit_every=None, res_scale=None, backend="auto", dtype="fp32"
        )
        return Demo(network)

    def test_what_is_shown(self, demo, photo):
        first, last = demo(str(photo), WEIGHTS, "40")
        upscaler = ape_sr.load(WEIGHTS, fidelity=40)
        picture, report = upscaler.upscale(str(photo), return_report=True)
        before, after = last.pair
        assert np.array_equal(np.asarray(after), np.asarray(picture)) and before.size == after.size == (480, 400)
        assert np.array_equal(np.asarray(last.depths), upscaler.exit_map(picture, report))
        assert last.words.startswith("240x200 -> 480x400: ") and f"{report.share:.1%} of the computation" in last.words
        assert "Full depth: " not in first.words
        assert re.search(r"Full depth: [\d.]+ s, [\d.]+ times as long$", last.words)

    def test_full_depth_runs_once(self, demo, photo):
        (only,) = demo(str(photo), WEIGHTS, "full")
        assert "100.0% of the computation" in only.words and "Full depth: " not in only.words

    def test_refusals_are_those_of_the_command(self, demo, photo, text, tmp_path, capsys):
        out = tmp_path / "out.png"
        cases = {
            (text, WEIGHTS, "auto"): line_of_the_command(capsys, text, "-o", out, "-n", WEIGHTS),
            (photo, "none", "auto"): line_of_the_command(capsys, photo, "-o", out, "-n", "none"),
            (photo, WEIGHTS, "90"): line_of_the_command(capsys, photo, "-o", out, "-n", WEIGHTS, "--fidelity", 90),
            (photo, WEIGHTS, "much"): line_of_the_command(
                capsys, photo, "-o", out, "-n", WEIGHTS, "--fidelity", "much"
            ),
        }
        for (path, weights, fidelity), line in cases.items():
            with pytest.raises(ape_sr.UserError) as refused:
                list(demo(str(path), weights, fidelity))
            assert re.sub(r"/\S*/", "", str(refused.value)) == line


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is not installed; it is in the extra `demo`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ape_sr", "demo", "-n", WEIGHTS, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"open http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == "ape-sr: interrupted\n"


class TestPage:
    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no 127.0.0.2")
    def test_it_answers_to_one_address(self, address):
        """Were it bound to all, it would answer here too."""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(address.rpartition(":")[2])), timeout=5)

    def test_a_taken_port_is_said(self, address, capsys):
        port = address.rpartition(":")[2]
        assert main(["demo", "--port", port]) == 2
        assert capsys.readouterr().err == f"ape-sr: error: port: expected a free one, got {port}\n"

    def test_in_a_browser(self, address, photo, text, tmp_path, capsys):
        """APE_SCREENSHOT names a file for the picture in docs/demo.md, and APE_DEMO_PHOTO the photo in it."""
        playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
        browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser_path is None:
            pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 1500})
            elsewhere: list[str] = []
            page.route(
                lambda url: not url.startswith((address, "data:", "blob:")),
                lambda route: (elsewhere.append(route.request.url), route.abort()),
            )
            page.goto(address)
            upload = page.locator("input[type=file]").first
            upload.set_input_files(os.environ.get("APE_DEMO_PHOTO", str(photo)))
            words = page.locator("#words")
            playwright.expect(words).to_contain_text("Full depth: ", timeout=60_000)
            assert re.search(r"-> \d+x\d+: [\d.]+ s, [\d.]+% of the computation", words.inner_text())
            images = page.locator("#pair img")
            playwright.expect(images).to_have_count(2)
            playwright.expect(page.locator("#depths img")).to_be_visible()
            sides = images.evaluate_all("all => all.map(one => [one.naturalWidth, one.naturalHeight])")
            if "APE_DEMO_PHOTO" not in os.environ:
                assert sides == [[480, 400], [480, 400]]
            if "APE_SCREENSHOT" in os.environ:
                page.screenshot(path=os.environ["APE_SCREENSHOT"], full_page=True)
            line = line_of_the_command(capsys, text, "-o", tmp_path / "out.png", "-n", WEIGHTS)
            page.reload()
            page.locator("input[type=file]").first.set_input_files(str(text))
            playwright.expect(page.get_by_text(line)).to_be_visible(timeout=30_000)
            browser.close()
        assert elsewhere == []
