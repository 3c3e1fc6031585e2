"""Compiles the triton kernels for GPUs that need not be there, and prints what each needs, one JSON line per kernel.

python compile_triton.py 90 ...     test_triton_compile.py runs it, without the interpreter

The launches are those of the backend: a recorder takes the place of each kernel and keeps its arguments.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from families import randomise
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ape_kernels import to_program
from ape_kernels.backends import triton as backend
from ape_kernels.backends.protocol import Depths, Exits, PatchResults, Picture
from ape_kernels.backends.triton import config as configurations
from ape_kernels.backends.triton import image as image_launches
from ape_kernels.backends.triton import launch as launches
from ape_kernels.sharing import sharing_of
from ape_sr.models import EDSR, RCAN, VDSR

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
NETWORKS = {
    "edsr-16": lambda: EDSR(4, 1, 16, 1),
    "edsr-32": lambda: EDSR(4, 1, 32, 1),
    "edsr-64": lambda: EDSR(4, 1, 64, 1),
    "edsr-256": lambda: EDSR(4, 1, 256, 1),
    "rcan-64": lambda: RCAN(4, 1, 1, 64),
    "vdsr-64": lambda: VDSR(2, 4, 64, 1),
}
PATCHES, STAGE, ROW = "run_patches_kernel", "run_stage_kernel", "row_kernel"
IMAGE = ("main_kernel", "any_kernel", "upsample_kernel")
IMAGE += ("margin_kernel", "load_kernel", "count_kernel", "place_kernel", "carry_kernel", "interpolate_kernel")
KERNELS = {name: getattr(launches, name) for name in (PATCHES, STAGE, ROW, "begin_kernel", "exit_kernel")}
KERNELS |= {name: getattr(image_launches, name) for name in IMAGE}
CASES = [
    ("edsr-64", torch.float16, PATCHES),
    ("edsr-64", torch.float16, STAGE),
    ("edsr-64", torch.float16, ROW),
    ("edsr-64", torch.bfloat16, PATCHES),
    ("edsr-64", torch.float32, PATCHES),
    ("edsr-256", torch.float16, PATCHES),
    ("edsr-32", torch.float16, PATCHES),
    ("edsr-16", torch.float16, PATCHES),
    ("rcan-64", torch.float16, PATCHES),
    ("vdsr-64", torch.float16, PATCHES),
    *(("edsr-64", torch.float16, kernel) for kernel in IMAGE if kernel != "upsample_kernel"),
    ("vdsr-64", torch.float16, "upsample_kernel"),
    ("edsr-64", torch.bfloat16, "main_kernel"),
    ("edsr-64", torch.float32, "main_kernel"),
    ("edsr-256", torch.float16, "main_kernel"),
]


class Recorder:
    """Takes the place of a kernel; keeps the arguments of its last launch."""

    def __init__(self, kernel: triton.JITFunction) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.arguments, self.constants = arguments, constants

        return launch


def record(network: str, dtype: torch.dtype, kernel: str, capability: int) -> Recorder:
    """Launch as the backend would on a device of this capability."""
    recorders = {name: Recorder(function) for name, function in KERNELS.items()}
    vars(launches).update({name: recorders[name] for name in recorders if name not in IMAGE})
    vars(image_launches).update({name: recorders[name] for name in IMAGE})
    launches.choose = lambda channels, dtype, *_: configurations.shipped(channels, dtype, divmod(capability, 10))
    launches._capability = lambda _: divmod(capability, 10)
    launches.Call.workers = launches.Call.workers_by_device = lambda *_: 132
    launches.SPREAD_BELOW = 1.0 if kernel == ROW else 0.0
    program = to_program(randomise(NETWORKS[network]()))
    packed = backend.pack(program, torch.device("cpu"), dtype)
    if kernel in IMAGE:
        image = torch.empty(2, program.in_channels, 96, 144)
        out = torch.empty(2, program.out_channels, 96 * program.upscale, 144 * program.upscale)
        picture = Picture(out, image, program.upscale)
        depths = Depths(torch.zeros(2, 2, 3, dtype=torch.int64), 48, 4)
        backend.run_image(packed, sharing_of(packed.table), image, depths, picture)
    elif kernel == STAGE:
        channels = program.buffers[program.stages[0].src].channels
        active = torch.arange(2)
        backend.run_stage(packed, 0, torch.empty(2, channels, 48, 48), active, Exits(0.5))
    else:
        patches = torch.empty(2, program.in_channels, 48, 48)
        out = PatchResults.empty(patches, program.upscale, program.out_channels)
        backend.run_patches(packed, patches, Exits(0.5), out)
    return recorders[kernel]


def source(launch: Recorder) -> ASTSource:
    """The kernel specialised as the launch would: for aligned tensors, and integers where they are divisible by 16."""
    signature, attributes, constexprs = {}, {}, {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    for i, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constexprs[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constexprs, attributes)


def figures(compiled: triton.compiler.CompiledKernel, arch: str) -> dict[str, object]:
    """Registers, spilled bytes, shared memory and the matrix instructions, by ptxas."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        tools = triton.knobs.nvidia
        tool = (tools.ptxas_blackwell if compiled.metadata.target.arch >= 100 else tools.ptxas).path
        command = [tool, "-v", f"--gpu-name={arch}", str(ptx), "-o", str(Path(folder) / "kernel.cubin")]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        "shared_bytes": compiled.metadata.shared,
        "matrix": sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", compiled.asm["ptx"]))),
        "non_coherent_loads": len(re.findall(r"ld\.global[\w.:]*\.nc", compiled.asm["ptx"])),
        "asynchronous_copies": len(re.findall(r"cp\.async\.c[ag]", compiled.asm["ptx"])),
    }


def compile_case(network: str, dtype: torch.dtype, kernel: str, capability: int) -> dict[str, object]:
    launch = record(network, dtype, kernel, capability)
    options = {name: launch.constants[name] for name in ("num_warps", "maxnreg") if name in launch.constants}
    compiled = triton.compile(source(launch), GPUTarget("cuda", capability, 32), options)
    arch = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    return {"case": f"{network} {TYPES[dtype]} {kernel}", **figures(compiled, arch)}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for case in CASES:
        print(json.dumps(compile_case(*case, int(sys.argv[1]))), flush=True)
