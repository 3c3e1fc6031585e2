"""Python defines the numbers of the instruction table. csrc and docs/program.md have them too and are compared here."""

import re
from pathlib import Path

import pytest

from ape_kernels import collapse, table
from ape_kernels.backends import cpu
from ape_kernels.backends.cuda import launch, layout
from ape_kernels.program import Activation, Interpolation
from ape_kernels.table import Column, Opcode

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"


def numbers(header: str, start: str, end: str) -> dict[str, int]:
    """The constants ``kName = 1`` of a header between two strings, as ``NAME``."""
    text = (CSRC / header).read_text().partition(start)[2].partition(end)[0]
    found = re.findall(r"\bk([A-Z]\w*) = (-?\d+)[,;\s]", text)
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper(): int(value) for name, value in found}


ENUMS = {
    "program.h: Opcode": Opcode.__members__,
    "program.h: Activation": Activation.__members__,
    "program.h: Interpolation": Interpolation.__members__,
    "program.h: BorderClass": {name: getattr(collapse, name) for name in ("INTERIOR", "FIRST", "LAST", "ONLY")},
    "program.h: ElementType": {str(t).removeprefix("torch.").upper(): n for t, n in table.ELEMENT_TYPES.items()},
    "cpu/kernels.h: Layout": cpu.Layout.__members__,
}


@pytest.mark.parametrize("enum", ENUMS)
def test_enums(enum):
    header, name = enum.split(": ")
    assert numbers(header, f"enum {name} : int32_t {{", "}") == ENUMS[enum]


CONSTANTS = {
    "program.h": {"NO_BUFFER": table.NO_BUFFER, "WEIGHT_ALIGNMENT": table.WEIGHT_ALIGNMENT},
    "cpu/kernels.h": {"GROUP": cpu.GROUP, "SLICE": cpu.SLICE},
    "cuda/args.h": {"WHOLE": launch.WHOLE},
    "cuda/element.h": {"UNIT_CHANNELS": layout.UNIT},
}


@pytest.mark.parametrize("header", CONSTANTS)
def test_constants(header):
    assert numbers(header, "#pragma once", "\0").items() >= CONSTANTS[header].items()


def test_columns():
    row = (CSRC / "program.h").read_text().partition("struct Instruction {")[2]
    assert [column.name.lower() for column in Column] == re.findall(r"^  int32_t (\w+);", row, re.M)
    for name, column in re.findall(r"(\w+)\(\) const { return (\w+); }", row):
        assert Column[name.upper()] is Column[column.upper()], f"{name} stands in {Column[name.upper()].name}"


def test_page():
    page = (ROOT / "docs" / "program.md").read_text().partition("## Rows")[2].partition("## Weight layouts")[0]
    columns = {name: int(number) for number, name in re.findall(r"^\| (\d+) \| (\w+) \|", page, re.M)}
    assert columns == {column.name.lower(): column.value for column in Column if column is not Column.OPCODE}
    opcodes = re.findall(r"(?<=\| )([A-Z]+) (\d+)(?= \|)|^- ([A-Z]+) (\d+) ", page, re.M)
    assert {a or c: int(b or d) for a, b, c, d in opcodes} == {opcode.name: opcode.value for opcode in Opcode}
