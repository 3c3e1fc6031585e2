"""Statistics of cells: what they are, and that the native form gives the same."""

import math

import pytest
import torch
from torch.library import opcheck

from ape_kernels import ops
from ape_kernels.native import missing

NATIVE = pytest.mark.skipif(missing() is not None, reason=str(missing()))
ORDER = ("laplacian", "mixed", "across", "down")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=NATIVE)])
def test_a_ripple_along_the_rows_is_seen_where_it_should_be(backend, channels):
    row = 0.5 + 0.1 * (-1.0) ** torch.arange(24)
    image = row.expand(1, channels, 48, 24).contiguous()
    first, fourth, colour, luma = ops.statistics(image, 24, 1.0, backend)[0, 0, 0].split([4, 4, 2, 1])
    # second derivatives along a row are four times the amplitude; at the border of the image, half of that
    inner, border = 22 / 24, 2 / 24
    square = math.log(0.16 * inner + 0.04 * border) / 2
    power = math.log(0.4**4 * inner + 0.2**4 * border) / 4
    scale = math.log(219 / 255) if channels == 3 else 0.0  # of the luma's weights
    by_name = dict(zip(ORDER, first.tolist(), strict=True))
    assert by_name["across"] == pytest.approx(square + scale, abs=1e-4)
    assert by_name["laplacian"] == pytest.approx(square + scale, abs=1e-4)
    assert by_name["down"] == by_name["mixed"] == pytest.approx(math.log(1e-8) / 2)
    assert fourth[2] == pytest.approx(power + scale, abs=1e-4)
    assert colour.tolist() == pytest.approx([math.log(1e-8) / 2] * 2)
    assert luma == pytest.approx(0.5 * math.exp(scale), abs=1e-4)


def test_colour_differences_are_red_and_blue_less_green():
    image = torch.full((1, 3, 16, 16), 0.5)
    image[0, 2, 8, 8] += 0.2  # the Laplacian of one blue pixel: -4 times it, and once at each neighbour
    colour = ops.statistics(image, 16, 1.0, "torch")[0, 0, 0, 8:10]
    assert colour.tolist() == pytest.approx([math.log(1e-8) / 2, math.log(0.04 * 20 / 256) / 2], abs=1e-4)


@NATIVE
@pytest.mark.parametrize("value_range", [1.0, 255.0])
@pytest.mark.parametrize(
    ("shape", "cell"),
    [((2, 3, 97, 131), 48), ((1, 3, 60, 50), 16), ((1, 1, 50, 49), 24), ((1, 3, 1, 5), 48), ((3, 4, 33, 34), 7)],
)
def test_native_form_agrees(shape, cell, value_range):
    image = torch.rand(shape) * torch.rand(shape[0], 1, 1, 1)
    image[..., : shape[2] // 2, :] = 0.3  # flat: mean squares at their least
    image *= value_range
    expected = ops.statistics(image, cell, value_range, "torch")
    got = ops.statistics(image, cell, value_range, "cpu")
    assert got.shape == expected.shape == (shape[0], -(-shape[2] // cell), -(-shape[3] // cell), 11)
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() < 2e-4


@NATIVE
def test_bit_for_bit_the_same_for_any_threads_and_batch():
    images = torch.rand(3, 3, 100, 130)
    expected = torch.cat([ops.statistics(images[i : i + 1], 24, 1.0, "cpu") for i in range(3)])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(ops.statistics(images, 24, 1.0, "cpu"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["torch", pytest.param("cpu", marks=NATIVE)])
def test_a_cell_sees_one_pixel_around_it_and_no_more(name):
    image = torch.rand(1, 3, 80, 80)
    changed = image.clone()
    changed[..., 32:48, 32:48] = torch.rand(1, 3, 16, 16)
    differ = (ops.statistics(image, 16, 1.0, name) != ops.statistics(changed, 16, 1.0, name)).any(-1)[0]
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(differ, expected)


@pytest.mark.parametrize("name", ["torch", pytest.param("cpu", marks=NATIVE)])
def test_schema_and_fake(name):
    opcheck(torch.ops.ape_kernels.statistics.default, (torch.rand(2, 3, 50, 20), 24, 1.0, name))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"image: expected float32 \[B, C, H, W\], got torch.float64"):
        ops.statistics(torch.rand(1, 3, 8, 8).double(), 8, 1.0, "torch")
    with pytest.raises(ValueError, match="cell: expected at least 1 pixel, got 0"):
        ops.statistics(torch.rand(1, 3, 8, 8), 0, 1.0, "torch")
