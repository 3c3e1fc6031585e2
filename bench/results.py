"""Makes docs/results.md with all its tables and pictures. Beside each stands the command that made it.

    python bench/results.py -i DEV

DEV holds `Photo2K`, a folder of photographs, and `Set5` and `Urban10`, each with folders `x4` and `x2` of pairs
<name>_HR and <name>_LR. The weights are those that come with the package. The paper's regressors
(bench/paper_regressor_x<scale>.json) and the edge tables (bench/edge_table_x<scale>.json) were fitted to the same
backbones.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean

import torch
from PIL import Image

from ape_kernels.environment import describe_environment
from ape_sr.weights import shipped_weights

ROOT = Path(__file__).parent.parent
PICTURES = Path("docs/results")
SETS = ("Set5", "Urban10")
PHOTOGRAPHS = "Photo2K"
SCALES = (4, 2)
PLAIN = (  # of networks without exits
    "animevideov3_drawings",
    "animevideov3_large",
    "animevideov3_photographs",
    "animevideov3_mixed",
    "anime_6B_drawings",
    "anime_6B_photographs",
)
ASKED = "40 45 48 50"  # dB, of the plans
SAME_FIDELITY, SAME_LOSS = 48, 0.02  # dB, at which rules are compared
THRESHOLDS = "0 0.06 0.08 0.1 0.12 0.14 0.17 0.2 0.3 1"
PRECISION_THRESHOLDS = "0 0.1 0.2"  # some of THRESHOLDS, for bf16
PLANNED = {
    "plan": "plan",
    "oracle": "oracle: knows the distance of each candidate of each cell",
    "edge table": "edge table, as in ARM",
    "regressor": "the paper's regressor, on patches",
}
RULES = {
    "oracle": "oracle: knows every patch's PSNR at every exit",
    "look-ahead": "threshold, look-ahead target (shipped)",
    "paper": "threshold, the paper's target, same backbone",
    "uniform": "every patch at the same exit",
}


def run(command: str) -> None:
    """Print a command and run it in the repository's root."""
    print(f"$ {command}", flush=True)
    words = shlex.split(command)
    if words[0] == "ape-sr":
        words[:1] = [sys.executable, "-m", "ape_sr"]
    elif words[0] == "python":
        words[0] = sys.executable
    subprocess.run(words, check=True, cwd=ROOT)


def shell(command: str) -> str:
    """A block of Markdown that shows a command."""
    return f"    {command}\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(text: str | float) -> str:
    """A share as a percentage; empty for an empty text."""
    return f"{100 * float(text):.1f}%" if text != "" else ""


def commands(dev: str) -> dict[str, str]:
    """The commands that make the page, by name. Every scale has a folder of its own."""
    made = {}
    for scale in SCALES:
        folder = PICTURES / f"x{scale}"
        sets = {name: f"{dev}/{name}/x{scale}" for name in SETS}
        for name, pictures in sets.items():
            made[f"x{scale}_{name}"] = (
                f"ape-sr evaluate -s {scale} -i {pictures} --threshold {THRESHOLDS} "
                f"--csv {folder}/{name}.csv --plot {folder}/{name}.png"
            )
            made[f"x{scale}_{name}_bf16"] = (
                f"ape-sr evaluate -s {scale} -i {pictures} --dtype bf16 --threshold {PRECISION_THRESHOLDS} "
                f"--csv {folder}/{name}_bf16.csv"
            )
        for name, pictures in ((PHOTOGRAPHS, f"{dev}/{PHOTOGRAPHS}"), ("Urban10", sets["Urban10"])):
            copies = "--copies " if (name, scale) == (PHOTOGRAPHS, 4) else ""
            made[f"x{scale}_{name}_plans"] = (
                f"python bench/plans.py -n {weights(scale)} -i {pictures} --fidelity {ASKED} {copies}"
                f"--json {folder}/{name}_plans.json"
            )
        crop = "--crop 1024 640 " if scale == 2 else ""  # four times as many pixels to run as at x4
        made[f"x{scale}_rules"] = (
            f"python bench/rules.py {crop}-i {dev}/{PHOTOGRAPHS} {' '.join(sets.values())} -n {weights(scale)} "
            f"--paper bench/paper_regressor_x{scale}.json --edges bench/edge_table_x{scale}.json -o {folder}"
        )
        made[f"x{scale}_curves"] = (
            f"python bench/curves.py -i {' '.join(sets.values())} -n {weights(scale)} "
            f"--paper bench/paper_regressor_x{scale}.json -o {folder}"
        )
    made["map"] = f"ape-sr upscale -i assets/photo.jpg -o {PICTURES}/photo.png --threshold 0.14 --exit-map"
    made["seams"] = f"python bench/seams.py -i {dev}/Urban10/x4 -n {weights(4)} --show assets -o {PICTURES}"
    return made


