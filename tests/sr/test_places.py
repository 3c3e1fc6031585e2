"""Addresses in the place of paths, and lists of them. What needs an object store is in test_many.py."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed: pip install -r requirements-dev.txt")

import fsspec

from ape_sr.cli import main
from ape_sr.errors import UserError
from ape_sr.folder.lists import read_list
from ape_sr.places import Url, local_target, place
from ape_sr.scratch import scratch_folder


@pytest.fixture
def memory():
    """A file system in this process, without atomic uploads."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in ("upscale", *arguments)])


def names(system, folder: str) -> list[str]:
    return sorted(name.removeprefix(f"/{folder}/") for name in system.find(f"/{folder}"))


def test_names_and_joins():
    url = place("s3://bucket/a b/photo.PNG")
    assert isinstance(url, Url) and str(url) == "s3://bucket/a b/photo.PNG"
    assert (url.name, url.stem, url.suffix) == ("photo.PNG", "photo", ".PNG")
    assert str(url.parent / "sub" / "c.png") == "s3://bucket/a b/sub/c.png"
    assert str(url.with_name("d.png")) == "s3://bucket/a b/d.png"
    assert pickle.loads(pickle.dumps(url)) == url and str(pickle.loads(pickle.dumps(url))) == str(url)
    assert place("file:///tmp/a.png") == Path("/tmp/a.png") and not isinstance(place("file:///tmp/a.png"), Url)
    assert not isinstance(place("photos/a.png"), Url)


def test_the_command_between_addresses(memory, tmp_path, photos, weights, capsys):
    memory.put(f"{photos}/", "/in/", recursive=True)
    memory.pipe({"/in/.hidden.png": b"", "/in/notes.doc": b"", "/in/sub/d.png": (photos / "a.png").read_bytes()})
    memory.pipe({"/in/broken.png": b"nothing"})
    assert run("memory://in", "-o", "memory://out", "-n", weights, "--exit-map") == 2
    printed = capsys.readouterr()
    assert "ape-sr: error: memory://in/broken.png: not an image file that can be read\n" in printed.err
    assert "passed over: 1 hidden, 1 of other kinds, 1 sub folders (-r takes them)\n" in printed.err
    expected = [f"{name}_x2{kind}.png" for name in "abc" for kind in ("", "_exits")]
    assert names(memory, "out") == sorted(expected), "and no part of one"
    assert run("memory://in", "-r", "-o", "memory://out", "-n", weights, "--exit-map") == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum("done already" in line for line in lines) == 3 and len(lines) == 4
    assert "sub/d_x2.png" in names(memory, "out")
    memory.pipe({"/in/a.png": (photos / "a.png").read_bytes()})  # written anew
    assert run("memory://in", "-o", "memory://out", "-n", weights, "--exit-map") == 2
    assert capsys.readouterr().out.count("done already") == 2
    assert run("memory://out/a_x2.png", "-o", tmp_path / "four.png", "-n", weights) == 0, "given itself"
    assert run("memory://out", "-o", "memory://again", "-n", weights) == 0
    assert capsys.readouterr().out.count("passed over, a result of ape-sr") == 6


def test_a_file_that_is_not_finished_is_not_there(memory):
    memory.pipe({"/out/a.png": b"before"})
    with (
        pytest.raises(UserError, match=r"^memory://out/a.png: no space$"),
        local_target(Url("memory://out/a.png")) as at,
    ):
        at.write_bytes(b"half")
        raise UserError(f"{at}: no space")
    assert memory.cat("/out/a.png") == b"before" and names(memory, "out") == ["a.png"]


@pytest.mark.parametrize(
    "given, message",
    [
        ("memory://nothing", "input: no such file or folder: memory://nothing"),
        ("nonsense://a/b.png", "nonsense://a/b.png: cannot be read: Protocol not known: nonsense"),
    ],
)
def test_addresses_that_lead_nowhere(memory, tmp_path, weights, given, message, capsys):
    assert run(given, "-o", tmp_path / "out", "-n", weights) == 2
    assert capsys.readouterr().err == f"ape-sr: error: {message}\n"


class TestLists:
    def test_of_text(self, tmp_path, photos, weights):
        (photos / "sub").mkdir()
        (photos / "c.webp").rename(photos / "sub" / "c.webp")
        (tmp_path / "list.txt").write_text(f"{photos}/a.png\n\n{photos}/sub/c.webp\n")
        assert run("-i", tmp_path / "list.txt", "-o", tmp_path / "out", "-n", weights) == 0
        results = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
        assert results == ["a_x2.png", "sub/c_x2.png"]

    def test_of_parquet(self, tmp_path, photos, weights, capsys):
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow.parquet import write_table

        write_table(pyarrow.table({"path": [str(photos / "b.bmp"), str(photos / "gone.png")]}), tmp_path / "l.parquet")
        assert run(tmp_path / "l.parquet", "-o", tmp_path / "out", "-n", weights) == 2
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["b_x2.png"]
        assert "gone.png: cannot be read: No such file or directory" in capsys.readouterr().err
        write_table(pyarrow.table({"name": ["a"]}), tmp_path / "l.parquet")
        assert run(tmp_path / "l.parquet", "-o", tmp_path / "out", "-n", weights) == 2
        assert "l.parquet: expected a column 'path' of strings, got name\n" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "lines, below",
        [
            (["a/b/1.png", "a/c/2.png"], ["b", "c"]),
            (["/data/1.png", "/data/x/y/2.png"], [".", "x/y"]),
            (["s3://one/a/1.png", "s3://two/2.png"], ["one/a", "two"]),
            (["s3://one/1.png", "/data/2.png"], [".", "."]),
            (["../x/1.png", "y/2.png"], [".", "."]),
        ],
    )
    def test_where_results_go(self, tmp_path, lines, below):
        (tmp_path / "list.txt").write_text("\n".join(lines))
        found = read_list(tmp_path / "list.txt")
        assert [(str(file), str(folder)) for file, folder in found] == list(zip(lines, below, strict=True))

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
    def test_that_are_none(self, tmp_path, weights, content, capsys):
        (tmp_path / "list.txt").write_bytes(content)
        assert run(tmp_path / "list.txt", "-o", tmp_path / "out", "-n", weights) == 2
        assert "list.txt: " in capsys.readouterr().err


def test_temporary_folders_of_processes_that_start_at_once():
    code = (
        "from ape_sr.scratch import scratch_folder\n"
        "for _ in range(300):\n"
        "    with scratch_folder('ape-test-') as folder:\n"
        "        (folder / 'file').write_text('here')\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=100)[1] for process in processes] == ["", "", ""]


def test_a_temporary_folder_outlives_no_process(tmp_path):
    code = (
        "import os, sys\nfrom ape_sr.scratch import scratch_folder\n"
        "with scratch_folder('ape-test-') as folder:\n"
        "    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    with scratch_folder("ape-test-"):
        assert left.exists(), "it is in use"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with scratch_folder("ape-test-") as mine:
        assert mine.exists() and not left.exists()
    assert not mine.exists()
