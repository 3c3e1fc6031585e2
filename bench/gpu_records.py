"""The results of bench/gpu.py: JSON lines, one per row or step, and the table that is made from them."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = "results.jsonl"
OURS = ("cuda", "triton")


class Records:
    """Appends to OUT/results.jsonl. Each line is on disk before the next one is measured."""

    def __init__(self, out: Path) -> None:
        self.path = out / FILE
        self.failed = False

    def add(self, kind: str, **fields: Any) -> None:
        """Append one line."""
        line = json.dumps({"kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **fields})
        line = line.replace(f"{ROOT}{os.sep}", "")  # results are read on other machines too
        with open(self.path, "a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def step(self, name: str, ended: str, **fields: Any) -> None:
        """Record how a step ended."""
        self.failed |= ended.startswith("failed")
        self.add("step", step=name, ended=ended, **fields)


def read(out: Path) -> list[dict[str, Any]]:
    """All lines, except a line that an interruption has cut off."""
    found = []
    path = out / FILE
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def table(out: Path) -> str:
    """The latest row of each kind: milliseconds, share of the matrix product's speed, and factor to torch's best."""
    records = read(out)
    lines = []
    for record in records:
        if record["kind"] == "environment":
            lines = [f"{name}: {value}" for name, value in record.items() if name not in ("kind", "time")]
    rows: dict[tuple[str, int, str], dict[str, dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == "row":
            key = (record["network"], record["patches"], record["exits"])
            rows.setdefault(key, {})[record["row"]] = record
    for key, group in sorted(rows.items(), key=lambda item: item[0]):
        network, patches, exits = key
        lines += ["", f"{network}, {patches} patches, {exits}"]
        rivals = [name for name in rows.get((network, patches, "full depth"), {}) if name.split()[0] not in OURS]
        best = min((milliseconds(rows[network, patches, "full depth"][name]) for name in rivals), default=None)
        for name, record in sorted(group.items(), key=lambda item: milliseconds(item[1])):
            took = milliseconds(record)
            cells = [f"{took:9.3f} ms", f"{record['tflop'] / took * 1e3:6.1f} TFLOP/s"]
            cells.append(f"{record['tflop'] / took * 1e3 / record['product_tflops']:5.0%} of the product's")
            if best:
                cells.append(f"{best / took:5.2f}x torch's best")
            full = rows.get((network, patches, "full depth"), {}).get(name)
            if full and exits != "full depth":
                cells.append(f"{milliseconds(full) / took:5.2f}x own full depth")
            lines.append(f"  {name:<44} {'  '.join(cells)}")
    lines.append("")
    measured = {(key, row) for key, group in rows.items() for row in group}
    refused = {
        ((r["network"], r["patches"], r["exits"]), r["row"]): r["why"] for r in records if r["kind"] == "refused"
    }
    for (key, row), why in refused.items():
        if (key, row) not in measured:
            lines.append(f"not run: {row}, {key[0]}, {key[1]} patches: {why}")
    for record in records:
        if record["kind"] == "auto":
            lines.append(f"auto, first {record['what']}: {record['seconds']} s; {'; '.join(record['told'])}")
    for record in {r["step"]: r for r in records if r["kind"] == "step"}.values():
        lines.append(f"step {record['step']:<14} {record.get('seconds', 0):6.1f} s  {record['ended']}")
        if record["ended"] != "ok":
            lines += [f"    {line}" for line in record.get("tail", [])[-6:]]
    return "\n".join(lines)


def milliseconds(record: dict[str, Any]) -> float:
    """The median sample of a row."""
    return statistics.median(record["ms"])
