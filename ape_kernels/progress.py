"""How far a call is, told to its caller while it runs."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float], None]  # takes the share that is done, from 0 to 1; what it raises ends the call
