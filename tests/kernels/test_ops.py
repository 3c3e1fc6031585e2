"""Schemas and fake kernels of every operation, for both backends."""

import pytest
import torch
from support import spread_network, test_patches
from test_rrdb import BasicSR as RRDBNet
from torch.library import opcheck

from ape_kernels import APEForward, PatchGrid, add_exits, ops

OPS = torch.ops.ape_kernels


@pytest.fixture
def packed(backend):
    return APEForward(spread_network(), backend=backend).packed


@pytest.mark.parametrize("forced", [False, True], ids=["predicted", "forced"])
def test_run_patches(backend, packed, forced):
    exit_at = torch.tensor([2, 0, 1, 3]) if forced else None
    opcheck(OPS.run_patches.default, (test_patches(4), packed.tensors, 0.5, exit_at, 4, 3, backend))


def test_run_stage(backend, packed):
    features = torch.rand(5, 16, 6, 7)
    opcheck(OPS.run_stage.default, (features, torch.tensor([4, 0, 2]), packed.tensors, 1, 0.5, None, backend))


def test_upscale(backend, packed):
    arguments = (test_patches(2, 9, 12), packed.tensors, (4, 3, 1), 0.5, None, (5, 2), "linear", backend)
    opcheck(OPS.upscale.default, arguments)


def test_upscale_of_squares(backend):
    packed = APEForward(add_exits(RRDBNet(scale=2), 1), backend=backend).packed
    arguments = (test_patches(2, 9, 12), packed.tensors, (4, 3, 2), 0.5, None, (6, 2), "linear", backend)
    opcheck(OPS.upscale.default, arguments)


def test_run_image(backend, packed):
    program = (*packed.tensors, packed.sharing)
    exit_at = torch.tensor([[[1, -1]], [[0, 2]]])
    arguments = (test_patches(2, 9, 12), program, packed.shape, exit_at, (9, 4), test_patches(2, 9, 12), backend)
    opcheck(OPS.run_image.default, arguments)


def test_split(backend):
    starts = torch.tensor([0, 3, 4], dtype=torch.int32)
    opcheck(OPS.split.default, (torch.rand(2, 3, 9, 9), starts, starts, 5, 5, backend))


def test_merge(backend):
    grid = PatchGrid(9, 7, 5, 1, 2)
    patches = torch.rand(2 * grid.shape[0] * grid.shape[1], 3, 10, 10)
    opcheck(OPS.merge.default, (patches, grid.row_blend, grid.column_blend, 2, grid.shape[0], backend))


def test_wrong_dtype_is_named(backend, packed):
    with pytest.raises(ValueError, match=r"patches: expected float32 \[P, C, h, w\] on cpu, got torch.float64"):
        OPS.run_patches(test_patches(1).double(), packed.tensors, 0.5, None, 4, 3, backend)


def test_ids_with_strides_are_read_as_they_stand(backend, packed):
    exit_at = torch.tensor([2, 9, 0, 9, 1, 9, 3, 9])[::2]
    run = lambda ids: OPS.run_patches(  # noqa: E731
        test_patches(4), packed.tensors, 0.5, ids, 4, 3, backend
    )
    sr, exit_index, _ = run(exit_at)
    assert exit_index.tolist() == [2, 0, 1, 3]
    assert torch.equal(sr, run(exit_at.contiguous())[0])
    active, features = torch.tensor([4, 9, 1, 9])[::2], torch.rand(5, 16, 6, 7)
    stage = lambda ids: OPS.run_stage(features, ids, packed.tensors, 1, 0.5, None, backend)  # noqa: E731
    assert sorted(stage(active)[1].tolist()) == [1, 4]


