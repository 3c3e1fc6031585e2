"""`ape-sr demo`: a page on this machine to try pictures on."""

from __future__ import annotations

import argparse
import os
import time

from ape_sr.cli.arguments import Commands, positive_int
from ape_sr.cli.network import add_network_arguments
from ape_sr.errors import UserError
from ape_sr.extras import how_to_install

HOST = "127.0.0.1"


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "demo",
        description="A page to try pictures on: before and after, how deep each part ran, and the time beside that of "
        f"full depth. It runs on this machine, needs no network, and answers to {HOST} alone.",
    )
    parser.set_defaults(run=run)
    add_network_arguments(parser)
    parser.add_argument("--port", type=positive_int, help="of the page (the first free one from 7860)")


def run(args: argparse.Namespace) -> None:
    """Serve until it is interrupted."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ModuleNotFoundError:
        raise UserError(f"demo: needs gradio; run: {how_to_install('gradio')}") from None
    from PIL import Image

    from ape_sr.demo import STYLE, page

    Image.MAX_IMAGE_PIXELS = None  # the limit of `ape-sr upscale` instead
    blocks = page(args)
    try:
        _, address, _ = blocks.launch(
            server_name=HOST,
            server_port=args.port,
            share=False,
            quiet=True,
            footer_links=[],
            theme=STYLE,
            prevent_thread_lock=True,
        )
    except OSError:
        raise UserError(f"port: expected a free one, got {args.port or 'none from 7860 on'}") from None
    print(f"open {address} (Ctrl-C ends it)", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        blocks.close(verbose=False)
