"""Jobs handed to workers, each until it is done, whatever becomes of the workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ape_sr.errors import UserError

Job = TypeVar("Job")
Record_co = TypeVar("Record_co", covariant=True)

CHUNK = 256  # jobs that a worker is given at most
SUSPECTS = 8  # jobs run alone after a loss: more than a worker has begun and not finished (`ape_sr.pipeline`)
KILLS = 3  # losses, of a job that was alone, after which it is given up
PAUSE = 1.0  # seconds until a worker that did not answer is asked again
STOP_SECONDS = 20.0


class Worker(Protocol[Job, Record_co]):
    """What an actor does for `hand_out`."""

    def ready(self) -> None:
        """Returns when it can begin. A UserError ends the whole run."""
        ...

    def run(self, jobs: list[Job]) -> Iterator[Record_co]:
        """A record of each job, in their order, as soon as it is over. What it raises counts as a loss."""
        ...

    def stop(self) -> None:
        """End what is running, tidy up, then return."""
        ...


@dataclass(frozen=True)
class GivenUp:
    """In place of the record of a job. line: why."""

    line: str


@dataclass
class _Task(Generic[Job]):
    """A job, and how often it was lost when it was alone."""

    job: Job
    losses: int = 0


@dataclass(eq=False)
class _Handed(Generic[Job]):
    """A worker and what it has.

    waits: Ray's reference to what it gives next; None if it has nothing to do, or is to be asked again `at` a time.
    tasks: those whose records have not come yet, in their order.
    """

    actor: Any
    waits: Any = None
    at: float | None = None
    tasks: deque[_Task[Job]] = field(default_factory=deque[_Task[Job]])
    alone: bool = False
    began: bool = False


class _Hands(Generic[Job]):
    """The state of `hand_out`. queue: jobs that wait. suspects: those that are to run alone."""

    def __init__(self, actors: list[Any], jobs: Iterable[Job]) -> None:
        self.queue, self.suspects = deque(map(_Task[Job], jobs)), deque[_Task[Job]]()
        self.workers = [_Handed[Job](actor, actor.ready.remote()) for actor in actors]

    def is_over(self) -> bool:
        return not (self.queue or self.suspects or any(worker.tasks for worker in self.workers))

    def give(self, worker: _Handed[Job]) -> None:
        """Hand a worker what it can do next, if it has nothing."""
        if worker.at is not None and time.monotonic() >= worker.at:
            worker.at, worker.waits = None, worker.actor.ready.remote()
        if worker.waits is not None or worker.at is not None:
            return
        worker.alone = bool(self.suspects)
        if worker.alone:
            worker.tasks.append(self.suspects.popleft())
        else:
            count = min(CHUNK, -(-len(self.queue) // (2 * len(self.workers))))
            worker.tasks.extend(self.queue.popleft() for _ in range(count))
        if worker.tasks:
            jobs = [task.job for task in worker.tasks]
            worker.waits = worker.actor.run.options(num_returns="streaming").remote(jobs)

    def take(self, worker: _Handed[Job]) -> tuple[Job, Any] | None:
        """What a worker has given; None if that was only that it is ready."""
        import ray

        if not worker.tasks:
            ray.get(worker.waits)
            worker.waits, worker.began = None, True
            return None
        record = ray.get(next(worker.waits))
        job = worker.tasks.popleft().job
        if not worker.tasks:
            worker.waits = None
        return job, record

    def lose(self, worker: _Handed[Job], error: Exception) -> tuple[Job, GivenUp] | None:
        """A worker did not give what it should: its tasks wait again. One that is given up is returned."""
        from ray.exceptions import ActorDiedError

        if not worker.tasks:
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            if isinstance(error, ActorDiedError):  # for good: Ray starts it again where that is possible
                self.workers.remove(worker)
            if not self.workers:
                raise UserError(f"ray: no worker could be started: {str(error).strip().splitlines()[-1]}") from None
        given_up = None
        tasks, alone = list(worker.tasks), worker.alone
        worker.tasks.clear()
        worker.waits, worker.at = None, time.monotonic() + (PAUSE if not tasks else 0)
        if alone and tasks:
            (task,) = tasks
            task.losses += 1
            if task.losses >= KILLS:
                given_up = task.job, GivenUp(f"given up after {KILLS} attempts alone in a process: {_reason(error)}")
            else:
                self.suspects.append(task)
        else:
            self.suspects.extend(tasks[:SUSPECTS])
            self.queue.extendleft(reversed(tasks[SUSPECTS:]))
        return given_up


def hand_out(actors: list[Any], jobs: Iterable[Job]) -> Generator[tuple[Job, Any], None, None]:
    """Have actors of a `Worker` class do all jobs; gives each with its record, or with `GivenUp`, as they end.

    Chunks become smaller towards the end, so that the workers end together. If a worker is lost, with its process or
    its machine, what it had not finished runs again. Jobs that it may have begun run alone then, so that none is taken
    for the cause in another's place; one that was lost `KILLS` times alone is given up.
    In the end, also if closed early, the workers that answer are told to stop.

    UserError if no worker can begin.
    """
    import ray
    from ray.exceptions import RayError

    hands = _Hands(actors, jobs)
    try:
        while not hands.is_over():
            for worker in hands.workers:
                hands.give(worker)
            by_waits = {worker.waits: worker for worker in hands.workers if worker.waits is not None}
            come = ray.wait(list(by_waits), num_returns=1, timeout=PAUSE)[0] if by_waits else time.sleep(PAUSE)
            for worker in [by_waits[waits] for waits in come or ()]:
                try:
                    result = hands.take(worker)
                except (RayError, StopIteration) as error:
                    result = hands.lose(worker, error)
                if result is not None:
                    yield result
    finally:
        told = [worker.actor.stop.remote() for worker in hands.workers if worker.began]
        if told:
            ray.wait(told, num_returns=len(told), timeout=STOP_SECONDS)


def _reason(error: Exception) -> str:
    """One line of what Ray says at length."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
    if isinstance(error, (RayActorError, OutOfMemoryError)):
        return "it ended its process, or the machine's memory did not suffice"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
