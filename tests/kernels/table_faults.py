"""Malformed tables of `mixed_program` that every native backend refuses with the same words (csrc/table.h)."""

from torch import Tensor

from ape_kernels.table import Column, Opcode

# The first row of an opcode, a column of it, what is written there, and what is said of it.
FAULTS = {
    "unknown-opcode": (Opcode.CONV, Column.OPCODE, 17, "unknown opcode"),
    "module": (Opcode.CONV, Column.OPCODE, Opcode.MODULE, "unknown opcode"),
    "buffer-out-of-range": (Opcode.CONV, Column.SRC, 9, "no such buffer"),
    "negative-buffer": (Opcode.CONV, Column.DST, -2, "no such buffer"),
    "buffers-out-of-order": (Opcode.BUFFER, Column.SRC, 1, "buffers come first, in order"),
    "no-channels": (Opcode.BUFFER, Column.IN_CHANNELS, 0, "channels: expected 1 to 65536"),
    "resolution": (Opcode.BUFFER, Column.RESOLUTION, 65, "resolution: expected 1 to 64"),
    "channels": (Opcode.CONV, Column.IN_CHANNELS, 99, "channels differ from the buffer's"),
    "weights-past-the-end": (Opcode.CONV, Column.WEIGHT, 1 << 30, "weights outside the weight buffer"),
    "weights-not-aligned": (Opcode.CONV, Column.WEIGHT, 8, "weights outside the weight buffer"),
    "negative-bias": (Opcode.EXIT, Column.BIAS, -16, "bias outside the weight buffer"),
    "even-kernel": (Opcode.CONV, Column.KERNEL, 2, "kernel: expected 1, 3 or 5"),
    "activation": (Opcode.CONV, Column.ACTIVATION, 9, "unknown activation"),
    "layout": (Opcode.CONV, Column.MODE, 14, "unknown layout of the weights"),
    "border-classes": (Opcode.CONV, Column.MODE, 1, "a convolution has no border classes"),
    "stage": (Opcode.STAGE, Column.DST, 0, "channels differ from the buffer's"),
    "exit-in-the-head": (Opcode.CONV, Column.OPCODE, Opcode.EXIT, "an exit ends a stage"),
    "early-reconstruction": (Opcode.CONV, Column.OPCODE, Opcode.RECONSTRUCT, "the reconstruction ends the tail"),
    "source-alone": (Opcode.EXIT, Column.OPCODE, Opcode.SOURCE, "a source without its convolution"),
    "written-while-read": (Opcode.CONV, Column.DST, 0, "a convolution cannot write the buffer it reads"),
    "interpolation": (Opcode.UPSAMPLE, Column.INTERPOLATION, 2, "unknown interpolation"),
    "factor": (Opcode.UPSAMPLE, Column.UPSCALE, 3, "resolutions differ"),
    "no-factor": (Opcode.UPSAMPLE, Column.UPSCALE, 0, "upscale: expected 1 to 64"),
    "hidden": (Opcode.ATTENTION, Column.HIDDEN, 0, "hidden: expected at least 1"),
    "late-stage": (Opcode.RECONSTRUCT, Column.OPCODE, Opcode.STAGE, "a stage after the tail"),
    "late-tail": (Opcode.RECONSTRUCT, Column.OPCODE, Opcode.TAIL, "the tail follows the stages"),
    "shuffle": (Opcode.RECONSTRUCT, Column.UPSCALE, 5, "channels do not shuffle"),
}


def malformed(table: Tensor, opcode: Opcode, column: Column, value: int, message: str) -> tuple[Tensor, str]:
    """A copy of `table` with the fault, and the message (a pattern) that names its row."""
    table, row = table.clone(), int((table[:, Column.OPCODE] == opcode).nonzero()[0])
    table[row, column] = value
    found = row + (value == Opcode.SOURCE)  # where a source without its convolution shows
    return table, f"table: row {found}: {message}"
