"""Builds ape_kernels._C with ninja: always C++, and CUDA if nvcc and a GPU are there. pyproject.toml has all the rest.

APE_BUILD_CUDA  0: no CUDA. 1: CUDA even without a GPU; without nvcc the build then fails
APE_CUDA_ARCH   compute capabilities such as "90;120", instead of ARCHITECTURES
CXX, MAX_JOBS   the compiler, and how many of it run at once
DEBUG=1         no optimisation, debug symbols for CPU and GPU
APE_SANITIZE    sanitizers to compile with, such as "address,undefined" (make asan)
"""

import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
# Only the files with an instruction set's kernels are compiled for it. Which of them run is chosen at run time.
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma"
ISA_FLAGS = {
    "_avx2": "-mavx2 -mfma",
    "_avx512": AVX512,
    "_avx512bf16": f"{AVX512} -mavx512bf16",
    "_amx": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
}
DEBUG = os.environ.get("DEBUG") == "1"
SANITIZE = os.environ.get("APE_SANITIZE", "")
# The folder is kept between installs, so that only changed files are compiled again.
BUILD = Path("build/sanitized" if SANITIZE else "build/native")


def find_compiler() -> str:
    """The command of the C++ compiler. Exits with a message when there is none."""
    found = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    return found or sys.exit("no C++ compiler: looked for g++, clang++ and c++ in PATH; set CXX")


