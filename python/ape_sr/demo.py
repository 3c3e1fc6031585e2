"""The page of `ape-sr demo`. Needs the extra `demo`."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr  # pyright: ignore[reportMissingImports]
import numpy as np
from PIL import Image

from ape_sr.cli.arguments import fidelity as read_fidelity
from ape_sr.cli.network import DEFAULT_SCALE, open_network, weights_path
from ape_sr.cli.upscale import MAX_PIXELS
from ape_sr.errors import UserError, memory_for
from ape_sr.pictures.read import read_file
from ape_sr.pictures.resize import lanczos
from ape_sr.upscaler import Upscaler
from ape_sr.weights import find_weights, offered_names

FIDELITIES = ("auto", "full", "36", "40", "42", "45", "48")
STYLE = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # others come from the network


class Shown(NamedTuple):
    """What the page shows of a picture.

    pair: the image enlarged by Lanczos, and its picture. depths: how deep each part ran. words: time and share.
    """

    pair: tuple[Image.Image, Image.Image]
    depths: Image.Image
    words: str


class Demo:
    """Upscales as `ape-sr upscale` does. args: of the network; the page chooses weights and fidelity."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._open = lru_cache(maxsize=4)(self._opened)

    def __call__(self, path: str | None, weights: str, fidelity: str) -> Generator[Shown]:
        """What is shown of the file, and once more when full depth has run, with its time.

        Raises UserError with the line of `ape-sr upscale` where that refuses, the file by its name alone.
        """
        if path is None:
            raise UserError("input: expected a picture")
        try:
            yield from self._shown(Path(path), weights, fidelity)
        except UserError as error:
            raise UserError(str(error).replace(path, Path(path).name)) from None

    def _shown(self, path: Path, weights: str, fidelity: str) -> Generator[Shown]:
        (frame,) = read_file(path, max_pixels=MAX_PIXELS, first_frame=True).frames
        upscaler = self._open(weights, fidelity)
        with memory_for(path):
            picture, report = upscaler.upscale(frame.pixels, return_report=True)
        height, width = picture.shape[:2]
        pair = _visible(lanczos(frame.pixels, width, height)), _visible(picture)
        depths = Image.fromarray(upscaler.exit_map(picture, report))
        words = f"{width // upscaler.scale}x{height // upscaler.scale} -> {width}x{height}: {report}"
        yield Shown(pair, depths, words)
        if report.share < 1:
            with memory_for(path):
                _, full = self._open(weights, "full").upscale(frame.pixels, return_report=True)
            faster = full.seconds / report.seconds
            yield Shown(pair, depths, f"{words}\n\nFull depth: {full.seconds:.2f} s, {faster:.1f} times as long")

    def _opened(self, weights: str, fidelity: str) -> Upscaler:
        try:
            asked = read_fidelity(fidelity)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"argument --fidelity: {error}") from None
        args = argparse.Namespace(**vars(self._args) | {"weights": find_weights(weights)})
        return open_network(args, fidelity=asked)  # pyright: ignore[reportArgumentType] - "auto" is the only text


def page(args: argparse.Namespace) -> gr.Blocks:
    """The page, to be launched. args: of the network; its weights are the first choice.

    Raises UserError for weights that are not there.
    """
    first = str(args.weights or f"edsr-12x32-x{args.scale or DEFAULT_SCALE}")
    weights_path(args)
    demo = Demo(args)

    def upscale(path: str | None, weights: str, fidelity: str) -> Generator[Any]:
        try:
            yield from demo(path, weights, fidelity)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None

    with gr.Blocks(title="ape-sr", analytics_enabled=False) as blocks:
        with gr.Row():
            file = gr.File(label="Picture", type="filepath", height=140)
            with gr.Column():
                weights = gr.Dropdown(list(dict.fromkeys([first, *offered_names()])), value=first, label="Weights")
                fidelity = gr.Dropdown(
                    FIDELITIES, value="auto", allow_custom_value=True, label="Fidelity to full depth, in dB"
                )
                button = gr.Button("Upscale", variant="primary")
        words = gr.Markdown(elem_id="words")
        pair = gr.ImageSlider(label="Before and after", format="png", elem_id="pair")
        depths = gr.Image(
            label="How deep each part ran", format="png", elem_id="depths", buttons=["download", "fullscreen"]
        )
        gr.on(
            [button.click, file.upload],
            upscale,
            [file, weights, fidelity],
            [pair, depths, words],
            api_name="upscale",
        )
    return blocks


def _visible(pixels: np.ndarray) -> Image.Image:
    """Any pixels as a browser shows them: 8 bits, RGB, or RGBA with transparency."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return image.convert("RGBA" if pixels.shape[2] in (2, 4) else "RGB")
