"""Reading, the network and writing beside each other: threads read ahead and write behind the thread that computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from ape_sr.errors import UserError

Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # images read before their turn
HELD_BYTES = 1 << 28  # see `run_stages`


@dataclass(frozen=True)
class Done(Generic[Job]):
    """A job that is over, with the line that reports it, or with what went wrong."""

    job: Job
    line: str = ""
    error: UserError | None = None


@dataclass(frozen=True)
class Stages(Generic[Job, Item, Result]):
    """What a job goes through. Each may raise UserError, which ends the job alone.

    read: in a thread; gives the line of a job that needs no more. weigh: bytes that the result will have.
    compute: in the calling thread. write: in a thread, its other argument helps to encode; gives the line.
    """

    read: Callable[[Job], Item | str]
    weigh: Callable[[Job, Item], int]
    compute: Callable[[Job, Item], Result]
    write: Callable[[Job, Result, ThreadPoolExecutor], str]


def run_stages(
    jobs: Iterable[Job], stages: Stages[Job, Item, Result], held: int = HELD_BYTES
) -> Generator[Done[Job], None, None]:
    """Run all jobs; gives them in order, each when it is over.

    held: bytes of results that wait to be written or are being written, while the next is computed.
    Closed early, by an interruption, it stops what is being written and waits for it.
    """
    count = max(2, os.cpu_count() or 1)
    left = iter(jobs)
    readers, writers, helpers = (
        ThreadPoolExecutor(threads, name) for threads, name in ((2, "read"), (2, "write"), (count, "encode"))
    )
    try:
        ahead = deque((job, readers.submit(stages.read, job)) for job in islice(left, AHEAD))
        behind: deque[_Behind[Job]] = deque()
        while ahead:
            job, reading = ahead.popleft()
            for following in islice(left, 1):
                ahead.append((following, readers.submit(stages.read, following)))
            try:
                item = reading.result()
                del reading
                if isinstance(item, str):
                    behind.append(_Behind(job, line=item))
                else:
                    weight = stages.weigh(job, item)
                    while behind and sum(other.weight for other in behind) + weight > held:
                        yield behind.popleft().wait()
                    result = stages.compute(job, item)
                    del item
                    behind.append(_Behind(job, writers.submit(stages.write, job, result, helpers), weight))
                    del result
            except UserError as error:
                behind.append(_Behind(job, error=error))
            while behind and behind[0].is_over:
                yield behind.popleft().wait()
        while behind:
            yield behind.popleft().wait()
    finally:
        for pool in (readers, helpers, writers):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (readers, helpers, writers):
            pool.shutdown(wait=True)


@dataclass(frozen=True)
class _Behind(Generic[Job]):
    """A job whose result is computed; `writing` until then. weight: bytes that are held for it."""

    job: Job
    writing: Future[str] | None = None
    weight: int = 0
    line: str = ""
    error: UserError | None = None

    @property
    def is_over(self) -> bool:
        return self.writing is None or self.writing.done()

    def wait(self) -> Done[Job]:
        if self.writing is None:
            return Done(self.job, self.line, self.error)
        try:
            return Done(self.job, self.writing.result())
        except UserError as error:
            return Done(self.job, error=error)
