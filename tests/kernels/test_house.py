"""Which rooms of the code know of which others."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "ape_kernels"


def imported(folder):
    """Pairs: a file below `folder`, and a module that it imports. Under TYPE_CHECKING too."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, node.module
                yield from ((path, f"{node.module}.{alias.name}") for alias in node.names)


def test_operations_are_called_where_images_run_and_are_planned_alone():
    callers = {path.parent for path, module in imported(KERNELS) if module == "ape_kernels.ops"}
    assert callers == {KERNELS / "run", KERNELS / "plan"}


@pytest.mark.parametrize(
    ("room", "unknown"),
    [
        (KERNELS, "ape_sr"),
        (KERNELS / "adapters", "ape_kernels.run"),
        (KERNELS / "adapters", "ape_kernels.backends"),
        (KERNELS / "backends", "ape_kernels.adapters"),
        (KERNELS / "backends", "ape_kernels.run"),
        (ROOT / "python" / "ape_sr", "ape_kernels.ops"),
        (ROOT / "python" / "ape_sr", "ape_kernels.native"),
    ],
)
def test_a_room_does_not_know(room, unknown):
    found = [f"{path}: {module}" for path, module in imported(room) if f"{module}.".startswith(f"{unknown}.")]
    assert found == []


MAKERS = "arange empty eye full linspace ones rand randint randn scalar_tensor tensor tril_indices triu_indices zeros"


def test_tensors_are_made_where_the_code_says_and_not_on_the_callers_default_device():
    """`torch.set_default_device`. verify/ makes tensors in processes of its own alone."""
    found = [
        f"{path}:{node.lineno}"
        for path in sorted(KERNELS.rglob("*.py"))
        if path.parent.name != "verify"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and re.fullmatch(rf"torch\.({MAKERS.replace(' ', '|')})", ast.unparse(node.func))
        if not {"device", None} & {keyword.arg for keyword in node.keywords}
    ]
    assert found == []


def test_the_core_knows_no_torch():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert sources
    assert [str(path) for path in sources if re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text())] == []
