"""The cost of calls in instructions and operations, which do not vary as times do."""

import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from support import spread_network, test_patches
from torch.profiler import profile

from ape_kernels import APEForward
from ape_kernels.backends import get_backend
from ape_kernels.collapse import CollapsedTail
from ape_kernels.native import core
from ape_kernels.program import Buffer, Conv, PatchProgram, Reconstruct, Stage

SIDE, FEATS = 24, 64

# Without torch, which takes minutes to import under valgrind.
RUN = """
import ctypes, importlib.machinery, importlib.util, pathlib, sys
folder, module = pathlib.Path(sys.argv[1]), sys.argv[2]
loader = importlib.machinery.ExtensionFileLoader("ape_kernels._C", module)
core = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
loader.exec_module(core)
size = {"table": 64, "weights": 4}
memory = {name: ctypes.create_string_buffer((folder / name).read_bytes()) for name in size}
address = {name: ctypes.addressof(buffer) for name, buffer in memory.items()}
count = {name: (len(buffer) - 1) // size[name] for name, buffer in memory.items()}
patch, out = ctypes.create_string_buffer(3 * 24 * 24 * 4), ctypes.create_string_buffer(3 * 24 * 24 * 4)
number = ctypes.create_string_buffer(8)
core.cpu_run_patches(
    table=address["table"], table_rows=count["table"], weights=address["weights"], weight_count=count["weights"],
    patches=ctypes.addressof(patch), exit_at=0, sr=ctypes.addressof(out), exit_index=ctypes.addressof(number),
    capacity=ctypes.addressof(number), count=1, height=24, width=24, boundary=0.5, threads=1,
)
"""


def instructions(folder, convs: int) -> int:
    """The instructions that are executed to run one patch through `convs` convolutions, with AVX2."""
    steps = [Conv(1 + i % 2, 2 - i % 2, torch.full((FEATS, FEATS, 3, 3), 0.01)) for i in range(convs)]
    program = PatchProgram(
        (Buffer(3), Buffer(FEATS), Buffer(FEATS)),
        (Conv(0, 1, torch.ones(FEATS, 3, 3, 3)),),
        (Stage(1, 1, tuple(steps)),),
        (Reconstruct(1, CollapsedTail(torch.ones(1, 1, 3, FEATS, 1, 1), torch.ones(1, 1, 3)), 1),),
    )
    packed = get_backend("cpu").pack(program, torch.device("cpu"), torch.float32)
    (folder / "table").write_bytes(packed.table.numpy().tobytes())
    (folder / "weights").write_bytes(packed.weights.numpy().tobytes())
    out = folder / "callgrind"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-S", "-E", "-c", RUN]
    environment = {**os.environ, "APE_CPU_ISA": "avx2"}
    done = subprocess.run([*command, str(folder), core().__file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.M).group(1))


def test_instructions_of_a_winograd_convolution(tmp_path):
    """3.24 instructions per vector multiplication, 1.8 of them in the products.

    It would be 3.45 if each input were transformed twice.
    """
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    if "avx2" not in core().cpu_isas():
        pytest.skip("this CPU has no AVX2")
    each = (instructions(tmp_path, 10) - instructions(tmp_path, 2)) / 8
    multiplications = 36 * math.ceil(SIDE / 4) ** 2 * FEATS * FEATS / 8
    assert each < 3.4 * multiplications, f"{each / multiplications:.2f} instructions a vector multiplication"


# Those that neither compute nor copy.
FREE_OPS = {"empty", "new_empty", "detach", "detach_", "lift_fresh", "to", "alias", "view", "slice", "as_strided"}
FREE_OPS |= {"resolve_conj", "resolve_neg"}


@pytest.mark.parametrize("call", ["image", "patches"])
def test_no_pytorch_arithmetic_around_the_kernels(call):
    """PyTorch's threads spin for milliseconds after an operation they shared, on the cores the patches need."""
    fast = APEForward(spread_network(), 0.5, backend="cpu", patch_size=12)
    run = fast if call == "image" else fast.forward_patches
    lr = test_patches(3, 20, 31)
    with torch.inference_mode():
        run(lr)
        with profile() as recorded:
            run(lr)
    ops = {event.name.removeprefix("aten::") for event in recorded.events() if event.name.startswith("aten::")}
    assert ops and ops <= FREE_OPS, f"also ran {sorted(ops - FREE_OPS)}"