def weights(scale: int) -> Path:
    """Path of the weights that come with the package, from the repository's root."""
    return shipped_weights(scale).resolve().relative_to(ROOT)


def evaluated(scale: int, name: str) -> str:
    """The table of `ape-sr evaluate`."""
    header = [
        name,
        "PSNR Y",
        "SSIM Y",
        "PSNR RGB",
        "FLOPs",
        "body",
        "uncollapsed",
        "mean exit",
        "seconds",
        "patches per exit",
    ]
    shares = ("flops_share", "body_share", "paper_share")
    return table(
        header,
        [
            [
                row["method"],
                *(f"{float(row[key]):.{digits}f}" for key, digits in (("psnr_y", 3), ("ssim_y", 4), ("psnr_rgb", 3))),
                *(percent(row[key]) for key in shares),
                f"{float(row['mean_exit']):.2f}" if row["mean_exit"] else "",
                f"{float(row['seconds']):.2f}",
                row["patches_per_exit"],
            ]
            for row in measured(scale, name).values()
        ],
    )


def measured(scale: int, name: str) -> dict[str, dict[str, str]]:
    """The rows that `ape-sr evaluate` wrote, by method."""
    rows = csv.DictReader((ROOT / PICTURES / f"x{scale}" / f"{name}.csv").read_text().splitlines())
    return {row["method"]: row for row in rows}


def planned(path: Path) -> str:
    """The table of bench/plans.py."""
    outcomes = json.loads((ROOT / PICTURES / path).read_text())
    rows = []
    for copy in dict.fromkeys(outcome["copy"] for outcome in outcomes):
        for asked in sorted({outcome["asked"] for outcome in outcomes}):
            some = [outcome for outcome in outcomes if (outcome["copy"], outcome["asked"]) == (copy, asked)]
            saved, oracle, left, took = (
                mean([each[key] for each in some]) for key in ("saved", "oracle", "interpolated", "time")
            )
            cells = [value for each in some for value in each["cells"]]
            rows.append(
                [
                    f"{asked:g} dB, {copy}",
                    percent(saved),
                    percent(oracle),
                    percent(left),
                    percent(took),
                    f"{mean([each['picture'] for each in some]):.1f}",
                    f"{min(each['picture'] for each in some):.1f}",
                    percent(sum(value >= asked - 2 for value in cells) / len(cells)),
                    f"{sum(value < asked - 5 for value in cells)} of {len(cells)}",
                ]
            )
    header = [
        "asked",
        "saved",
        "oracle",
        "interpolated",
        "time",
        "pictures, dB",
        "worst",
        "parts within 2 dB",
        "5 dB or more below",
    ]
    return table(header, rows)


def compared_rules(scale: int) -> str:
    """What rules of bench/rules.py need for the same fidelity, and for the same loss against the ground truth."""
    found = json.loads((ROOT / PICTURES / f"x{scale}" / "rules.json").read_text())
    rows = []
    for rule, text in PLANNED.items():
        cells = [text]
        for known in found.values():
            curve = known["curves"][rule]
            for axis in ("work", "time"):
                cells.append(least(curve, axis, "fidelity", SAME_FIDELITY))
            cells.append(least(curve, "work", "psnr_y", known["full_psnr_y"] - SAME_LOSS))
        rows.append(cells)
    header = ["needed"]
    for name in found:
        header += [f"{name}: work for {SAME_FIDELITY} dB", "time", f"work for a loss of {SAME_LOSS} dB"]
    return table(header, rows)


def least(curve: dict[str, list[float]], axis: str, quality: str, wanted: float) -> str:
    """Where on `axis` a curve first has the wanted quality, interpolated linearly between its points."""
    points = sorted(zip(curve[axis], curve[quality], strict=True))
    if points[0][1] >= wanted:
        return f"at most {percent(points[0][0])}"
    for (x, low), (beyond, high) in pairwise(points):
        if low < wanted <= high:
            return percent(x + (beyond - x) * (wanted - low) / (high - low))
    return "not reached"


def precisions() -> str:
    """PSNR of bf16 beside that of float32."""
    rows = []
    for scale in SCALES:
        for name in SETS:
            float32, bf16 = measured(scale, name), measured(scale, f"{name}_bf16")
            for method in (f"threshold {t}" for t in PRECISION_THRESHOLDS.split()):
                psnr = [float(found[method]["psnr_y"]) for found in (float32, bf16)]
                shares = [percent(found[method]["body_share"]) for found in (float32, bf16)]
                rows.append([f"{name} x{scale}, {method}", *(f"{p:.3f}" for p in psnr), *shares])
    return table(["PSNR Y, dB", "float32", "bf16", "body, float32", "bf16"], rows)


