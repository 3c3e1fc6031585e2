"""Arguments of the native core's functions that the cpu and the cuda backend share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ape_kernels.geometry import AxisBlend
from ape_kernels.table import PackedProgram


class NativeCall(NamedTuple):
    """The arguments of a call of the core, by name, and the tensor that the call writes."""

    arguments: dict[str, int]
    result: Tensor


def address(tensor: Tensor | None) -> int:
    """The address of the first element. 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def program_arguments(packed: PackedProgram) -> dict[str, int]:
    """The arguments that every function which runs a program has."""
    return dict(
        table=packed.table.data_ptr(),
        table_rows=len(packed.table),
        weights=packed.weights.data_ptr(),
        weight_count=len(packed.weights),
    )


def split_call(image: Tensor, row_start: Tensor, column_start: Tensor, patch_shape: tuple[int, int]) -> NativeCall:
    """The call for `split`; `ape_kernels.ops` describes the arguments."""
    batch, channels, height, width = image.shape
    rows, columns = len(row_start), len(column_start)
    patches = image.new_empty(batch * rows * columns, channels, *patch_shape)
    arguments = dict(
        image=image.data_ptr(),
        patches=patches.data_ptr(),
        row_start=row_start.data_ptr(),
        column_start=column_start.data_ptr(),
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        patch_rows=rows,
        patch_columns=columns,
        patch_height=patch_shape[0],
        patch_width=patch_shape[1],
    )
    return NativeCall(arguments, patches)


def merge_call(patches: Tensor, rows: AxisBlend, columns: AxisBlend, batch: int, patch_rows: int) -> NativeCall:
    """The call for `merge`; `ape_kernels.ops` describes the arguments."""
    count, channels, patch_height, patch_width = patches.shape
    height, width = rows.index.shape[2], columns.index.shape[2]
    image = patches.new_empty(batch, channels, height, width)
    arguments = dict(
        patches=patches.data_ptr(),
        image=image.data_ptr(),
        row_index=rows.index.data_ptr(),
        row_weight=rows.weight.data_ptr(),
        column_index=columns.index.data_ptr(),
        column_weight=columns.weight.data_ptr(),
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        patch_rows=patch_rows,
        patch_columns=count // (batch * patch_rows),
        patch_height=patch_height,
        patch_width=patch_width,
        rows_covering=len(rows.index),
        columns_covering=len(columns.index),
    )
    return NativeCall(arguments, image)
