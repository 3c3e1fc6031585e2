"""How far a call is, told to its caller while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Progress = Callable[[float], None]  # takes the share that is done, from 0 to 1; what it raises ends the call

INTERVAL = 0.05  # seconds from one look at native code to the next


def run_watched(call: Callable[..., None], arguments: dict[str, Any], progress: Progress | None) -> None:
    """Run native code, which does not return to Python before it is done, and tell how far it is.

    call: takes `arguments`, and `watch`, the address of three int64: parts done, parts there are, and whether to stop,
    which it looks at after each part; 0 for nobody. It runs in a thread of its own if somebody listens.
    """
    if progress is None:
        call(**arguments, watch=0)
        return
    _Watched(call, arguments).run(progress)


class _Watched:
    """A call in a thread that is over, or never begins, when `run` is left: its arguments are addresses.

    An interruption may come at any point of `run`, also where the thread is about to begin.
    """

    def __init__(self, call: Callable[..., None], arguments: dict[str, Any]) -> None:
        self._call, self._arguments = call, arguments
        self._watch = np.zeros(3, np.int64)
        self._lock = threading.Lock()
        self._begun = self._dropped = False
        self._over = threading.Event()
        self._error: BaseException | None = None

    def run(self, progress: Progress) -> None:
        """Runs it, and tells how far it is until it is done."""
        thread = threading.Thread(target=self._work, name="ape-kernels", daemon=True)
        try:
            thread.start()
            while not self._over.wait(INTERVAL):
                progress(float(self._watch[0]) / max(1.0, float(self._watch[1])))
        except BaseException:
            self._settle()
            raise
        if self._error is not None:
            raise self._error
        progress(1.0)

    def _work(self) -> None:
        with self._lock:
            if self._dropped:
                return
            self._begun = True
        try:
            self._call(**self._arguments, watch=self._watch.ctypes.data)
        except BaseException as error:  # raised in the thread of the caller
            self._error = error
        self._over.set()

    def _settle(self) -> None:
        """Returns when the thread does not use the arguments any more, however often it is interrupted."""
        while True:
            try:
                with self._lock:
                    self._dropped = True
                self._watch[2] = 1
                if self._begun:
                    self._over.wait()
                return
            except BaseException:
                continue