def find_nvcc() -> str | None:
    """The path of nvcc, or None to build without CUDA."""
    wish = os.environ.get("APE_BUILD_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"APE_BUILD_CUDA: expected 0, 1 or nothing, got {wish!r}")
    if wish == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [f"{home}/bin/nvcc" for home in homes if home] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = next(filter(None, map(shutil.which, candidates)), None)
    if nvcc is None and wish == "1":
        sys.exit("APE_BUILD_CUDA=1: no nvcc in CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda")
    if nvcc and not wish and not has_gpu():
        print(f"{nvcc} is there, but no GPU: built without CUDA. APE_BUILD_CUDA=1 builds it, which takes minutes.")
        return None
    return nvcc


def has_gpu() -> bool:
    """Whether the CUDA driver finds a device on this machine."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return False
    return found and count.value > 0


def find_architectures(nvcc: str) -> list[str]:
    """The compute capabilities to compile for, ascending, such as ["80", "120"]."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    known = re.findall(r"compute_(\d+)", listed)
    wish = os.environ.get("APE_CUDA_ARCH")
    if not wish:
        return [arch for arch in ARCHITECTURES if arch in known]
    architectures = wish.split(";")
    for arch in architectures:
        if not re.fullmatch(r"\d+[af]?", arch) or arch.rstrip("af") not in known:
            sys.exit(f"APE_CUDA_ARCH: expected some of {';'.join(known)}, got {wish!r}")
    return sorted(set(architectures), key=lambda arch: (int(arch.rstrip("af")), arch))


def ninja_file(compiler: str, nvcc: str | None, output: str) -> str:
    """The text of a build.ninja that makes `output`."""
    import pybind11  # pyright: ignore[reportMissingImports] - only the environment of the build has it

    includes = [f"-isystem {shlex.quote(path)}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    optimise = "-O0 -g" if DEBUG else "-O3"
    if SANITIZE:
        optimise = f"-O1 -g -fno-omit-frame-pointer -fsanitize={SANITIZE} -fno-sanitize-recover=all"
        compiler = f"{compiler} -fsanitize={SANITIZE}"
    host = f"{optimise} -fPIC -fvisibility=hidden -ffp-contract=fast -pthread -Wall -Wextra"
    defines = "-DAPE_DEBUG=1" if DEBUG else ""
    undefined = "-undefined dynamic_lookup " if sys.platform == "darwin" else ""  # finds Python's symbols on loading
    link = f"{compiler} -shared {undefined}-pthread $in -o $out"
    rules = {"cxx": f"{compiler} -std=c++17 {host} $flags -MMD -MF $out.d -c $in -o $out"}
    if nvcc:
        architectures = find_architectures(nvcc)
        codes = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in architectures]
        codes.append(f"-gencode arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
        # nvcc may be a wrapper: it knows where its headers and static runtime are, and its folder does not tell.
        driver = f"{shlex.quote(nvcc)} -ccbin {shlex.split(compiler)[-1]}"
        forwarded = " ".join(f"-Xcompiler={flag}" for flag in host.split())
        device = "-G -g" if DEBUG else "-lineinfo"
        threads = "" if os.environ.get("MAX_JOBS") else "--threads 0"  # the architectures of a file at once
        common = f"{driver} -std=c++17 {forwarded} $flags -MD -MF $out.d -c $in -o $out"
        quiet = "-Xcompiler=-Wno-unused-function"  # clang++ warns of hundreds of them in the toolkit's own headers
        # The report of ptxas on registers, shared memory and spills is kept beside the object file. A test reads it.
        report = "-Xptxas -v 2> $out.ptxas || (cat $out.ptxas; exit 1)"
        rules |= {"nvcc": f"{common} {threads} {device} {quiet} {' '.join(codes)} {report}", "nvcc_host": common}
        listed = shlex.quote(f'"{";".join(architectures)}"')
        defines += f" -DAPE_WITH_CUDA=1 -DAPE_CUDA_ARCHITECTURES={listed}"
        link = f"{driver} -shared -cudart static -Xcompiler=-pthread $in -o $out -ldl -lrt -lpthread"

    lines = [f"builddir = {BUILD}", "rule link", f"  command = {link}", "  description = $out"]
    for name, command in rules.items():
        lines += [f"rule {name}", f"  command = {command}", "  depfile = $out.d", "  deps = gcc", "  description = $in"]
    objects = []

    def add(source: Path, rule: str, flags: str = "") -> None:
        objects.append(f"{BUILD}/{source}.o")
        lines.extend([f"build {objects[-1]}: {rule} {source}", f"  flags = {flags}"])

    add(Path("csrc/bindings.cpp"), "nvcc_host" if nvcc else "cxx", f"{' '.join(includes)} {defines}")
    for source in sorted(Path("csrc/cpu").glob("*.cpp")):
        isa = next((name for name in ISA_FLAGS if source.stem.endswith(name)), None)
        if isa is None or platform.machine() in ("x86_64", "AMD64"):
            add(source, "cxx", ISA_FLAGS.get(isa or "", ""))
    for source in sorted(Path("csrc/cuda").glob("*.cu")) if nvcc else []:
        add(source, "nvcc")
    return "\n".join([*lines, f"build {output}: link {' '.join(objects)}", ""])


LOAD = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
module_from_spec(spec_from_loader("ape_kernels._C", ExtensionFileLoader("ape_kernels._C", sys.argv[1])))
"""


def check_import(module: Path) -> None:
    """Exit with the reason unless Python loads `module`. Otherwise users would only notice a slow backend later."""
    if SANITIZE:
        return  # it loads only if the sanitizer's runtime was loaded before Python
    done = subprocess.run([sys.executable, "-c", LOAD, str(module)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        sys.exit(f"ape_kernels._C does not load: {reason}; compiled with {find_compiler()!r}, set CXX to use another")


class NinjaBuild(build_ext):
    """build_ext for the one extension of this project."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link in BUILD, then copy the module to the place that setuptools expects."""
        output = BUILD / Path(self.get_ext_filename("_C"))
        BUILD.mkdir(parents=True, exist_ok=True)
        (BUILD / "build.ninja").write_text(ninja_file(find_compiler(), find_nvcc(), str(output)))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([sys.executable, "-m", "ninja", "-f", BUILD / "build.ninja", *jobs]).returncode:
            sys.exit("ape_kernels._C did not compile: see the compiler's message above")
        check_import(output)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(output), str(target))


setup(ext_modules=[Extension("ape_kernels._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
