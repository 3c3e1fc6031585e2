"""The measuring steps of bench/gpu.py, which starts each of them in a process of its own and sets PYTHONPATH."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

import gpu_images as images
import gpu_peers as peers
import torch
from gpu_device import Gpu, Run, StandIn, ceilings, samples
from gpu_records import Records
from networks import make
from torch import Tensor, nn

from ape_kernels import APEForward, __version__
from ape_kernels.backends import get_backend

ROOT = Path(__file__).parents[1]
EDSR, WIDE, RCAN = "EDSR 16x64 x4", "EDSR 32x256 x4", "RCAN 2x20x64 x4"
FULL = "full depth"
COUNTS = (2000, 500, 100)
BATCHES = (50, 100, 250)  # patches per call where patches run batch by batch
CHECKED = 16  # patches that are compared with the reference
TOLERANCE = 2e-2  # root mean square error in float16, as a share of the reference's standard deviation


class Bench:
    """What the steps share: the device, the records, the networks, and how a row is checked, timed and written."""

    def __init__(self, out: Path, dry: bool) -> None:
        self.dry = dry
        self.device: Gpu | StandIn = StandIn() if dry else Gpu()
        self.records = Records(out)
        self.counts = (3, 2) if dry else COUNTS
        self.side = 8 if dry else 48
        self.dtype = torch.float32 if dry else torch.float16

    @cached_property
    def product_tflops(self) -> float:
        """TFLOP/s of a large matrix product, measured when it is first needed."""
        return ceilings(self.device)[0]

    def model(self, name: str) -> nn.Module:
        """The network on the device, with random weights. In the dry run it is a small one."""
        if self.dry:
            from ape_sr.models import EDSR

            torch.manual_seed(0)
            return EDSR(4, 8, 8, 2).eval().requires_grad_(False)
        return make(name)[0].to(self.device.kind)

    def patches(self, count: int) -> Tensor:
        """Random patches on the device."""
        torch.manual_seed(1)
        return torch.rand(count, 3, self.side, self.side, device=self.device.kind)

    def backend(self, name: str) -> str:
        """The name of the backend to run. In the dry run it is one that the CPU has."""
        stand_in = {"cuda": "cpu", "triton": "torch"}
        return stand_in.get(name, name) if self.dry else name

    def wrapped(self, model: nn.Module, name: str) -> APEForward:
        """`model` on a backend in float16; in float32 for the dry run."""
        return APEForward(model, 0.0, backend=self.backend(name), dtype=self.dtype)

    def row(self, row: str, network: str, patches: int, exits: str, tflop: float, prepare: Callable[[], Run]) -> None:
        """Time one row and record it. If it raises an error, the error is recorded and the next row can run."""
        where = dict(row=row, network=network, patches=patches, exits=exits)
        try:
            with torch.inference_mode():
                taken = samples(self.device, prepare())
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            self.records.add("refused", **where, why=why[:300])
            print(f"{row}, {network}, {patches}, {exits}: {why}", flush=True)
            if "illegal" in why or "misaligned" in why:  # after this nothing can run on the device in this process
                raise
            return
        self.records.add("row", **where, ms=taken, tflop=tflop, product_tflops=self.product_tflops)
        print(f"{row}, {network}, {patches}, {exits}: {sorted(taken)[len(taken) // 2]:.3f} ms", flush=True)


def schedule(fast: APEForward, count: int, share: float) -> tuple[Tensor, float]:
    """Exits with which the patches take `share` of the body's FLOPs, and all FLOPs per pixel that they take.

    The exits are int64 ``[count]``, spread around the depth that takes this share.
    """
    stages = len(fast.program.stages)
    body = [fast.program.body_flops_to_stage(i) / fast.program.body_flops_to_stage(stages - 1) for i in range(stages)]
    nearest = min(range(stages), key=lambda i: abs(body[i] - share))
    reach = min(nearest, stages - 1 - nearest)
    exits = [nearest - reach + i % (2 * reach + 1) for i in range(count)]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    flops = sum(fast.program.flops_to_stage(exit_) for exit_ in exits)
    return torch.tensor(exits)[order], flops


def checked(bench: Bench, run: Callable[[Tensor], Tensor], reference: Tensor, patches: Tensor) -> None:
    """Raise ValueError unless the first pictures equal the reference, within the rounding of float16."""
    got = run(patches[: len(reference)]).float()
    error = float((got - reference).square().mean().sqrt() / reference.std())
    if not error <= TOLERANCE:
        raise ValueError(f"another picture: the error is {error:.1e} of the reference's standard deviation")


def ours(bench: Bench, backend: str, cases: list[tuple[str, int, float | int]]) -> None:
    """Rows of one backend.

    cases: network, number of patches, and the share of the body's FLOPs (float) or the stage after which all patches
    leave (int).
    """
    known: dict[str, tuple[nn.Module, APEForward, Tensor]] = {}
    for network, count, wish in cases:
        if network not in known:
            model = bench.model(network)
            first = bench.patches(CHECKED)
            reference = APEForward(model, 0.0, backend="torch", dtype=torch.float32).forward_patches(first)[0]
            fast = bench.wrapped(model, backend)
            known[network] = model, fast, reference
        model, fast, reference = known[network]
        patches = bench.patches(count)
        if isinstance(wish, int):
            stage = min(wish, len(fast.program.stages) - 1)
            exit_at, flops = torch.full((count,), stage), count * fast.program.flops_to_stage(stage)
            exits = f"all leave after stage {wish}"
        else:
            exit_at, flops = schedule(fast, count, wish)
            exits = FULL if wish == 1.0 else f"{wish:.0%} of the body"
        exit_at = exit_at.to(patches.device)
        tflop = flops * bench.side**2 / 1e12

        def eager(fast=fast, patches=patches, exit_at=exit_at, reference=reference) -> Run:
            checked(bench, lambda part: fast.forward_patches(part)[0], reference, bench.patches(CHECKED))
            return lambda: fast.forward_patches(patches, exit_at)

        bench.row(backend, network, count, exits, tflop, eager)
        if count <= 100 and wish in (1.0, 0.5):
            run = lambda fast=fast, patches=patches, exit_at=exit_at: fast.forward_patches(patches, exit_at)  # noqa: E731
            bench.row(
                f"{backend} in a CUDA graph", network, count, exits, tflop, lambda run=run: bench.device.graph(run)
            )


def cases(bench: Bench) -> Iterator[tuple[str, int, float | int]]:
    """The cases that our backends run, the most important ones first."""
    for count in bench.counts:
        yield from ((EDSR, count, share) for share in (1.0, 0.5))
    yield from ((EDSR, count, share) for count in bench.counts[:1] for share in (0.75, 0.25, 0, 1, 3))
    yield from ((RCAN, bench.counts[1], share) for share in (1.0, 0.5))
    yield from ((WIDE, bench.counts[-1], share) for share in (1.0, 0.5))


def cuda_time(bench: Bench) -> None:
    ours(bench, "cuda", list(cases(bench)))


def triton_time(bench: Bench) -> None:
    ours(bench, "triton", list(cases(bench)))
    if bench.dry:
        return
    from ape_kernels.backends.triton import launch as launches

    fast = bench.wrapped(bench.model(EDSR), "triton")
    for count in (8, 33, 66, 132):
        patches = bench.patches(count)
        tflop = count * fast.program.flops_to_stage(len(fast.program.stages) - 1) * bench.side**2 / 1e12
        for row, below in (("triton, a worker per patch", 0.0), ("triton, spread", float("inf"))):
            launches.SPREAD_BELOW = below
            bench.row(row, EDSR, count, FULL, tflop, lambda patches=patches: lambda: fast.forward_patches(patches))


def torch_rows(bench: Bench, network: str, counts: tuple[int, ...], label: str, forward_of: Callable) -> None:
    """PyTorch's rows of one network: all patches at once, in a CUDA graph, and batch by batch."""
    model = bench.model(network)
    network_half = peers.half(model, bench.device)
    program = APEForward(model, 0.0, backend="torch").program
    forward = forward_of(network_half)
    fast = APEForward(model, 0.0, backend="torch", dtype=torch.float32)
    reference = fast.forward_patches(bench.patches(CHECKED))[0]
    for count in counts:
        patches = peers.prepared(bench.patches(count), network_half)
        tflop = count * program.flops_to_stage(len(program.stages) - 1) * bench.side**2 / 1e12

        def eager(patches=patches) -> Run:
            checked(bench, forward, reference, patches=peers.prepared(bench.patches(CHECKED), network_half))
            return lambda: forward(patches)

        bench.row(label, network, count, FULL, tflop, eager)
        for batch in sorted({*(b for b in BATCHES if b < count and count % b == 0), count}):
            run = lambda patches=patches, batch=batch: peers.in_batches(forward, patches, batch, bench.device)  # noqa: E731
            bench.row(f"{label}, CUDA graph, batches of {batch}", network, count, FULL, tflop, run)


