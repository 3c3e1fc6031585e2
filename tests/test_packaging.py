"""What is distributed, and what it asks for."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ape_sr.__main__ import NEEDED

ROOT = Path(__file__).parents[1]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def pins(*names: str) -> dict[str, str]:
    """Distribution -> version, from requirements files."""
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    return dict(re.match(r"([\w-]+)==([\w.]+)", line).groups() for line in lines if "==" in line.partition(";")[0])


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_kernels_need_nothing_of_the_system():
    done = python(f"import sys; sys.modules |= dict.fromkeys({list(NEEDED)}); import ape_kernels")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", NEEDED)
def test_the_command_says_what_to_install(module):
    done = python(
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['ape-sr', 'info']; "
        "from ape_sr.__main__ import main; sys.exit(main())"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f'ape-sr: error: needs {NEEDED[module]}; run: pip install "ape-kernels[sr]"\n'


def test_the_extras_name_what_is_imported(project):
    extras = {
        name: [re.match(r"[\w-]+", line)[0] for line in lines]
        for name, lines in project["optional-dependencies"].items()
    }
    assert sorted(extras["sr"]) == sorted(NEEDED.values())
    assert not set(extras["sr"]) & {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}


def test_tools_have_one_version(project):
    pinned = dict(
        line.split("==") for line in project["optional-dependencies"]["dev"] if re.fullmatch(r"[^;]+==.+", line)
    )
    assert pinned.keys() == {"ruff", "clang-format", "basedpyright"}
    for name, version in pinned.items():
        assert pins("requirements-dev.txt")[name] == version


def test_the_source_distribution_is_the_repository(tmp_path):
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs the repository and git to know what belongs to it")
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs setuptools 77 or newer")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {name for name in names.split("\0") if (ROOT / name).is_file()}
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as file:
        held = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    assert tracked - held == set()
