"""What is distributed, and what it asks for."""

import importlib.metadata
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ape_sr.extras import NEEDED, how_to_install

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
    assert done.stderr == f"ape-sr: error: needs {NEEDED[module]}; run: {how_to_install(NEEDED[module])}\n"


def test_python_says_what_to_install():
    done = python("import sys; sys.modules |= dict.fromkeys(['PIL', 'tqdm']); import ape_sr; ape_sr.load")
    assert done.stderr.splitlines()[-1] == (
        f"ModuleNotFoundError: ape_sr needs pillow, tqdm; run: {how_to_install('pillow', 'tqdm')}"
    )


def test_what_is_to_be_installed_is_on_an_index(project, monkeypatch):
    """This package is on none, so that its extras are no help."""
    extras = project["optional-dependencies"].items()
    metadata = [f"{line}; extra == {name!r}" for name, lines in extras for line in lines]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: metadata)
    wanted = [line for name in ("sr", "video", "demo", "spandrel") for line in project["optional-dependencies"][name]]
    wanted = [line for line in wanted if not line.startswith("ape-kernels")]
    names = [re.match(r"[\w-]+", line)[0] for line in wanted]
    command = how_to_install(*names, "pillow-heif")
    assert shlex.split(command) == [sys.executable, "-m", "pip", "install", *wanted, "pillow-heif"]


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


PIP_LINES = """
Collecting torch==2.13.0 (from -r requirements.txt (line 2))
  Link requires a different Python (3.11.7 not in: '>=3.12'): https://x/numpy-3.0-[1/2] (from y)
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (29 kB)
Downloading https://download.pytorch.org/whl/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl (190.5 MB)
Progress 0 of 190500000
Progress 95000000 of 190500000
Downloading tqdm-4.70.1-py3-none-any.whl (78 kB)
Progress 78000 of 78000
Installing collected packages: tqdm, torch
Successfully installed torch-2.13.0 tqdm-4.70.1
  [9/41] c++ -o a.o
  [10/41] c++ -o b.o
""".strip().splitlines()


@pytest.mark.parametrize("terminal", [True, False])
def test_setting_up_says_what_is_going_on(terminal, capsys, monkeypatch):
    """Line over line on a terminal, else a line each, and few of them."""
    spec = importlib.util.spec_from_file_location("install", ROOT / ".ci" / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    shown = install.Shown()
    for line in PIP_LINES:
        shown.line(line.strip())
    shown.finish("done")
    said = [line[8:].strip() for line in re.split(r"[\r\n]", capsys.readouterr().out) if line.strip()]
    if terminal:
        assert "downloading torch 2.13.0, 95 of 190 MB" in said and "compiling: 9 of 41 files" in said
        assert said[0] == "looking for packages" and "tqdm" not in "".join(said)
    else:
        assert said == [
            "downloading torch 2.13.0, 190.5 MB",
            "installing 2 packages",
            "compiling: 10 of 41 files",
            "done",
        ]


def test_setting_up_that_fails_says_why():
    command = [sys.executable, ROOT / ".ci" / "install.py", "--no-index", "no-such-distribution"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "failed" in done.stdout
    assert "No matching distribution found for no-such-distribution" in done.stderr