def torch_time(bench: Bench) -> None:
    label = "torch fp16 channels_last"
    torch_rows(bench, EDSR, bench.counts, label, lambda network: network)
    torch_rows(bench, RCAN, bench.counts[1:2], label, lambda network: network)
    torch_rows(bench, WIDE, bench.counts[-1:], label, lambda network: network)
    model, count = bench.model(EDSR), bench.counts[-1]
    program = APEForward(model, 0.0, backend="torch").program
    tflop = count * program.flops_to_stage(len(program.stages) - 1) * bench.side**2 / 1e12
    run = lambda: peers.authors(model, bench.patches(count))  # noqa: E731
    bench.row("torch, the authors' loop, fp32", EDSR, count, FULL, tflop, run)
    ours(bench, "torch", [(EDSR, bench.counts[1], share) for share in (1.0, 0.5)])


def compile_time(bench: Bench) -> None:
    """Rows of torch.compile. They come last, because compiling takes up to minutes.

    The network is compiled for one size of batch; more patches run as several batches.
    """
    modes = ("default", "max-autotune-no-cudagraphs") if not bench.dry else ("default",)
    for mode in modes:
        model = bench.model(EDSR)
        network = peers.half(model, bench.device)
        forward = network if bench.dry else torch.compile(network, mode=mode, dynamic=False)
        program = APEForward(model, 0.0, backend="torch").program
        batch = bench.counts[-1]
        for count in reversed(bench.counts):
            patches = peers.prepared(bench.patches(count - count % batch), network)
            tflop = len(patches) * program.flops_to_stage(len(program.stages) - 1) * bench.side**2 / 1e12
            run = partial(peers.in_batches, forward, patches, batch, bench.device)
            label = f"torch.compile {mode} fp16, CUDA graph, batches of {batch}"
            bench.row(label, EDSR, count, FULL, tflop, run)
    images.compile_time(bench, EDSR)


