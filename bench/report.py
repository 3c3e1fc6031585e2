"""python bench/report.py out.json: how many times faster each row's rivals are beaten; a table, JSON and a plot.

Writes <out>.ratios.json and <out>.png beside the file that `pytest bench --benchmark-json` made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PREFIX = "ape_kernels "  # of our rows


def ours(rows: dict[str, dict[str, float]]) -> str | None:
    """Our row that the others are compared with: the fastest backend, None without one."""
    return min((name for name in rows if name.startswith(PREFIX)), key=lambda name: rows[name]["ms"], default=None)


def ratios(benchmarks: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """By group and row: median milliseconds, and how many times faster our fastest row is (1 for itself)."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for entry in benchmarks:
        info, median = entry["extra_info"], entry["stats"]["median"]
        row = {"ms": median * 1e3, "dropped": info.get("dropped", 0)}
        row |= {name: info[name] for name in ("raw_gflops", "body_over_raw", "floor_ms") if name in info}
        groups.setdefault(entry["group"], {})[info.get("row", entry["name"])] = row
    for rows in groups.values():
        if best := ours(rows):
            for row in rows.values():
                row["times"] = row["ms"] / rows[best]["ms"]
    return groups


def table(groups: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, a section a group."""
    lines = []
    for group, rows in groups.items():
        best = ours(rows)
        unit = "ms a patch" if group.startswith("cpu") else "ms"
        lines += [f"### {group}", "", f"| row | {unit} | {best} is faster by |", "|---|---|---|"]
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["ms"]):
            times = f"{row['times']:.2f}" if "times" in row else ""
            lines.append(f"| {name} | {row['ms']:.2f} | {times} |")
        facts = rows.get(best, {})
        if "body_over_raw" in facts:
            lines += ["", f"Body's FLOP/s over the raw loop's ({facts['raw_gflops']:.0f} GFLOP/s a core): "]
            lines[-1] += f"{facts['body_over_raw']:.2f}, direct-convolution count."
        if "floor_ms" in facts:
            lines += ["", f"Floor by the ceilings measured in the same run: {facts['floor_ms']:.2f} ms."]
        lines.append("")
    return "\n".join(lines)


def plot(groups: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Bars of milliseconds a patch, a panel a group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(groups), 1, figsize=(8, 0.6 + 2.0 * len(groups)), squeeze=False)
    for axis, (group, rows) in zip(axes[:, 0], groups.items(), strict=True):
        names = sorted(rows, key=lambda name: rows[name]["ms"])
        colours = ["tab:orange" if name == ours(rows) else "tab:blue" for name in names]
        axis.barh(names, [rows[name]["ms"] for name in names], color=colours)
        axis.invert_yaxis()
        axis.set_title(group, fontsize=9)
        axis.set_xlabel("ms a patch" if group.startswith("cpu") else "ms", fontsize=8)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """The command."""
    if len(sys.argv) != 2:
        sys.exit("usage: python bench/report.py out.json")
    source = Path(sys.argv[1])
    groups = ratios(json.loads(source.read_text())["benchmarks"])
    print(table(groups))
    source.with_suffix(".ratios.json").write_text(json.dumps(groups, indent=2) + "\n")
    plot(groups, source.with_suffix(".png"))


if __name__ == "__main__":
    main()
