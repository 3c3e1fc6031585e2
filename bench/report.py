"""Our fastest row compared with each of its rivals: a table, JSON and a plot.

    python bench/report.py out.json ...

Takes files that `pytest bench --benchmark-json` has made. Writes <out>.ratios.json and <out>.png beside the first file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PREFIX = "ape_kernels "  # of our rows
FACTS = ("raw_gflops", "body_over_raw", "floor_ms", "body_off", "cores_busy", "speedup", "raw_speedup")


def ours(rows: dict[str, dict[str, float]]) -> str | None:
    """Our row that the others are compared with: the fastest one; None without any."""
    return min((name for name in rows if name.startswith(PREFIX)), key=lambda name: rows[name]["ms"], default=None)


def ratios(benchmarks: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """For each group and row: median milliseconds, samples, `FACTS`, and `times`, the ratio to our fastest row."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for entry in benchmarks:
        info, median = entry["extra_info"], entry["stats"]["median"]
        row = {"ms": median * 1e3, "samples": entry["stats"]["rounds"], "dropped": info.get("dropped", 0)}
        row |= {name: info[name] for name in FACTS if name in info}
        groups.setdefault(entry["group"], {})[info.get("row", entry["name"])] = row
    for rows in groups.values():
        if best := ours(rows):
            for row in rows.values():
                row["times"] = row["ms"] / rows[best]["ms"]
    return groups


def source_of(run: dict) -> dict[str, str]:
    """Where and how the results in one file of pytest-benchmark were measured."""
    machine, commit = run["machine_info"], run["commit_info"]
    return {
        "date": run["datetime"][:10],
        "commit": commit["id"] + (", changed" if commit["dirty"] else ""),
        "cpu": f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cpu'].get('count', '?')} cores",
        "python": machine["python_version"],
        "packages": machine["packages"],
        "settings": machine["settings"],
    }


def unit(group: str) -> str:
    """The unit of a group's times."""
    return "ms" if group.startswith("gpu") else "ms per picture" if "picture" in group else "ms per patch"


def table(groups: dict[str, dict[str, dict[str, float]]]) -> str:
    """A Markdown table per group, each in a section of its own."""
    lines = []
    for group, rows in groups.items():
        best = ours(rows)
        head = ["row", unit(group), "samples (dropped)", *([f"{best} is faster by"] if best else [])]
        lines += [f"### {group}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["ms"]):
            cells = [name, f"{row['ms']:.2f}", f"{row['samples']} ({row['dropped']})"]
            cells += [f"{row['times']:.2f}"] if best else []
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *(f"{note}\n" for note in notes(rows))]
    return "\n".join(lines)


def notes(rows: dict[str, dict[str, float]]) -> list[str]:
    """Sentences about what else was measured in a group."""
    facts, said = rows.get(ours(rows), {}), []
    if "body_over_raw" in facts:
        said.append(
            f"The body's FLOP/s divided by those of the raw loop ({facts['raw_gflops']:.0f} GFLOP/s per core): "
            f"{facts['body_over_raw']:.2f}, counted as direct convolutions."
        )
    if "floor_ms" in facts:
        said.append(f"Shortest time by the ceilings measured in the same run: {facts['floor_ms']:.2f} ms.")
    for name, row in rows.items():
        if "body_off" in row:
            said.append(
                f"{name}: the body's time differs by {row['body_off']:+.1%} from its share of the FLOPs; "
                f"cores are busy {row['cores_busy']:.1%} of the time."
            )
    one = next(iter(rows.values()))
    if "speedup" in one:
        raw = one.get("raw_speedup", float("nan"))
        said.append(f"All threads are {one['speedup']:.2f} times as fast as one; the raw loop: {raw:.2f} times.")
    return said


def plot(groups: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Bars of times, one panel per group. Each bar shows its time and the ratio to ours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [0.8 + 0.28 * len(rows) for rows in groups.values()]  # inches: title and axis, then one bar per row
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (group, rows) in zip(axes[:, 0], groups.items(), strict=True):
        names = sorted(rows, key=lambda name: rows[name]["ms"])
        colours = ["tab:orange" if name == ours(rows) else "tab:blue" for name in names]
        bars = axis.barh(names, [rows[name]["ms"] for name in names], color=colours, height=0.7)
        times = [f" ({rows[name]['times']:.1f}x)" if "times" in rows[name] else "" for name in names]
        labels = [
            f"{rows[name]['ms']:.{1 if rows[name]['ms'] < 100 else 0}f}{more}"
            for name, more in zip(names, times, strict=True)
        ]
        axis.bar_label(bars, labels, padding=3, fontsize=8)
        axis.margins(x=0.18)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(group, fontsize=9, loc="left")
        axis.set_xlabel(unit(group), fontsize=8)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run the command."""
    sources = [Path(name) for name in sys.argv[1:]]
    if not sources:
        sys.exit("usage: python bench/report.py out.json ...")
    source = sources[0]
    runs = [json.loads(path.read_text()) for path in sources]
    groups = ratios([entry for run in runs for entry in run["benchmarks"]])
    print(table(groups))
    made = {"measured": [source_of(run) for run in runs], "groups": groups}
    source.with_suffix(".ratios.json").write_text(json.dumps(made, indent=2) + "\n")
    plot(groups, source.with_suffix(".png"))


if __name__ == "__main__":
    main()