@pytest.mark.parametrize(
    "name, ids, message",
    [
        ("exit_at", torch.zeros(4, dtype=torch.int64, device="meta"), r"on cpu, got torch.int64 \[4\] on meta"),
        ("exit_at", torch.zeros(4), r"int64 \[4\] on cpu, got torch.float32"),
        ("exit_at", torch.zeros(3, dtype=torch.int64), r"int64 \[4\] on cpu, got torch.int64 \[3\]"),
        ("active", torch.zeros(2, dtype=torch.int64, device="meta"), r"on cpu, got torch.int64 \[2\] on meta"),
        ("active", torch.zeros(2, dtype=torch.int32), r"int64 \[A\] on cpu, got torch.int32"),
        ("active", torch.zeros(2, 1, dtype=torch.int64), r"int64 \[A\] on cpu, got torch.int64 \[2, 1\]"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_ids_of_another_device_dtype_or_shape_are_refused(backend, packed, name, ids, message):
    """A kernel would read host memory, or beyond the end."""
    with pytest.raises(ValueError, match=f"{name}: expected .*{message}"):
        if name == "exit_at":
            ops.run_patches(test_patches(4), packed.tensors, 0.5, ids, 4, 3, backend)
        else:
            ops.run_stage(torch.rand(5, 16, 6, 7), ids, packed.tensors, 1, 0.5, None, backend)


def test_weights_packed_for_another_device_are_refused(backend, packed):
    with pytest.raises(ValueError, match="weights: expected on cpu, packed for it, got meta"):
        ops.run_patches(test_patches(4), [packed.table, packed.weights.to("meta")], 0.5, None, 4, 3, backend)


def test_unknown_stage_is_named(backend, packed):
    with pytest.raises(ValueError, match="stage: expected 0 to 3, got 4"):
        OPS.run_stage(torch.rand(1, 16, 4, 4), torch.tensor([0]), packed.tensors, 4, 0.5, None, backend)


PATCHES, IMAGE = test_patches(4), torch.rand(1, 3, 9, 8)
STARTS = torch.tensor([0, 3], dtype=torch.int32)


def run_patches(backend, packed, **fault):
    table, weights = (fault.pop(name, getattr(packed.tensors, name)) for name in ("table", "weights"))
    given = dict(patches=PATCHES, exit_at=None) | fault
    OPS.run_patches(given["patches"], [table, weights], 0.5, given["exit_at"], 4, 3, backend)


def run_stage(backend, packed, **fault):
    given = dict(features=torch.rand(5, 16, 6, 7), active=torch.tensor([0, 4]), exit_at=None) | fault
    OPS.run_stage(given["features"], given["active"], packed.tensors, 1, 0.5, given["exit_at"], backend)


def split(backend, packed, **fault):
    given = dict(image=IMAGE, row_start=STARTS, column_start=STARTS, height=5) | fault
    OPS.split(given["image"], given["row_start"], given["column_start"], given["height"], 5, backend)


def merge(backend, packed, **fault):
    grid = PatchGrid(9, 7, 5, 1, 2)
    given = dict(patches=torch.rand(4, 3, 10, 10), rows=list(grid.row_blend), columns=list(grid.column_blend)) | fault
    OPS.merge(given["patches"], given["rows"], given["columns"], 1, 2, backend)


def changed(place, value):
    """A blend for `merge` with one number of its index changed."""
    index, weight = (tensor.clone() for tensor in PatchGrid(9, 7, 5, 1, 2).row_blend)
    index[place] = value
    return [index, weight]


FAULTS = {
    "table-dtype": (run_patches, dict(table=torch.zeros(3, 16)), r"table: expected int32 \[rows, \d+\] on cpu"),
    "table-width": (
        run_patches,
        dict(table=torch.zeros(3, 5, dtype=torch.int32)),
        r"table: expected int32 \[rows, \d+\]",
    ),
    "weights-shape": (run_patches, dict(weights=torch.zeros(2, 2)), r"weights: expected float32 .* \[N\]"),
    "weights-dtype": (run_patches, dict(weights=torch.zeros(2).long()), r"weights: expected float32 .*got torch.int64"),
    "a-stage-too-many": (run_patches, dict(exit_at=torch.tensor([0, 1, 2, 4])), "exit_at: expected 0 to 3, got 0 to 4"),
    "a-stage-below": (run_patches, dict(exit_at=torch.tensor([0, 1, 2, -1])), "exit_at: expected 0 to 3, got -1 to 2"),
    "a-row-too-many": (run_stage, dict(active=torch.tensor([0, 5])), "active: expected 0 to 4, got 0 to 5"),
    "a-row-below": (run_stage, dict(active=torch.tensor([-1, 0])), "active: expected 0 to 4, got -1 to 0"),
    "image-dtype": (split, dict(image=IMAGE.long()), r"image: expected float32 .* \[B, C, H, W\], got torch.int64"),
    "starts-dtype": (split, dict(row_start=STARTS.long()), r"row_start: expected int32 \[R\] on cpu, got torch.int64"),
    "beyond-the-edge": (split, dict(row_start=STARTS + 2), "row_start: expected 0 to 4, got 2 to 5"),
    "before-the-edge": (split, dict(column_start=STARTS - 1), "column_start: expected 0 to 3, got -1 to 2"),
    "larger-than-the-image": (split, dict(height=10), "row_start: expected patches of 1 to 9 pixels, got 10"),
    "patches-missing": (merge, dict(patches=torch.rand(3, 3, 10, 10)), "patches: expected a multiple of 1 x 2, got 3"),
    "another-patch": (merge, dict(rows=changed((0, 0, 3), 2)), "rows index: expected 0 to 1, got 0 to 2"),
    "a-pixel-outside": (merge, dict(rows=changed((0, 1, 3), 10)), "rows index: expected 0 to 9, got 0 to 10"),
    "index-dtype": (
        merge,
        dict(columns=[t.long() for t in PatchGrid(9, 7, 5, 1, 2).column_blend]),
        r"columns index: expected int32 \[K, 2, size\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_kernels_would_read_outside_of_is_refused(backend, packed, fault):
    operation, given, message = FAULTS[fault]
    operation(backend, packed)  # is right without the fault
    with pytest.raises(ValueError, match=message):
        operation(backend, packed, **given)


def test_strided_arguments_are_read_as_they_stand(backend, packed):
    starts = torch.tensor([0, 9, 3, 9], dtype=torch.int32)[::2]
    assert torch.equal(OPS.split(IMAGE, starts, starts, 5, 5, backend), OPS.split(IMAGE, STARTS, STARTS, 5, 5, backend))
    grid = PatchGrid(9, 7, 5, 1, 2)
    patches, blends = torch.rand(4, 3, 10, 10), [list(grid.row_blend), list(grid.column_blend)]
    strided = [[t.repeat_interleave(2, -1)[..., ::2] for t in blend] for blend in blends]
    assert torch.equal(OPS.merge(patches, *strided, 1, 2, backend), OPS.merge(patches, *blends, 1, 2, backend))