def auto(bench: Bench) -> None:
    """The first calls of a user's process with `backend="auto"`: what was chosen, why, and how long it took."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("ape_kernels")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    model, image = bench.model(EDSR), torch.rand(1, 3, 3 * bench.side, 4 * bench.side, device=bench.device.kind)
    calls: dict[str, Callable[[APEForward], object]] = {
        "image": lambda fast: fast(image),
        "patches": lambda fast: fast.forward_patches(bench.patches(CHECKED)),
    }
    for what, call in calls.items():
        begin = time.perf_counter()
        with torch.inference_mode():
            call(APEForward(model, dtype=bench.dtype))
        bench.device.wait()
        bench.records.add("auto", what=what, seconds=round(time.perf_counter() - begin, 2), told=told[:])
        print(what, *told, sep="\n")
        told.clear()


def torch_images(bench: Bench) -> None:
    images.torch_time(bench, EDSR)
    images.ours(bench, EDSR, "torch")


def profile(bench: Bench) -> None:
    """Two launches of the cuda kernel. The profiler records the second one."""
    fast, patches = bench.wrapped(bench.model(EDSR), "cuda"), bench.patches(2 if bench.dry else 132)
    for _ in range(2):
        fast.forward_patches(patches)
    bench.device.wait()


def profile_image(bench: Bench) -> None:
    """Three runs of a picture by the cuda kernels. The profiler records a fused pair of the second one."""
    images.profile(bench, EDSR)
    bench.device.wait()


def environment(bench: Bench) -> None:
    """Device, driver, versions, commit, and the two ceilings."""
    product, copied = ceilings(bench.device)
    run = lambda *command: subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()  # noqa: E731
    found = {"python": platform.python_version(), "torch": torch.__version__, "ape_kernels": __version__}
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    if not bench.dry:
        found["device"] = torch.cuda.get_device_name()
        found["driver"] = run(
            "nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"
        )
        found["nvcc"] = run("nvcc", "--version").splitlines()[-1] if run("nvcc", "--version") else "none"
        found["cuda backend"] = get_backend("cuda").unavailable() or "available"
    found["commit"] = run("git", "describe", "--always", "--dirty") or "not a git checkout"
    found["sources"] = source_hash()
    bench.records.add("environment", **found, product_tflops=round(product, 1), copy_tbps=round(copied, 2))


def source_hash() -> str:
    """A hash of csrc and ape_kernels. It identifies the measured code where a copied tree has no commit."""
    digest = hashlib.sha256()
    for folder in ("csrc", "ape_kernels"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".h", ".cu", ".cpp"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


STEPS = {
    "environment": environment,
    "cuda-time": cuda_time,
    "triton-time": triton_time,
    "torch-time": torch_time,
    "compile-time": compile_time,
    **{f"{name}-images": partial(images.ours, network=EDSR, name=name) for name in ("cuda", "triton")},
    "torch-images": torch_images,
    "auto": auto,
    "profile": profile,
    "profile-image": profile_image,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    STEPS[options.step](Bench(options.out, options.dry_run))


if __name__ == "__main__":
    main()
