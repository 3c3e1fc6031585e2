"""Reading and writing beside the thread that computes: one thread each, so that frames keep their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")


def read_ahead(items: Iterator[Item], most: int) -> Generator[Item]:
    """The same items; at most so many are made before their turn, in a thread. What it raises is raised in turn."""
    over = object()
    with ThreadPoolExecutor(1, "read") as pool:
        ahead = deque(pool.submit(next, items, over) for _ in range(most))
        try:
            while (item := ahead.popleft().result()) is not over:
                ahead.append(pool.submit(next, items, over))
                yield item  # pyright: ignore[reportReturnType] - `over` is the only other thing
        finally:
            pool.shutdown(cancel_futures=True)


class WriteBehind:
    """Calls functions in a thread, in order. At most so many wait: then the caller does.

    What one raises is raised by a later call, or when the context ends without an exception of its own. After an
    exception those that wait are not called.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._behind: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, "write")

    def __enter__(self) -> WriteBehind:
        return self

    def __call__(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have a function called."""
        while self._behind and (self._behind[0].done() or len(self._behind) >= self._most):
            self._behind.popleft().result()
        self._behind.append(self._pool.submit(function, *arguments))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if error is None:
                while self._behind:
                    self._behind.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
