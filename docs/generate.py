"""Makes the parts of pages that come from results and docstrings, or checks that they are up to date.

    python docs/generate.py            # rewrites README.md and docs/*.md
    python docs/generate.py --check    # changes nothing; the status is 1 if a page is not up to date

In a page such a part stands between ``<!-- made: NAME -->`` and ``<!-- end -->``. NAME is a function of `BLOCKS`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

from gpu_records import OURS, milliseconds, read  # noqa: E402

XEON = ROOT / "bench" / "results" / "xeon-amx-2-cores"
GPU = ROOT / "bench" / "results" / "h200"
RIVALS = {  # names of rows in the results, and the names that the tables show
    "authors' eager forward": "the paper's eager forward, literally (fp32)",
    "torch.compile": "torch.compile",
    "torch eager channels_last": "PyTorch, channels_last",
    "ONNX Runtime": "ONNX Runtime",
    "OpenVINO": "OpenVINO",
    "ape_kernels torch": "`torch` backend",
    "ape_kernels cpu": "**`cpu` backend**",
}
CPU = "ape_kernels cpu"
FIRST = ("load", "APEForward")  # on the page of the Python interface
PAGES = ("README.md", "docs/performance.md", "docs/video.md", "docs/api.md")
MARK = re.compile(r"(<!-- made: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def groups(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """The measurements in a file that bench/report.py wrote, by group and row."""
    return json.loads((XEON / f"{name}.json").read_text())["groups"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table. All columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)) + "\n"


def numbers() -> str:
    """Three figures for the first screen of the README."""
    bf16 = groups("edsr-16x64-bf16")["cpu EDSR 16x64 x4 bf16"]
    whole = groups("edsr-16x64-picture")["cpu EDSR 16x64 x4 fp32, picture 510x339"]
    plans = json.loads((ROOT / "docs" / "results" / "x4" / "Photo2K_plans.json").read_text())
    some = [plan for plan in plans if (plan["copy"], plan["asked"]) == ("as it is", 45)]
    saved, picture = (statistics.mean(plan[name] for plan in some) for name in ("saved", "picture"))

    def three(rows: dict[str, dict[str, float]], factor: float, form: str) -> list[str]:
        return [format(rows[name]["ms"] * factor, form) for name in (CPU, "OpenVINO", "torch eager channels_last")]

    patch, image = three(bf16, 1, ".1f"), three(whole, 1e-3, ".2f")
    return (
        f"- **{patch[0]} ms per patch** of 48x48 pixels in bf16, at full depth. OpenVINO takes {patch[1]} ms, PyTorch "
        f"{patch[2]} ms.\n"
        f"- **{image[0]} s for an image** of 510x339 pixels in float32. OpenVINO takes {image[1]} s, PyTorch "
        f"{image[2]} s.\n"
        f"- **{saved:.0%} of all computation saved** on five 2048-pixel photographs (shipped weights; 45 dB "
        f"to full depth asked for, {picture:.0f} dB reached).\n"
    )


def gpu_line() -> str:
    """The speed of the GPU backends, in one sentence."""
    cases = dict(gpu_rows())
    device = next(record["device"] for record in read(GPU) if record["kind"] == "environment")

    def times(network: str, *counts: int) -> str:
        ratios = [best / own["cuda"] for own, best in (cases[network, count, "full depth"] for count in counts) if best]
        return " and ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in ratios))

    small, large = times("EDSR 16x64 x4", 500, 2000), times("EDSR 32x256 x4", 100)
    line = (
        f"GPU: measured on an {device}, in fp16. For 500 and 2000 patches of EDSR 16x64 x4, the `cuda` backend is "
        f"{small} times as fast as PyTorch's best row; for EDSR 32x256 x4 it is {large} times as fast "
        "([all rows](docs/performance.md#gpu))."
    )
    return textwrap.fill(line, 130, break_on_hyphens=False) + "\n"


def cpu_machine() -> str:
    """The machine and the packages of the CPU's figures."""
    runs = [json.loads(path.read_text())["measured"][0] for path in sorted(XEON.glob("*.json"))]
    facts = {f"{run['date']}: {run['cpu']}, shared with other work; {run['packages']}." for run in runs}
    return "\n".join(sorted(facts)) + "\n"


