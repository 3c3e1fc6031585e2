"""Windows of an image on a Ray cluster: any worker makes any of them; the file is written where the run began."""

from __future__ import annotations

import argparse
import platform
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from ape_kernels.run.windows import Window
from ape_sr.errors import UserError
from ape_sr.folder.jobs import Job
from ape_sr.giant.target import packed
from ape_sr.giant.windows import Cut, Packed
from ape_sr.many.cluster import Cluster, Setting

KILLS = 3  # losses of workers after which a window is given up
AHEAD = 2  # windows per worker, at most, that are made or being made, and not yet written
HELD_BYTES = 500_000_000  # of those that are made, after which none are begun


class WindowWorker:
    """An actor. args: of the command. job: the image. size: of its file, in bytes. settings: of the result."""

    def __init__(
        self, setting: Setting, args: argparse.Namespace, job: Job, size: int, settings: dict[str, object]
    ) -> None:
        setting.apply()
        self._setting, self._args, self._job = setting, args, job
        self._size, self._settings = size, settings
        self._cut: Cut | None = None

    @ray.method(max_task_retries=-1)  # so that it waits for a process that is started again
    def ready(self) -> None:
        """Open network and file. UserError if they are not those of the command, or cannot be opened here."""
        self._opened()

    def make(self, window: Window, tile: int, asked: float | None) -> Packed:
        """See `Cut`."""
        self._setting.apply_threads()
        cut = self._opened()
        made = cut.compute(window, cut.read(window), asked)
        return Packed(packed(made.pixels, tile), made.sums)

    def _opened(self) -> Cut:
        """Again where Ray has started the process anew."""
        if self._cut is None:
            from ape_sr.cli.upscale import Networks

            here, source = platform.node(), self._job.source
            self._setting.check_version()
            networks = Networks(self._args)
            got = networks.settings()
            changed = [
                f"{name} {value}, got {got[name]}" for name, value in self._settings.items() if got[name] != value
            ]
            if changed:
                raise UserError(f"ray: expected on {here}, as where the command was given: {'; '.join(changed)}")
            if not source.is_file() or source.stat().st_size != self._size:
                raise UserError(f"ray: expected {source} on {here}, as where the command was given; share the folder")
            self._cut = Cut(source, networks.default)
        return self._cut


@dataclass(eq=False)
class _Slot:
    """A window that was begun. losses: how often its worker was lost. made: once it is."""

    window: Window
    losses: int = 0
    made: Packed | None = None


def make_windows(
    cluster: Cluster,
    args: argparse.Namespace,
    job: Job,
    settings: dict[str, object],
    windows: list[Window],
    tile: int,
    asked: float | None,
) -> Generator[Packed, None, None]:
    """Have the workers of a cluster make windows; gives them in order, so that the file is the same however many work.

    settings: all that the result depends on. The rest as `Windowed.run` has it.
    If a worker is lost with its process or its machine, its window runs on the next one that is free, and Ray starts
    the worker again where there is room. A few windows per worker wait for their turn at most.
    UserError for what a worker finds wrong, and for a window whose workers are lost again and again.
    """
    if not windows:
        return
    size = job.source.stat().st_size
    with cluster.actors(WindowWorker, args, job, size, settings) as actors:
        yield from _made_by(actors, job, windows, tile, asked)


def _made_by(
    actors: list[Any], job: Job, windows: list[Window], tile: int, asked: float | None
) -> Generator[Packed, None, None]:
    busy: dict[Any, tuple[Any, _Slot | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
    left, slots, again, free = deque(windows), deque[_Slot](), deque[_Slot](), deque[Any]()
    while left or slots:
        while free and (again or (left and len(slots) < AHEAD * len(actors) and _held(slots) < HELD_BYTES)):
            if not again:
                again.append(_Slot(left.popleft()))
                slots.append(again[-1])
            actor, slot = free.popleft(), again.popleft()
            busy[actor.make.remote(slot.window, tile, asked)] = actor, slot
        if not busy:
            raise UserError(f"ray: {job.source}: no worker is left")
        for reference in ray.wait(list(busy), num_returns=1)[0]:
            actor, slot = busy.pop(reference)
            try:
                made = ray.get(reference)
            except RayTaskError as error:
                raise _refusal(error, job) from None
            except RayError as error:
                if slot is not None:
                    slot.losses += 1
                    if slot.losses == KILLS:
                        raise UserError(
                            f"ray: {job.source}: given up, {KILLS} workers were lost in one window"
                        ) from None
                    again.append(slot)
                if slot is not None or not isinstance(error, ActorDiedError):  # who does not begin is gone for good
                    busy[actor.ready.remote()] = actor, None
                continue
            free.append(actor)
            if slot is not None:
                slot.made = made
        while slots and (made := slots[0].made) is not None:
            slots.popleft()
            yield made


def _held(slots: Iterable[_Slot]) -> int:
    """Bytes of the windows that wait for their turn."""
    return sum(len(tile) for slot in slots if slot.made is not None for tile in slot.made.tiles)


def _refusal(error: RayTaskError, job: Job) -> UserError:
    """What a worker found wrong, in one line."""
    cause = error.cause
    if isinstance(cause, UserError):
        return UserError(str(cause))
    return UserError(f"ray: {job.source}: {type(cause).__name__}: {cause}".splitlines()[0])
