"""Verification of backends in processes of their own: planted faults of every kind, and whatever else may fail."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import DEVICE, spread_network

import ape_kernels
from ape_kernels import APEForward, backends, to_program
from ape_kernels.program import PatchProgram
from ape_kernels.verify import auto, judge
from ape_kernels.verify.device import Device
from ape_kernels.verify.process import Fault, run_module
from ape_kernels.verify.programs import residual
from ape_kernels.verify.signature import program_of
from ape_kernels.verify.task import TASK, Finding, Task, Verdict

TORCH = {"torch": "ape_kernels.backends.torch"}
SMALL = residual(8, 3, 2)
PATCH = 8

# The torch backend, but for what `spoil` does to the results of `run_patches`.
PLANTED = """
    import os, time
    import torch
    from ape_kernels.backends.torch import *
    from ape_kernels.backends import torch as honest

    assert os.environ["APE_AUTO"] == "off", "would verify again"
    tf32 = []

    def run_patches(packed, patches, exits, out):
        honest.run_patches(packed, patches, exits, out)
        sr, exits, capacity = out
        tf32.append(torch.backends.cuda.matmul.fp32_precision == "tf32")
        {spoil}
"""
SPOILT = {
    "faithful": "pass",
    "wrong": "sr[3, 1, 5, 6] += 2e-3",
    "raises": "raise ValueError('planted\\nsecond line')",
    "no_memory": "raise torch.OutOfMemoryError('planted')",
    "no_room": "raise OSError(28, 'planted')",
    "killed": "os.kill(os.getpid(), 9)",
    "aborts": "os.abort()",
    "faults": "import ctypes; ctypes.string_at(0)",
    "quits": "print('planted', flush=True); os._exit(3)",
    "silent": "os._exit(0)",
    "slow": "time.sleep(0.05)",
}
WHY_NOT = {
    "wrong": "run_patches: pixels off by up to",
    "raises": "ValueError: planted",
    "no_memory": "OutOfMemoryError: planted",
    "no_room": "OSError: [Errno 28] planted",
    "killed": "crashed: SIGKILL",
    "aborts": "crashed: SIGABRT",
    "faults": "crashed: SIGSEGV",
    "quits": "ended with status 3: planted",
    "silent": "ended without results",
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No verdict is known, neither of this process nor on disk, and none is left behind."""
    monkeypatch.setattr(auto, "known", {})
    monkeypatch.setenv("APE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("APE_AUTO", raising=False)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes a module that is a candidate backend; returns how it is called."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str) -> dict[str, str]:
        (tmp_path / f"planted_{name}.py").write_text(textwrap.dedent(source))
        return {name: f"planted_{name}"}

    return make


@pytest.fixture
def program() -> PatchProgram:
    return program_of(SMALL)


def task(dtype: str = "float32", limit_s: float = 60.0) -> Task:
    return Task(SMALL, Device.of(DEVICE), dtype, (PATCH, PATCH), "highest", limit_s)