def cpu_patches() -> str:
    """Times per patch of EDSR 16x64, for three instruction sets."""
    runs = [groups(f"edsr-16x64-{name}") for name in ("fp32", "bf16", "avx2")]
    columns = [next(iter(run.values())) for run in runs]
    rows = []
    for name, shown in RIVALS.items():
        cells = [shown]
        for column in columns:
            row, first = column.get(name), column["authors' eager forward"]
            cells += ["", ""] if row is None else [f"{row['ms']:.1f}", f"{first['ms'] / row['ms']:.1f}x"]
        rows.append(cells)
    samples = [f"{min(counts)} to {max(counts)}" for column in columns
               for counts in ([int(row["samples"]) for row in column.values()],)]  # fmt: skip
    rows.append(["samples per row, after dropping", *(cell for kept in samples for cell in (kept, ""))])
    return table(
        ["ms per patch", "fp32, AVX-512", "times as fast", "bf16, AMX", "times as fast", "fp32, AVX2", "times as fast"],
        rows,
    )


def cpu_picture() -> str:
    """Times of EDSR 16x64 for a whole image."""
    fp32, bf16 = groups("edsr-16x64-picture").values()
    rows = []
    for name, shown in RIVALS.items():
        cells = ((f"{run[name]['ms'] / 1e3:.2f}", f"{run[name]['samples']}") if name in run else ("", "")
                 for run in (fp32, bf16))  # fmt: skip
        rows.append([shown, *(cell for pair in cells for cell in pair)])
    return table(["seconds per image of 510x339", "fp32", "samples", "bf16", "samples"], rows)


def cpu_networks() -> str:
    """Times of other networks, compared with the best of their peers."""
    rows = []
    for group, found in groups("other-networks").items():
        network, _, dtype = group.removeprefix("cpu ").rpartition(" ")
        peers = {name: row for name, row in found.items() if not name.startswith("ape_kernels")}
        best = min(peers, key=lambda name: peers[name]["ms"])
        ours, theirs = found[CPU], peers[best]
        rows.append([network, dtype, f"{ours['ms']:.1f}", f"{ours['samples']}", RIVALS[best], f"{theirs['ms']:.1f}",
                     f"{theirs['samples']}", f"{theirs['ms'] / ours['ms']:.2f}x"])  # fmt: skip
    head = ["network", "dtype", "`cpu`, ms per patch", "samples", "best peer", "its ms", "samples", "times as fast"]
    return table(head, rows)


def cpu_exits() -> str:
    """How far the body's time is from its share of the FLOPs, and the gain of a second thread."""
    found = groups("edsr-16x64-scaling")
    rows = []
    for dtype in ("fp32", "bf16"):
        exits, threads = found[f"cpu EDSR 16x64 x4 {dtype}, exits"], found[f"cpu EDSR 16x64 x4 {dtype}, threads"]
        single = [row["body_off"] for name, row in exits.items() if name.startswith("all")]
        mixed = [row["body_off"] for name, row in exits.items() if name.startswith("mixed")]
        spread = [f"{min(values):+.1%} to {max(values):+.1%}" for values in (mixed, single)]
        rows.append([dtype, *spread, f"{threads['2 threads']['speedup']:.2f}x"])
    return table(["dtype", "mixed exits: time against share of FLOPs", "one exit for all", "two threads"], rows)


def command() -> str:
    """Where the time of `ape-sr upscale` goes, as bench/command.py printed it."""
    return "\n".join((XEON / f"command-{name}.md").read_text() for name in ("photos", "small"))


def video() -> str:
    """Time of the frames of videos, as bench/video.py printed it."""
    return "\n".join((XEON / f"video-{name}.md").read_text() for name in ("edsr", "animevideov3"))


def gpu_rows() -> Iterator[tuple[tuple[str, int, str], tuple[dict[str, float], float | None]]]:
    """Per (network, patches, exits): milliseconds of the fastest row of each of our backends, and of PyTorch's best."""
    cases: dict[tuple[str, int, str], dict[str, float]] = {}
    for record in read(GPU):
        if record["kind"] == "row":
            case = cases.setdefault((record["network"], record["patches"], record["exits"]), {})
            case[record["row"]] = milliseconds(record)
    for (network, patches, exits), rows in sorted(cases.items()):
        own = {name: min((ms for row, ms in rows.items() if row.split()[0].rstrip(",") == name), default=0.0)
               for name in OURS}  # fmt: skip
        full = cases.get((network, patches, "full depth"), {})
        best = min((ms for row, ms in full.items() if row.split()[0].rstrip(",") not in OURS), default=None)
        yield (network, patches, exits), ({name: ms for name, ms in own.items() if ms}, best)


def gpu() -> str:
    """One line per case: our backends against PyTorch's best row at full depth."""
    rows = []
    for (network, patches, exits), (own, best) in gpu_rows():
        if best is None:  # PyTorch has no row for this case
            continue
        cells = [network, "1 image" if "picture" in network else str(patches), exits, f"{best:.2f}"]
        for name in OURS:
            cells += [f"{own[name]:.2f}", f"{best / own[name]:.2f}x"] if name in own else ["", ""]
        rows.append(cells)
    head = [
        "network",
        "patches",
        "exits",
        "PyTorch's best, full depth, ms",
        "`cuda`, ms",
        "times as fast",
        "`triton`, ms",
        "times as fast",
    ]
    return table(head, rows)


