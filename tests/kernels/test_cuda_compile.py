"""The cuda backend as compiled into the native core: registers, spills and the inner loop, for every architecture."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from ape_kernels.native import core, missing

ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
# bytes of a thread that spill, all outside the inner loops (below); they should go
SPILLED = {("80", "half"): 24, ("100", "half"): 24}
REGISTERS = 255  # one block of 256 threads a multiprocessor: 65536 / 256, and what an instruction can name


def cuobjdump(*options: str) -> str:
    """What the tool of that name, of the toolkit or of Triton, says of the native core; skips where one is missing."""
    if missing() or core().build_info()["cuda"] is None:
        pytest.skip(missing() or "the native core was built without CUDA (no nvcc)")
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump: neither in PATH nor with Triton")
        found = shutil.which(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump: neither in PATH nor with Triton")
    return subprocess.run([found, *options, core().__file__], check=True, capture_output=True, text=True).stdout


@cache
def usage() -> dict[tuple[str, str], dict[str, int]]:
    """Resources of the worker kernel by architecture and element."""
    found, arch = {}, ""
    for line in cuobjdump("--dump-resource-usage").splitlines():
        if match := re.search(r"arch = sm_(\d+)", line):
            arch = match[1]
        if match := re.search(r"Function (\S*worker_kernel\S*):", line):
            element = "half" if "Half" in match[1] else "float"
            found[arch, element] = {}
        elif "REG:" in line and found and not found[arch, element]:
            found[arch, element] = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_spills_and_registers(arch):
    if core().build_info()["cuda"] and arch not in core().build_info()["cuda_architectures"].split(";"):
        pytest.skip(f"the native core was built for {core().build_info()['cuda_architectures']}, not for {arch}")
    for element in ("half", "float"):
        resources = usage()[arch, element]
        assert resources["LOCAL"] == 0
        assert resources["STACK"] <= SPILLED.get((arch, element), 0)
        assert resources["REG"] <= REGISTERS


@pytest.mark.parametrize("arch", ["80", "90"])
def test_the_inner_loop_of_the_fused_pair(arch):
    """A tap of 64 channels: 96 tensor-core instructions, 12 ldmatrix and 16 loads of 16 bytes, none to local memory."""
    if core().build_info()["cuda"] and arch not in core().build_info()["cuda_architectures"].split(";"):
        pytest.skip(f"the native core was built for {core().build_info()['cuda_architectures']}, not for {arch}")
    lines = cuobjdump("-sass", "-arch", f"sm_{arch}").splitlines()
    begin = next(
        i for i, line in enumerate(lines) if "Function : " in line and "worker_kernel" in line and "Half" in line
    )
    code = [line for line in lines[begin:] if re.match(r"\s+/\*[0-9a-f]{4,}\*/", line)]
    runs, current = [], []
    for line in code:  # pieces without a branch
        current.append(line)
        if re.search(r"\b(BRA|BAR|EXIT)\b", line):
            runs.append("\n".join(current))
            current = []
    tap = max(runs, key=lambda run: run.count("HMMA"))
    assert tap.count("HMMA.16816.F32") == 96
    assert len(re.findall(r"LDSM\S*\.4", tap)) == 12
    assert tap.count("LDS.128") == 16
    assert not re.search(r"\b(LDL|STL|LDG)\b", tap)
