"""A Ray cluster: one that there is, or a local one that lives as long as it is needed; and the workers on it."""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import socket
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import ape_kernels
from ape_sr.errors import UserError
from ape_sr.extras import how_to_install
from ape_sr.scratch import scratch_folder

NEEDED = ("ray", "pyarrow", "fsspec")  # of the extra
THREADS = 1  # of a worker without a GPU: see docs/scale.md
OBJECTS = 100 << 20  # bytes of Ray's object store in a local cluster; reports of pictures are all that goes through it
ADDRESS = re.compile(r"auto|(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d+")
CARRIED = "APE_"  # variables that start with it are the workers' too
REACH_SECONDS = 10.0


@dataclass(frozen=True)
class Share:
    """What one worker gets.

    node: Ray's id of the machine that it starts on. gpu: whether it has a GPU. threads: of PyTorch and the kernels.
    """

    node: str
    gpu: bool
    threads: int


@dataclass(frozen=True)
class Setting:
    """What a worker is told of its surroundings, to be `applied` before anything else.

    folder: the working folder of the process that started it. variables: environment. version: of the package there.
    """

    threads: int
    folder: str
    variables: dict[str, str]
    version: str

    def apply(self) -> None:
        """In the worker: relative paths and APE_ variables mean what they mean where the command was given."""
        os.environ.update(self.variables)
        with suppress(OSError):  # another machine need not have it: then a relative path is reported as missing
            os.chdir(self.folder)

    def check_version(self) -> None:
        """In the worker: UserError for another version of the package than where the command was given."""
        got = ape_kernels.__version__
        if got != self.version:
            raise UserError(f"ray: expected version {self.version} of ape-kernels on {platform.node()}, got {got}")

    def apply_threads(self) -> None:
        """In the worker, by each thread that computes."""
        import torch

        torch.set_num_threads(self.threads)


class Cluster:
    """A connected cluster. Made by `joined_cluster`.

    local: whether it is this process's own. gpus: whether workers are to have a GPU, where any machine has one.
    """

    def __init__(self, local: bool, gpus: bool) -> None:
        import ray

        self.local = local
        alive = [node for node in ray.nodes() if node["Alive"]]
        with_gpu = [node for node in alive if node["Resources"].get("GPU", 0) >= 1] if gpus else []
        self.machines = len(with_gpu or alive)
        self.shares = [share for node in with_gpu or alive for share in _shares(node, bool(with_gpu))]
        if not self.shares:
            raise UserError(f"ray: expected machines with CPUs, got {len(alive)} with none")

    def describe(self) -> str:
        """The workers in words."""
        count, share = len(self.shares), self.shares[0]
        each = "a GPU each" if share.gpu else f"{share.threads} thread{'s' * (share.threads > 1)} each"
        where = "this machine" if self.local else f"{self.machines} machine{'s' * (self.machines > 1)}"
        return f"{count} worker{'s' * (count > 1)} on {where}, {each}"

    @contextmanager
    def actors(self, kind: type, *arguments: object) -> Generator[list[Any], None, None]:
        """One actor for every share, as ``kind(setting, *arguments)``; they end with the context.

        They are there when a first call returns. Ray starts an actor whose process or machine has gone again, on any
        machine that has what it needs. Two of its methods run beside each other, so that it can be asked as it works.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        variables = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        remote = ray.remote(kind).options
        actors: list[Any] = [
            remote(
                num_cpus=1 if share.gpu else share.threads,
                num_gpus=int(share.gpu),
                max_restarts=-1,
                max_concurrency=2,
                scheduling_strategy=NodeAffinitySchedulingStrategy(share.node, soft=True),
            ).remote(Setting(share.threads, os.getcwd(), variables, ape_kernels.__version__), *arguments)
            for share in self.shares
        ]
        try:
            yield actors
        finally:
            for actor in actors:
                ray.kill(actor)


def _shares(node: dict[str, Any], gpu: bool) -> list[Share]:
    cpus, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
    if gpu:
        return [Share(node["NodeID"], True, max(1, cpus // gpus))] * min(gpus, cpus)
    return [Share(node["NodeID"], False, THREADS)] * (cpus // THREADS)


@contextmanager
def joined_cluster(address: str | None, gpus: bool = True) -> Generator[Cluster, None, None]:
    """Connect to a cluster, and leave it in the end.

    address: "auto" or HOST:PORT. None: the one that this process is connected to already, which it stays, else a local
    one of this machine's cores and GPUs, which ends with it. gpus: whether workers are to use GPUs.
    Ray's own lines are not shown unless APE_LOG is set.

    UserError if Ray is not installed, or if the cluster cannot be reached.
    """
    check_ray(address)
    loud = bool(os.environ.get("APE_LOG"))
    ray = _import_ray(loud)
    if ray.is_initialized():
        yield Cluster(False, gpus)
        return
    if address is not None:
        with _connected(loud, address=address):
            yield Cluster(False, gpus)
        return
    cores = len(os.sched_getaffinity(0))
    with (
        scratch_folder("ape-ray-") as folder,
        _connected(
            loud,
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECTS,
            num_cpus=cores,
            _temp_dir=str(folder),
        ),
    ):
        yield Cluster(True, gpus)


def _import_ray(loud: bool) -> Any:
    """The module, which reads these variables once."""
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if not loud:
        settings["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # of lines on the cluster that are not to be printed here
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def check_ray(address: str | None) -> None:
    """UserError if Ray is not installed, or if nothing answers at the address."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"ray: needs {', '.join(missing)}; run: {how_to_install(*missing)}")
    if address is not None and not ADDRESS.fullmatch(address):
        raise UserError(f"ray: expected no address, auto or HOST:PORT, got {address}; put --ray behind the inputs")
    if address not in (None, "auto"):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except (OSError, OverflowError) as error:  # Ray would try for minutes
            raise UserError(f"ray: {address} cannot be reached: {error}") from None


@contextmanager
def _connected(loud: bool, **options: Any) -> Generator[None, None, None]:
    """`ray.init` and `ray.shutdown`.

    The first runs in a thread, which then waits: in the main thread it would put a handler of its own in the place of
    this process's, and an interruption amid it would leave half a cluster. Ray's processes end with the thread.
    """
    import ray

    level = logging.INFO if loud else logging.CRITICAL
    if not loud:
        logging.getLogger("ray").setLevel(level)
    with ThreadPoolExecutor(1, "ray") as thread:
        start = thread.submit(ray.init, configure_logging=loud, log_to_driver=loud, logging_level=level, **options)
        try:
            try:
                start.result()
            except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
                where = "a local cluster" if options["address"] == "local" else options["address"]
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"ray: {where} cannot be reached: {reason}") from None
            _handle_signals()
            yield
        finally:
            wait([start])
            ray.shutdown()


def _handle_signals() -> None:
    """Python's handlers again, in the place of those that Ray's native part has put there."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not None:
                signal.signal(number, handler)