def api() -> str:
    """The public interface, from signatures and docstrings."""
    parts = []
    for package in ("ape_sr", "ape_kernels"):
        module = importlib.import_module(package)
        parts.append(f"## {package}\n\n{_prose(module)}")
        for name in sorted(module.__all__, key=lambda name: name not in FIRST):
            parts += _documented(module, name)
    return "\n\n".join(parts) + "\n"


def _documented(module: ModuleType, name: str) -> Iterator[str]:
    item = getattr(module, name)
    yield f"### {module.__name__}.{name}"
    if not inspect.isclass(item):
        yield f"{_signature(name, item)}\n\n{_prose(item)}"
        return
    bases = [base for base in item.__mro__[1:] if base.__module__.partition(".")[0] in ("ape_sr", "ape_kernels")]
    shows_arguments = not issubclass(item, BaseException)
    yield (f"{_signature(name, item)}\n\n" if shows_arguments else "") + _prose(item)
    if bases:
        yield f"Also what `{bases[0].__module__.partition('.')[0]}.{bases[0].__name__}` has."
    for member, value in vars(item).items():
        function = value.fget if isinstance(value, property) else value
        if (
            member.startswith("_")
            or member == "extra_repr"
            or not (inspect.isfunction(function) or hasattr(function, "func"))
        ):
            continue
        function = getattr(function, "func", function)  # the function of a cached property
        if not inspect.getdoc(function):
            continue
        if inspect.isfunction(value):
            yield f"{_signature(f'{name}.{member}', value)}\n\n{_prose(value)}"
        else:
            yield f"`{name}.{member}`: {_annotation(function)}. {_prose(function)}"


def _signature(name: str, item: Any) -> str:
    """A signature as code. A long one has one argument per line."""
    signature = inspect.signature(item)
    if inspect.isclass(item):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    text = _plain(str(signature))
    if len(name + text) > 100:
        parameters = [_plain(str(parameter)) for parameter in signature.parameters.values()]
        for index, parameter in enumerate(signature.parameters.values()):
            if parameter.kind is parameter.KEYWORD_ONLY:
                parameters.insert(index, "*")
                break
        returns = text.rpartition(")")[2]
        text = "(\n    " + ",\n    ".join(parameters) + f",\n){returns}"
    return f"```python\n{name}{text}\n```"


def _plain(text: str) -> str:
    """Annotations as they are written: without the quotes that postponed evaluation adds."""
    text = re.sub(r"ForwardRef\('([^']*)'\)", r"\1", text)
    return re.sub(r"""(: |-> )(['"])(.*?)\2(?=[,)=\s]|$)""", r"\1\3", text)


def _annotation(function: Callable[..., Any]) -> str:
    return str(inspect.signature(function).return_annotation).strip("'")


def _prose(item: Any) -> str:
    """A docstring as Markdown. A line "name: meaning" becomes an item of a list, with the lines that follow it."""
    lines: list[str] = []
    fenced = False
    for line in (inspect.getdoc(item) or "").splitlines():
        example = line.startswith((">>>", "..."))
        if example != fenced:
            lines += ["```python" if example else "```"]
            fenced = example
        if example:
            lines.append(re.sub(r" *# doctest: .*", "", line[4:]))
            continue
        line = re.sub(r"``([^`]+)``", r"`\1`", line)
        inside = bool(lines) and lines[-1].startswith(("- ", "  "))
        if found := re.match(r"((?:\w+, )*\w+): (.*)", line):
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            lines += [*([] if inside or not lines or not lines[-1] else [""]), f"- {names}: {found[2]}"]
        elif inside and line.startswith(("Raises", "Returns")):
            lines += ["", line]
        elif inside and line:
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines + ["```"] * fenced).strip()


BLOCKS: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        numbers,
        gpu_line,
        cpu_machine,
        cpu_patches,
        cpu_picture,
        cpu_networks,
        cpu_exits,
        command,
        video,
        gpu,
        api,
    )
}


def main() -> int:
    """Run the command and return its status."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        print(f"usage: python docs/generate.py [--check], got {' '.join(sys.argv[1:])}", file=sys.stderr)
        return 2
    stale = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        made = MARK.sub(lambda match: f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[4]}", text)
        if made != text:
            stale.append(page)
            if not check:
                path.write_text(made)
    if stale:
        print(f"{'not up to date' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