def compared(scale: int) -> str:
    """The table of savings at a loss of at most 0.02 dB."""
    summary = json.loads((ROOT / PICTURES / f"x{scale}" / "curves.json").read_text())["summary"]
    rows = [[text, *(percent(summary[name][f"saving_{rule}"]) for name in SETS)] for rule, text in RULES.items()]
    counted = [("oracle", "oracle"), ("look-ahead", "look-ahead"), ("paper", "the paper's target")]
    rows += [
        [
            f"{text}, whole network, tail not collapsed",
            *(percent(summary[name][f"paper_count_{rule}"]) for name in SETS),
        ]
        for rule, text in counted
    ]
    rows.append(
        ["look-ahead's saving as a share of the oracle's", *(percent(summary[n]["of_the_oracles"]) for n in SETS)]
    )
    for field, text in (("least_above_paper", "smallest"), ("mean_above_paper", "mean")):
        values = [f"{summary[name][field]:+.3f} dB" for name in SETS]
        rows.append([f"{text} lead of look-ahead over the paper's target at equal FLOPs", *values])
    return table(["body FLOPs saved at a loss of at most 0.02 dB", *SETS], rows)


def seams() -> str:
    """The table of bench/seams.py, for the threshold at which patches leave early."""
    rows = json.loads((ROOT / PICTURES / "seams.json").read_text())
    threshold = max(row["threshold"] for row in rows)
    found = {(row["overlap"], row["blend"]): row for row in rows if row["threshold"] == threshold}
    overlaps = sorted({overlap for overlap, _ in found})
    cells = [
        [
            str(overlap),
            *(f"{found[overlap, blend]['excess']:.2f}" for blend in ("linear", "average")),
            *(f"{found[overlap, blend]['psnr_y']:.3f}" for blend in ("linear", "average")),
            f"{100 * (48 / (48 - overlap)) ** 2:.1f}%",
            f"{100 * found[overlap, 'linear']['flops']:.1f}%",
        ]
        for overlap in overlaps
    ]
    header = ["overlap", "excess, linear", "average", "PSNR Y, linear", "average", "area computed", "FLOPs here"]
    return table(header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder with Photo2K, Set5 and Urban10")
    parser.add_argument("--text-only", action="store_true", help="write the page anew from what was measured before")
    args = parser.parse_args()
    to_run = commands(str(args.input))
    if not args.text_only:
        for scale in SCALES:
            (ROOT / PICTURES / f"x{scale}").mkdir(parents=True, exist_ok=True)
        for command in to_run.values():
            run(command)
        shrink(ROOT / PICTURES / "photo_exits.png")
        (ROOT / PICTURES / "photo.png").unlink()
        (ROOT / PICTURES / "machine.txt").write_text(machine() + "\n")
    page = (Path(__file__).parent / "results_page.md").read_text()
    parts = {
        "machine": (ROOT / PICTURES / "machine.txt").read_text().strip(),
        **{f"command_{key}": shell(command) for key, command in commands("DEV").items()},
        **{f"table_x{scale}_{name}": evaluated(scale, name) for scale in SCALES for name in SETS},
        **{f"table_x{scale}_curves": compared(scale) for scale in SCALES},
        **{f"table_x{scale}_rules": compared_rules(scale) for scale in SCALES},
        **{
            f"table_x{scale}_{name}_plans": planned(Path(f"x{scale}") / f"{name}_plans.json")
            for scale in SCALES
            for name in (PHOTOGRAPHS, "Urban10")
        },
        **{f"table_plain_{name}": planned(Path("plain") / f"{name}.json") for name in PLAIN},
        "table_precisions": precisions(),
        "table_seams": seams(),
    }
    for key, text in parts.items():
        page = page.replace("{" + key + "}", text.rstrip("\n"))
    (ROOT / "docs" / "results.md").write_text(page)


def machine() -> str:
    """The machine and the version of PyTorch."""
    found = dict(line.split(maxsplit=1) for line in describe_environment().splitlines() if line.startswith("cpu "))
    return f"{found['cpu']}, {platform.machine()}, torch {torch.__version__}"


def shrink(path: Path) -> None:
    """Replace a PNG by a WebP with sides of at most 900 pixels."""
    with Image.open(path) as image:
        image.thumbnail((900, 900))
        image.save(path.with_suffix(".webp"), quality=80)
    path.unlink()


if __name__ == "__main__":
    main()
