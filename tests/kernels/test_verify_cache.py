"""Verdicts on disk: found again for the same key alone, whole or not at all, never in the way."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_verify import SMALL, TORCH, task

import ape_kernels
from ape_kernels.verify import auto, cache
from ape_kernels.verify.device import Device
from ape_kernels.verify.task import Finding, Verdict

KEY = {"a": 1, "b": [1.5, None]}
SETTLED = Verdict((Finding("torch", milliseconds=2.0), Finding("cuda", "pixels off"), Finding("cpu", milliseconds=1.0)))
UNSETTLED = Verdict((Finding("torch", milliseconds=2.0), Finding("cuda", "took more than 9 s", passing=True)))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("APE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def file_of(key: dict[str, object]) -> Path:
    return cache.folder() / f"{cache.name_of(key)}.json"


class TestFolder:
    def test_ape_cache_then_the_platforms_own(self, monkeypatch, tmp_path):
        assert cache.folder() == tmp_path / "cache"
        monkeypatch.setenv("HOME", "/home/somebody")
        for set_to in (None, ""):
            monkeypatch.delenv("APE_CACHE") if set_to is None else monkeypatch.setenv("APE_CACHE", set_to)
            monkeypatch.setattr(sys, "platform", "linux")
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
            assert cache.folder() == Path("/home/somebody/.cache/ape_kernels")
            monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
            assert cache.folder() == Path("/home/somebody/.cache/ape_kernels")
            monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/caches")
            assert cache.folder() == Path("/var/tmp/caches/ape_kernels")
            monkeypatch.setattr(sys, "platform", "darwin")
            assert cache.folder() == Path("/home/somebody/Library/Caches/ape_kernels")


class TestFiles:
    def test_a_verdict_is_found_again(self, folder):
        assert cache.read(KEY) is None
        cache.write(KEY, SETTLED)
        assert cache.read(KEY) == SETTLED
        assert SETTLED.chosen == "cpu"
        assert cache.read({**KEY, "a": 2}) is None
        assert [file.name for file in folder.iterdir()] == [file_of(KEY).name], "nothing else is left"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            '{"key": {"a": 1, "b": [1.5, null]}}',
            json.dumps({"key": KEY, "made": 0, "verdict": {"findings": [{"backend": 1}], "why_not": ""}}),
            json.dumps({"key": KEY, "made": 0, "verdict": {"findings": [{"surprise": 1}], "why_not": ""}}),
            json.dumps({"key": KEY, "made": 0, "verdict": {"findings": 7, "why_not": ""}}),
            json.dumps({"key": {"of": "another"}, "made": 0, "verdict": SETTLED.as_json()}),
            "\ufffd\x00",
        ],
    )
    def test_damaged_and_foreign_files_count_as_not_there_and_are_replaced(self, text):
        cache.write(KEY, SETTLED)
        file_of(KEY).write_text(text)
        assert cache.read(KEY) is None
        cache.write(KEY, SETTLED)
        assert cache.read(KEY) == SETTLED

    def test_a_cut_file_and_a_folder_in_its_place(self):
        cache.write(KEY, SETTLED)
        whole = file_of(KEY).read_bytes()
        for length in range(0, len(whole), 7):
            file_of(KEY).write_bytes(whole[:length])
            assert cache.read(KEY) is None
        file_of(KEY).unlink()
        file_of(KEY).mkdir()
        assert cache.read(KEY) is None
        cache.write(KEY, SETTLED)  # cannot, and does not mind
        assert not list(cache.folder().glob("*.partial"))

    def test_where_nothing_can_be_written_nothing_fails(self, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("APE_CACHE", str(tmp_path / "file" / "below"))
        cache.write(KEY, SETTLED)
        assert cache.read(KEY) is None
        with cache.alone(KEY, 10):
            pass

    def test_what_may_be_otherwise_another_time_counts_for_an_hour(self, monkeypatch):
        cache.write(KEY, UNSETTLED)
        cache.write({"other": 1}, SETTLED)
        now = time.time()
        for later_s, known in ((10, True), (3700, False), (-100, False)):
            monkeypatch.setattr(time, "time", lambda later_s=later_s: now + later_s)
            assert (cache.read(KEY) == UNSETTLED) is known
            assert cache.read({"other": 1}) == SETTLED

    def test_several_processes_writing_at_once_leave_a_whole_file(self, folder):
        script = """
            from ape_kernels.verify import cache
            from ape_kernels.verify.task import Finding, Verdict
            for i in range(200):
                cache.write({"a": 1}, Verdict((Finding("torch", "x" * 5000, float(i)),)))
                assert cache.read({"a": 1}) is not None
        """
        writers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)]) for _ in range(2)]
        assert [writer.wait(60) for writer in writers] == [0, 0]
        assert len(list(folder.iterdir())) == 1


class TestAlone:
    def test_one_at_a_time(self):
        inside, most = 0, 0

        def work() -> None:
            nonlocal inside, most
            with cache.alone(KEY, 10):
                inside += 1
                most = max(most, inside)
                time.sleep(0.15)
                inside -= 1

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert most == 1

    def test_but_not_for_ever_and_not_for_another_key(self):
        with cache.alone(KEY, 10):
            begin = time.monotonic()
            with cache.alone({"other": 1}, 10):
                assert time.monotonic() - begin < 1
            with cache.alone(KEY, 0.3):
                assert 0.3 <= time.monotonic() - begin < 2

    def test_who_waited_takes_what_the_other_found(self, monkeypatch):
        """Two processes ask the same: one verifies."""
        asked = task()
        key = auto.make_key(asked, TORCH)
        monkeypatch.setattr(auto, "verify", None)  # would raise
        found: list[object] = []
        with cache.alone(key, 10):
            waiting = threading.Thread(target=lambda: found.append(auto.find(key, asked, TORCH, time.monotonic())))
            waiting.start()
            time.sleep(0.3)
            assert not found
            cache.write(key, Verdict((Finding("torch", milliseconds=1.0),)))
        waiting.join()
        assert found == [(Verdict((Finding("torch", milliseconds=1.0),)), True)]

    def test_all_the_waiting_together_is_within_the_limit(self, monkeypatch):
        """For another thread first, which `begin` tells, and then for another process."""
        asked = replace(task(), limit_s=30.0)
        key = auto.make_key(asked, TORCH)
        monkeypatch.setattr(auto, "verify", None)  # would raise
        with cache.alone(key, 10):
            begin = time.monotonic()
            verdict, kept = auto.find(key, asked, TORCH, begin - 29.5)
        assert time.monotonic() - begin < 5
        assert verdict == Verdict(why_not="another process has been verifying for 30 s") and not kept


class TestKey:
    @pytest.fixture
    def package(self, tmp_path) -> Path:
        root = tmp_path / "package"
        (root / "backends" / "cuda").mkdir(parents=True)
        (root / "backends" / "cuda" / "run.py").write_text("run = 1")
        (root / "_C.cpython-311-x86_64-linux-gnu.so").write_bytes(b"native")
        (root / "notes.txt").write_text("of no consequence")
        return root

    def test_sources_and_native_core_are_in_it(self, package):
        before = cache.source_hash(package)
        (package / "notes.txt").write_text("changed")
        assert cache.source_hash(package) == before
        hashes = {before}
        (package / "backends" / "cuda" / "run.py").write_text("run = 2")
        hashes.add(cache.source_hash(package))
        (package / "_C.cpython-311-x86_64-linux-gnu.so").write_bytes(b"rebuilt")
        hashes.add(cache.source_hash(package))
        (package / "backends" / "cuda" / "run.py").rename(package / "backends" / "run.py")
        hashes.add(cache.source_hash(package))
        (package / "backends" / "new.py").touch()
        hashes.add(cache.source_hash(package))
        assert len(hashes) == 5

    def test_all_that_a_verdict_depends_on_is_in_it(self, monkeypatch):
        asked = task()
        names = {cache.name_of(auto.make_key(asked, TORCH))}

        def add(candidates: dict[str, str] = TORCH, **changes: object) -> None:
            name = cache.name_of(auto.make_key(replace(asked, **changes), candidates))
            assert name not in names, changes
            names.add(name)

        add(dtype="float16")
        add(patch=(8, 9))
        add(precision="high")
        add(signature={**SMALL, "buffers": SMALL["buffers"][:-1]})
        add(device=replace(asked.device, name="another card"))
        add(device=replace(asked.device, capability="12.0"))
        add(device=replace(asked.device, driver="another driver"))
        add(TORCH | {"other": "planted"})
        for owner, name, value in (
            (ape_kernels, "__version__", "9"),
            (cache, "own_source", lambda: "changed"),
            (auto.torch, "__version__", "9"),
            (auto, "_version", lambda _: "9"),
        ):
            with monkeypatch.context() as changed:
                changed.setattr(owner, name, value)
                add()
        monkeypatch.setenv("APE_TRITON_AUTOTUNE", "1")
        add()

    def test_which_of_several_equal_cards_is_not(self):
        first, second = (Device("cuda", "card", "9.0", "13", f"uuid-{i}", i) for i in range(2))
        keys = [auto.make_key(replace(task(), device=device), TORCH) for device in (first, second)]
        assert keys[0] == keys[1]

    def test_it_survives_json(self):
        key = auto.make_key(task(), TORCH)
        assert json.loads(json.dumps(key)) == key