def fastest(candidates: dict[str, str], program: PatchProgram, limit_s: float = 60.0) -> str:
    return auto.fastest(candidates, program, DEVICE, torch.float32, PATCH, limit_s)


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split(")")[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


class TestCandidates:
    def test_each_fault_is_found_and_costs_no_other_candidate(self, plant):
        candidates = dict(TORCH)
        for name, spoil in SPOILT.items():
            candidates |= plant(name, PLANTED.format(spoil=spoil))
        verdict = judge.verify(task(), candidates, 600)
        findings = {finding.backend: finding for finding in verdict.findings}
        assert set(findings) == set(candidates)
        for name, reason in WHY_NOT.items():
            assert findings[name].why_not.startswith(reason), findings[name]
            assert not findings[name].right
        assert all(findings[name].right for name in ("torch", "faithful", "slow")), verdict
        assert findings["slow"].milliseconds > 50 / 24 > findings["faithful"].milliseconds
        assert verdict.chosen in ("torch", "faithful")
        assert [name for name, finding in findings.items() if finding.passing] == ["no_memory", "no_room", "killed"]
        assert not verdict.settled

    def test_one_that_hangs_is_killed_with_all_it_started_and_leaves_time_to_the_next(self, plant, tmp_path):
        hang = f"""
            import os, subprocess, time
            from pathlib import Path
            child = subprocess.Popen(["sleep", "1000"])
            Path({str(tmp_path / "pids")!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
            time.sleep(1000)
        """
        candidates = TORCH | plant("hangs", hang) | plant("faithful", PLANTED.format(spoil="pass"))
        begin = time.monotonic()
        verdict = judge.verify(task(), candidates, 40)
        assert time.monotonic() - begin < 40
        torch_, hangs, faithful = verdict.findings
        assert torch_.right and faithful.right
        assert hangs.why_not.startswith("took more than") and hangs.passing
        assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())

    def test_one_whose_parent_has_gone_ends_by_itself(self, plant, tmp_path):
        """Even if it hangs in a place that no thread of its own could leave."""
        plant("hangs", "import time; time.sleep(1000)")
        task(limit_s=1.0).write(tmp_path / TASK)
        fault = run_module(["verify", "--candidate", "planted_hangs", "--folder", str(tmp_path)], tmp_path, 60)
        assert fault == Fault("crashed: SIGALRM")

    def test_float32_is_exact_whatever_the_environment_says_and_timed_as_the_caller_has_it(self, plant, monkeypatch):
        """TF32 in the reference would make every backend that computes in float32 wrong."""
        monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
        spy = plant("spy", PLANTED.format(spoil="assert tf32[-1] == (len(tf32) > 2), tf32"))
        for precision, reason in (("high", ""), ("highest", "AssertionError: [False, False, False]")):
            verdict = judge.verify(replace(task(), precision=precision), TORCH | spy, 60)
            assert verdict.findings[1].why_not == reason

    def test_without_a_reference_nothing_is_judged(self, plant):
        verdict = judge.verify(task(), plant("torch", "import os; os.abort()") | plant("other", "1 / 0"), 60)
        # the first one makes the reference before it imports the candidate
        assert verdict.findings[0].why_not == "crashed: SIGABRT"
        verdict = judge.verify(task(), TORCH | plant("other", "1 / 0"), 0.1)
        assert verdict.findings == (Finding("torch", "took more than 0 s", passing=True),)
        assert verdict.chosen == "torch" and not verdict.settled


