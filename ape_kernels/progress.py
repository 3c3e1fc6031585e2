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
    which it looks at before each part; 0 for nobody. It runs in a thread of its own if somebody listens.
    """
    if progress is None:
        call(**arguments, watch=0)
        return
    watch = np.zeros(3, np.int64)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call(**arguments, watch=watch.ctypes.data)
        except BaseException as error:  # raised below, in the thread of the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="ape-kernels")
    thread.start()
    try:
        while thread.is_alive():
            progress(float(watch[0]) / max(1.0, float(watch[1])))
            thread.join(INTERVAL)
    except BaseException:
        watch[2] = 1
        thread.join()
        raise
    if errors:
        raise errors[0]
    progress(1.0)
