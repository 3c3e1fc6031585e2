import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import literal_merge, literal_split

from ape_kernels import PatchGrid
from ape_kernels.run.patches import merge, split

PATCH_BACKENDS = ["torch", "cpu"]
sizes = st.integers(1, 70)


@st.composite
def grids(draw: st.DrawFn) -> PatchGrid:
    patch = draw(st.integers(1, 24))
    return PatchGrid(
        draw(sizes),
        draw(sizes),
        patch,
        draw(st.integers(0, patch - 1)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from(["linear", "average"])),
    )


@pytest.mark.parametrize("backend", PATCH_BACKENDS, ids=lambda b: f"backend={b}")
class TestSplitAndMerge:
    @given(grid=grids(), batch=st.integers(1, 2))
    def test_every_pixel_comes_back(self, backend, grid, batch):
        image = torch.rand(batch, 3, grid.height, grid.width)
        patches = split(grid, image, backend)
        assert patches.shape == (batch * grid.shape[0] * grid.shape[1], 3, *grid.patch_shape)
        enlarged = patches.repeat_interleave(grid.scale, 2).repeat_interleave(grid.scale, 3)
        merged = merge(grid, enlarged, batch, backend)
        expected = image.repeat_interleave(grid.scale, 2).repeat_interleave(grid.scale, 3)
        torch.testing.assert_close(merged, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("rows, columns", [(1, 1), (2, 3), (4, 2)])
    @pytest.mark.parametrize("overlap", [0, 2, 5], ids=lambda o: f"overlap={o}")
    def test_average_equals_the_authors_merge_where_the_step_divides(self, backend, rows, columns, overlap):
        patch, scale = 11, 3
        step = patch - overlap
        grid = PatchGrid((rows - 1) * step + patch, (columns - 1) * step + patch, patch, overlap, scale, "average")
        image = torch.rand(1, 3, grid.height, grid.width)
        patches = split(grid, image, backend)
        assert torch.equal(patches, literal_split(image, patch, step))
        sr = torch.rand(len(patches), 3, patch * scale, patch * scale)
        expected = literal_merge(sr, rows, columns, step * scale)
        torch.testing.assert_close(merge(grid, sr, 1, backend), expected, atol=1e-6, rtol=0)

    def test_patches_are_row_major_within_an_image(self, backend):
        image = torch.arange(2 * 6 * 9.0).view(2, 1, 6, 9)
        patches = split(PatchGrid(6, 9, 3, 0), image, backend)
        assert patches[:, 0, 0, 0].tolist() == [0, 3, 6, 27, 30, 33, 54, 57, 60, 81, 84, 87]

    def test_channels_last_and_strided_images(self, backend):
        grid = PatchGrid(20, 30, 8, 2)
        image = torch.rand(2, 3, 40, 60)[:, :, ::2, ::2]
        expected = split(grid, image.contiguous(), backend)
        assert torch.equal(split(grid, image, backend), expected)
        assert torch.equal(split(grid, image.contiguous(memory_format=torch.channels_last), backend), expected)


@given(grid=grids())
def test_weights_sum_to_one_and_stay_inside_patches(grid):
    for blend, starts, size in (
        (grid.row_blend, grid.row_starts, grid.height),
        (grid.column_blend, grid.column_starts, grid.width),
    ):
        patch, pixel = blend.index.unbind(1)
        torch.testing.assert_close(blend.weight.sum(0), torch.ones(size * grid.scale))
        origin = torch.tensor(starts)[patch] * grid.scale + pixel
        used = blend.weight > 0
        assert torch.equal(origin[used], torch.arange(size * grid.scale).expand_as(origin)[used])


def test_linear_blend_ramps_from_one_patch_to_the_next():
    weight = PatchGrid(8, 1, 5, 2).row_blend.weight.numpy()
    np.testing.assert_allclose(weight[:, 3:5].max(axis=0), [0.75, 0.75])


def test_both_backends_merge_alike():
    grid = PatchGrid(37, 41, 12, 3, 2)
    sr = torch.rand(grid.shape[0] * grid.shape[1], 3, 24, 24)
    torch.testing.assert_close(merge(grid, sr, 1, "cpu"), merge(grid, sr, 1, "torch"), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(height=0, width=5), "image: expected at least 1x1"),
        (dict(height=5, width=5, patch_size=0), "patch_size: expected"),
        (dict(height=5, width=5, patch_size=4, overlap=4), "overlap: expected"),
        (dict(height=5, width=5, overlap=-1), "overlap: expected"),
        (dict(height=5, width=5, blend="cubic"), "blend: expected"),
    ],
    ids=lambda v: next(reversed(v)) if isinstance(v, dict) else "",
)
def test_bad_geometry_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchGrid(**arguments)


def test_images_and_patches_of_another_size_are_refused():
    grid = PatchGrid(10, 10, 5, 0)
    with pytest.raises(ValueError, match=r"image: expected \[B, C, 10, 10\], got \[1, 3, 9, 10\]"):
        split(grid, torch.rand(1, 3, 9, 10))
    with pytest.raises(ValueError, match=r"patches: expected \[4, C, 5, 5\], got \[3, 3, 5, 5\]"):
        merge(grid, torch.rand(3, 3, 5, 5))
