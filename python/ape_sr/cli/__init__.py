"""The command `ape-sr`."""

from ape_sr.cli.main import main

__all__ = ["main"]
