"""The cuda backend as compiled into the native core: registers, spills, shared memory and the inner loop, for every
architecture, as ptxas and cuobjdump report them."""

import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from cuda_host import HostLauncher, build

from ape_kernels.native import core, missing

ROOT = Path(__file__).parents[2]
KERNELS = {"worker": "worker.cu", "image": "image.cu", "image_pair": "image.cu"}  # `<name>_kernel`, and where it is
SOURCES = ROOT / "csrc" / "cuda"
REPORTS = ROOT / "build" / "native" / "csrc" / "cuda"  # setup.py keeps them

# The intended occupancy on every architecture: one thread block of 8 warps per multiprocessor.
THREADS = 256
REGISTERS = min(65536 // THREADS, 255)  # of a thread: its share of the register file, and what an instruction can name
KIB = 1024
SHARED = {  # bytes that a block may ask for: CUDA C++ Programming Guide, technical specifications per capability
    **dict.fromkeys(("86", "89", "120"), 99 * KIB),
    "80": 163 * KIB,
    **dict.fromkeys(("90", "90a", "100"), 227 * KIB),
}
BUILT = [arch for arch in SHARED if arch != "90a"]


def architectures() -> str:
    """What the native core was built for; skips where there is none."""
    if missing() or core().build_info()["cuda"] is None:
        pytest.skip(missing() or "the native core was built without CUDA: APE_BUILD_CUDA=1 pip install -e .")
    return core().build_info()["cuda_architectures"]


def needs(arch: str) -> None:
    if arch not in architectures().split(";"):
        pytest.skip(f"the native core was built for {architectures()}, not for {arch}")
    if core().build_info()["debug"]:
        pytest.skip("the native core was built without optimisation (DEBUG=1)")


def usage(report: str, kernel: str) -> dict[tuple[str, str], dict[str, int]]:
    """Resources of a kernel by architecture and element, from what `ptxas -v` printed."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for part in report.split("Compiling entry function ")[1:]:
        name, arch = re.match(r"'(\S+)' for 'sm_(\w+)'", part).groups()
        if f"{len(kernel) + 7}{kernel}_kernel" not in name:
            continue
        numbers = {
            "stack": r"(\d+) bytes stack frame",
            "stores": r"(\d+) bytes spill stores",
            "loads": r"(\d+) bytes spill loads",
            "registers": r"Used (\d+) registers",
        }
        resources = {key: int(re.search(pattern, part)[1]) for key, pattern in numbers.items()}
        static = re.search(r"(\d+) bytes smem", part)
        resources["static"] = int(static[1]) if static else 0
        found[arch, "float" if "Float" in name else "half"] = resources
    return found


def assert_within_budget(found: dict[tuple[str, str], dict[str, int]], kernel: str, arch: str) -> None:
    host = HostLauncher(build())
    shared_bytes = host.shared_bytes if kernel == "worker" else host.image_shared_bytes
    for element in ("half",) if kernel == "image_pair" else ("half", "float"):
        resources = found[arch, element]
        assert (resources["stack"], resources["stores"], resources["loads"]) == (0, 0, 0), f"{element} spills"
        assert resources["registers"] <= REGISTERS
        dynamic = shared_bytes(element == "half", int(arch.rstrip("a")))
        assert 0 < resources["static"] + dynamic <= SHARED[arch]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", BUILT)
def test_spills_registers_and_shared_memory(arch, kernel):
    needs(arch)
    report, source = REPORTS / f"{KERNELS[kernel]}.o.ptxas", SOURCES / KERNELS[kernel]
    if not report.exists():
        pytest.skip(f"no {report.relative_to(ROOT)}: the native core was built elsewhere")
    newest = max(path.stat().st_mtime for path in [source, *SOURCES.glob("*.h")])
    assert report.stat().st_mtime >= newest, "the native core is older than its source: pip install -e ."
    assert_within_budget(usage(report.read_text(), kernel), kernel, arch)


@cache
def report_for_90a(source: str) -> str:
    """What `ptxas -v` prints when a source is compiled for sm_90a; skips where nothing can compile it."""
    candidates = [f"{os.environ.get('CUDA_HOME')}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, candidates)), None)
    if nvcc is None:
        pytest.skip("no nvcc: neither in CUDA_HOME nor in PATH")
    options = ["-std=c++17", "-O3", "-Xptxas", "-v", "-arch=sm_90a", "-cubin", str(SOURCES / source)]
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([nvcc, *options, "-o", f"{folder}/made.cubin"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize("kernel", KERNELS)
def test_sm_90a_spills_registers_and_shared_memory(kernel):
    """It is not built: wgmma would need it, and runs on nothing that sm_90 does not. Compiled here all the same."""
    architectures()
    assert_within_budget(usage(report_for_90a(KERNELS[kernel]), kernel), kernel, "90a")


@cache
def cuobjdump(*options: str) -> str:
    """What the tool of that name, of the toolkit or of Triton, says of the native core; skips where one is missing."""
    architectures()
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump: neither in PATH nor with Triton")
        found = shutil.which(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump: neither in PATH nor with Triton")
    return subprocess.run([found, *options, core().__file__], check=True, capture_output=True, text=True).stdout


def test_ptx_for_devices_to_come():
    listed, newest = cuobjdump("--list-ptx"), architectures().split(";")[-1].rstrip("af")
    assert re.search(rf"sm_{newest}\.ptx", listed)


@cache
def straight_runs(arch: str, kernel: str) -> list[str]:
    """The code of a kernel for Half, in pieces without a branch or a barrier."""
    lines = cuobjdump("-sass", "-arch", f"sm_{arch}").splitlines()
    begin = next(
        i
        for i, line in enumerate(lines)
        if "Function : " in line and f"{len(kernel) + 7}{kernel}_kernel" in line and "Float" not in line
    )
    runs, current = [], []
    for line in lines[begin + 1 :]:
        if "Function : " in line:
            break
        if not re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            continue
        current.append(line)
        if re.search(r"\b(BRA|BAR|EXIT)\b", line):
            runs.append("\n".join(current))
            current = []
    return runs


# What a warp of the fused pair computes between two barriers, by channels and by KB of shared memory a block: how many
# tensor-core instructions, ldmatrix.x4 and loads of 16 bytes. A tap, or with 227 KB mostly a row of three.
STAGES = {
    227: {16: (18, 9, 3), 32: (72, 18, 12), 48: (162, 27, 27), 64: (288, 36, 48), 96: (54, 9, 9)},
    163: {16: (6, 3, 1), 32: (24, 6, 4), 48: (54, 9, 9), 64: (96, 12, 16), 96: (54, 9, 9)},
    99: {16: (6, 3, 1), 32: (24, 6, 4), 64: (48, 12, 8)},
}
# The same of a convolution by whole rows: a row of taps for 16 input channels, by kernel and by units of 16 output
# channels.
ROWS = {
    **{(3, units): (18 * units, 9, 3 * units) for units in (1, 2, 3, 4)},
    **{(5, units): (30 * units, 15, 5 * units) for units in (1, 2, 3)},
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", BUILT)
def test_the_inner_loops(arch, kernel):
    """A stage of the fused pair and a row of taps of a convolution by whole rows have nothing but what they need.

    No local memory, no loads from global memory.
    """
    needs(arch)
    found = {}
    for run in straight_runs(arch, kernel):
        counts = run.count("HMMA.16816.F32"), len(re.findall(r"LDSM\S*\.4", run)), run.count("LDS.128")
        found.setdefault(counts, []).append(run)
    stages, rows = STAGES[SHARED[arch] // KIB].values(), ROWS.values()
    for counts in {"worker": (*stages, *rows), "image": rows, "image_pair": stages}[kernel]:
        assert counts in found, f"no stage of {counts}, found {sorted(found)}"
        for run in found[counts]:
            assert not re.search(r"\b(LDL|STL|LDG)\b", run)


@pytest.mark.parametrize("kernel", ["image", "image_pair"])
@pytest.mark.parametrize("arch", BUILT)
def test_stores_of_windows_do_not_wait(arch, kernel):
    """Which pixels a window stores is read once for all channels, not before every store."""
    needs(arch)
    code = "\n".join(straight_runs(arch, kernel))
    assert 0 < 2 * code.count("LDS.U8") < code.count("STG")