class TestChoice:
    def test_the_fastest_right_one_is_chosen_told_and_kept(self, plant, program, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "ape_kernels")
        slow = plant("slow", PLANTED.format(spoil="time.sleep(0.05)"))
        quick = plant("quick", "from ape_kernels.backends.cpu import *" if DEVICE.type == "cpu" else PLANTED)
        wrong = plant("wrong", PLANTED.format(spoil="sr[0] = 0"))
        if DEVICE.type != "cpu":
            quick = {}
        candidates = TORCH | slow | quick | wrong
        chosen = fastest(candidates, program)
        assert chosen == ("quick" if quick else "torch")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        line = caplog.records[0].getMessage()
        assert line.startswith(f"auto takes {chosen} for float32 patches of 8x8 on ")
        assert "wrong run_patches: pixels off by" in line and "slow " in line

        def no_process(*_: object) -> None:
            raise AssertionError("a process was started although the verdict was kept")

        monkeypatch.setattr(judge, "run_module", no_process)
        assert fastest(candidates, program) == chosen
        assert len(caplog.records) == 1, "told once"
        auto.known.clear()  # as in another process
        assert fastest(candidates, program) == chosen
        assert caplog.records[1].getMessage().endswith("(found before)")
        for file in Path(os.environ["APE_CACHE"]).iterdir():  # whatever others do there, this process has chosen
            file.unlink()
        assert fastest(candidates, program) == chosen

    def test_modules_are_found_where_this_process_finds_them(self, plant, program, monkeypatch, tmp_path):
        """A script's folder, a relative entry of the path; and nothing from the folder the process happens to be in."""
        plant("wrong", PLANTED.format(spoil="sr[0] = 0"))
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)] + ["here"])
        monkeypatch.chdir(tmp_path)
        (tmp_path / "here").mkdir()
        (tmp_path / "planted_wrong.py").rename(tmp_path / "here" / "planted_wrong.py")
        (tmp_path / "json.py").write_text("raise SystemExit('not the standard library')")
        verdict = judge.verify(task(), TORCH | {"wrong": "planted_wrong"}, 60)
        assert "pixels off" in verdict.findings[1].why_not

    @pytest.mark.parametrize("place", ["last", "nowhere"])
    def test_this_package_is_found_and_hides_nothing(self, plant, monkeypatch, place):
        """Where it is installed there may be old copies of modules of the standard library (pathlib, dataclasses)."""
        home = str(Path(ape_kernels.__file__).parents[1])
        entries = [entry for entry in sys.path if entry and Path(entry).resolve() != Path(home)]
        monkeypatch.setattr(sys, "path", entries + [home] * (place == "last"))
        spoil = f"""
        import sys, json, ape_kernels
        assert ape_kernels.__file__ == {ape_kernels.__file__!r}
        order = [sys.path.index(entry) for entry in ({os.path.dirname(os.__file__)!r}, {home!r})]
        assert order[0] < order[1] or {place == "nowhere"}, sys.path
        """
        spy = plant("spy", PLANTED.format(spoil="pass") + spoil.replace("\n        ", "\n    "))
        verdict = judge.verify(task(), TORCH | spy, 60)
        assert verdict.findings[1].why_not == ""

    @pytest.mark.parametrize("executable", [None, "", "/usr/bin/uwsgi"])
    def test_without_a_python_to_start_torch_runs(self, program, monkeypatch, caplog, executable):
        monkeypatch.setattr(sys, "executable", executable)
        assert fastest(TORCH | {"cpu": "ape_kernels.backends.cpu"}, program) == "torch"
        assert f"sys.executable is {executable or 'not known'}, which is no Python" in caplog.text
        assert not Path(os.environ["APE_CACHE"]).exists(), "no verdict"

    def test_in_a_frozen_program_torch_runs(self, program, monkeypatch, caplog):
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        assert fastest(TORCH | {"cpu": "ape_kernels.backends.cpu"}, program) == "torch"
        assert "a frozen program cannot start another Python" in caplog.text

    def test_while_tracing_nothing_is_started(self, program, monkeypatch):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(judge, "run_module", None)
        assert fastest(TORCH, program) == "torch"
        assert not auto.known, "the next call may ask"

    def test_after_the_time_limit_torch_runs_and_says_so(self, program, caplog):
        begin = time.monotonic()
        assert fastest(TORCH | {"cpu": "ape_kernels.backends.cpu"}, program, limit_s=0.3) == "torch"
        assert time.monotonic() - begin < 2
        assert "auto takes torch" in caplog.text and "took more than 0 s" in caplog.text

    def test_whatever_fails_torch_runs(self, program, monkeypatch, caplog):
        def broken(*_: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(auto, "verify", broken)
        assert fastest(TORCH | {"cpu": "ape_kernels.backends.cpu"}, program) == "torch"
        assert "OSError: no space left" in caplog.text
        monkeypatch.setattr(auto, "make_task", broken)
        assert fastest(TORCH | {"cpu": "ape_kernels.backends.cpu"}, program) == "torch"
        assert "nothing can be verified: no space left" in caplog.text

    def test_two_threads_that_pack_at_once_verify_once(self, program, monkeypatch):
        calls = []

        def verify(*arguments: object) -> Verdict:
            calls.append(arguments)
            time.sleep(0.2)
            return Verdict((Finding("torch", milliseconds=2.0), Finding("other", milliseconds=1.0)))

        monkeypatch.setattr(auto, "verify", verify)
        results: list[str] = []
        candidates = TORCH | {"other": "planted_other"}
        workers = [threading.Thread(target=lambda: results.append(fastest(candidates, program))) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert results == ["other"] * 3
        assert len(calls) == 1

    def test_a_thread_does_not_wait_for_ever_for_another(self, program, caplog):
        """Nor does a process that was forked while a thread held the lock."""
        with auto._LOCK:
            assert fastest(TORCH, program, limit_s=0.2) == "torch"
        assert "another thread has been verifying" in caplog.text

    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
    def test_when_the_waiting_process_ends_so_does_what_it_started(self, plant, tmp_path, sent):
        hang = f"""
            import os, time
            from pathlib import Path
            Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
            time.sleep(1000)
        """
        plant("torch", hang)
        script = f"""
            import sys; sys.path.insert(0, {str(tmp_path)!r})
            import torch
            from ape_kernels.verify import auto, programs, signature
            program = signature.program_of(programs.residual(8, 3, 2))
            auto.fastest({{"torch": "planted_torch"}}, program, torch.device("cpu"), torch.float32, 8)
        """
        waiting = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.2)
        waiting.send_signal(sent)
        _, printed = waiting.communicate(timeout=20)
        assert ("KeyboardInterrupt" in printed) is (sent == signal.SIGINT)
        assert gone(int((tmp_path / "pid").read_text()))
        assert not list((tmp_path / "cache").glob("*.json"))


class TestAPEForward:
    """Through the wrapper; where there is no GPU, as if the CPU were one."""

    @pytest.fixture(autouse=True)
    def verified(self, monkeypatch):
        monkeypatch.setattr(backends, "VERIFIED", DEVICE.type)

    @pytest.fixture
    def calls(self, monkeypatch) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []

        def record(able: dict[str, str], *arguments: object, operation: str) -> str:
            found.append((operation, list(able), *arguments[1:]))
            return "torch"

        monkeypatch.setattr(auto, "fastest", record)
        return found

    def test_verifies_once_and_keeps_to_it(self, calls):
        model = spread_network()
        fast = APEForward(model, patch_size=24)
        image = torch.rand(1, 3, 30, 30, device=DEVICE)
        for _ in range(2):
            fast(image), fast.forward_patches(image)
        able = list(backends.modules_able(fast.program, DEVICE, torch.float32)[0])
        where = able, model.head[0].weight.device, torch.float32
        assert sorted(calls) == [("images", *where, 48), ("patches", *where, 24)], "each once"
        assert fast.packed.backend == "torch"
        fast.patch_size = 20
        fast.forward_patches(image)
        assert calls[2:] == [("patches", *where, 20)], "another question"

    def test_a_verification_end_to_end(self, monkeypatch, caplog):
        if DEVICE.type == "cpu":
            monkeypatch.setattr(backends, "ORDER", ("cpu", "torch"))  # triton's interpreter would take minutes
        caplog.set_level(logging.INFO, "ape_kernels")
        fast = APEForward(spread_network(), patch_size=12)
        chosen = fast.packed.backend
        images, patches = [record.getMessage() for record in caplog.records]
        assert " for float32 images in cells of 48x48 " in images, "packed ahead"
        assert patches.startswith(f"auto takes {chosen} for float32 patches of 12x12")
        assert all("torch" in line and ("cpu" in line or DEVICE.type != "cpu") for line in (images, patches))

    def test_patch_size_is_that_of_the_folded_patch(self, calls, monkeypatch):
        program = program_of({**SMALL, "buffers": [[12, 1], *SMALL["buffers"][1:]]})
        folded = PatchProgram(program.buffers, program.head, program.stages, program.tail, fold=2)
        backends.choose("auto", folded, DEVICE, torch.float32, 49)
        assert calls[0][-1] == 24

    @pytest.mark.parametrize("mode", ["trust", "off"])
    def test_ape_auto_without_verification(self, monkeypatch, calls, mode):
        monkeypatch.setenv("APE_AUTO", mode)
        first = next(iter(backends.modules_able(to_program(spread_network()), DEVICE, torch.float32)[0]))
        assert APEForward(spread_network()).packed.backend == (first if mode == "trust" else "torch")
        assert not calls

    def test_ape_backend_wins_and_so_does_a_name(self, monkeypatch, calls):
        assert APEForward(spread_network(), backend="torch").packed.backend == "torch"
        monkeypatch.setenv("APE_BACKEND", "torch")
        assert APEForward(spread_network()).packed.backend == "torch"
        assert not calls

    def test_with_torch_alone_there_is_nothing_to_verify(self, monkeypatch, calls):
        monkeypatch.setattr(backends, "modules_able", lambda *_: (dict(TORCH), {}))
        assert APEForward(spread_network()).packed.backend == "torch"
        assert not calls


def test_ape_auto_with_another_value_is_refused(monkeypatch):
    monkeypatch.setenv("APE_AUTO", "yes")
    with pytest.raises(ValueError, match=r"^APE_AUTO: expected verify, trust or off, got 'yes'$"):
        APEForward(spread_network())


def test_on_the_cpu_nothing_is_verified(monkeypatch):
    monkeypatch.setattr(auto, "fastest", None)
    program = program_of(SMALL)
    assert backends.choose("auto", program, torch.device("cpu"), torch.float32, 48) == "cpu"
