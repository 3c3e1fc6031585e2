"""The native core: every instruction set, malformed tables, what it is linked with."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import mixed_program
from support import assert_pictures_close, spread_network, test_patches
from table_faults import FAULTS, malformed

import ape_kernels
from ape_kernels import APEForward, native
from ape_kernels.backends import cpu
from ape_kernels.environment import describe_environment
from ape_kernels.native import core
from ape_kernels.table import Column, Opcode


@pytest.mark.parametrize("feats", [5, 16, 24, 32, 48, 80], ids=lambda c: f"{c}ch")
def test_every_instruction_set_equals_torch(isa, feats):
    assert core().cpu_isa() == isa
    model = spread_network(2, 2, feats, 1)
    exit_at = torch.tensor([0, 1, 1])
    for height, width in ((12, 12), (3, 29), (1, 1)):
        patches = test_patches(3, height, width)
        got, _, capacity = APEForward(model, backend="cpu").forward_patches(patches, exit_at)
        expected, _, expected_capacity = APEForward(model, backend="torch").forward_patches(patches, exit_at)
        assert_pictures_close(got, expected, 2e-5)
        torch.testing.assert_close(capacity, expected_capacity, atol=1e-5, rtol=0)


def test_the_portable_kernels_are_always_there():
    assert core().cpu_isas()[-1] == "portable"


def test_an_instruction_set_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.setenv("APE_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match=r"APE_CPU_ISA: expected one of .*portable on this CPU, got sse9"):
        APEForward(spread_network(), backend="cpu").forward_patches(test_patches(1))


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_tables_are_refused(fault):
    packed = cpu.pack(mixed_program(), torch.device("cpu"), torch.float32)
    table, message = malformed(packed.table, *FAULTS[fault])
    with pytest.raises(ValueError, match=message):
        torch.ops.ape_kernels.run_patches(test_patches(1), [table, packed.weights], 0.5, None, 2, 3, "cpu")


def test_stages_that_hand_on_in_two_buffers_are_refused():
    packed = APEForward(spread_network(), backend="cpu").packed
    table, stages = packed.table.clone(), (packed.table[:, Column.OPCODE] == Opcode.STAGE).nonzero().flatten()
    table[stages[1], Column.SRC] = table[stages[0], Column.SRC]
    with pytest.raises(ValueError, match=f"table: row {int(stages[1])}: stages hand on in one buffer"):
        torch.ops.ape_kernels.run_patches(test_patches(1), [table, packed.weights], 0.5, None, 4, 3, "cpu")


def test_a_table_without_its_tail_is_refused():
    packed = APEForward(spread_network(), backend="cpu").packed
    with pytest.raises(ValueError, match="the reconstruction ends the tail"):
        torch.ops.ape_kernels.run_patches(
            test_patches(1), [packed.table[:-1].clone(), packed.weights], 0.5, None, 4, 3, "cpu"
        )


def test_rows_outside_the_features_are_refused():
    packed = APEForward(spread_network(), backend="cpu").packed
    with pytest.raises(ValueError, match="active: expected 0 to 1, got 0 to 2"):
        torch.ops.ape_kernels.run_stage(
            torch.rand(2, 16, 4, 4), torch.tensor([0, 2]), packed.tensors, 0, 0.5, None, "cpu"
        )


def test_a_core_older_than_the_python_code_says_so():
    with pytest.raises(AttributeError, match=r"the native core has no cpu_new: .* run: .* -m pip install -e .+"):
        core().cpu_new()


def test_the_core_needs_no_torch():
    """One build serves every torch: the module loads in a process that never imports it."""
    code = (
        "import sys, importlib.machinery as m, importlib.util as u; "
        f"l = m.ExtensionFileLoader('ape_kernels._C', {core().__file__!r}); "
        "s = u.spec_from_loader(l.name, l); u.module_from_spec(s); "
        "assert not any(name.startswith('torch') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_environment_report_names_backends_and_instruction_sets():
    report = describe_environment()
    for expected in ("torch", "cpu", "cuda", *core().cpu_isas()):
        assert expected in report


@pytest.mark.parametrize("installed", [True, False])
def test_a_source_folder_that_hides_the_installed_package_says_so(tmp_path, installed):
    source, site = tmp_path / "source", tmp_path / "site"
    package = Path(ape_kernels.__file__).parent
    shutil.copytree(package, source / "ape_kernels", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    if installed:
        (site / "ape_kernels").mkdir(parents=True)
        shutil.copy(core().__file__, site / "ape_kernels")
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in getattr(f, '__module__', '')]; "
        f"sys.path = [{str(source)!r}, {str(site)!r}, *(p for p in sys.path if p != {str(package.parent)!r})]; "
        "from ape_kernels.native import missing; print(missing())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    hides = f"the folder {source / 'ape_kernels'}, which has no native core, hides the installed package {site}"
    assert (hides in done.stdout) == (hides in done.stderr) == installed
    assert "-m pip install -e FOLDER_OF_THE_SOURCE" in done.stdout


def test_the_native_core_is_built_again_from_any_folder():
    (root,) = shlex.split(native.how_to_build("CXX=g++"))[-1:]
    assert (Path(root) / "setup.py").is_file() and Path(root).is_absolute()
