"""The process around a command: signals and output streams, so that none of them ends in a traceback."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # of typing, which would be one more import before Ctrl-C is caught
if TYPE_CHECKING:
    from types import FrameType
    from typing import TextIO


def prepare() -> None:
    """While modules are imported: Ctrl-C ends the process at once, as there is nothing to tidy up.

    What a terminal cannot show is written as an escape. Streams that are closed take what is written, and lose it.
    """
    signal.signal(signal.SIGINT, _leave)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    import logging

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a home where it cannot keep fonts it warns


def begin_work() -> None:
    """From now on Ctrl-C and SIGTERM raise, so that unfinished files are removed.

    It does nothing if `prepare` was not called.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _terminate)


def silence(stream: TextIO) -> None:
    """After its reader has gone, or its disk is full: what is written to a stream is lost, and raises nothing."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def finish() -> None:
    """Write out what is buffered; a reader that has gone, as of ``| head -1``, is no error, and nor is a full disk."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"ape-sr: interrupted\n")
    os._exit(130)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise SystemExit(143)
