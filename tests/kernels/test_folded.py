"""Networks that fold squares of pixels into channels first: RRDBNet at scales 1 and 2, with a shuffle factor."""

import pytest
import torch
from families import randomise
from support import DEVICE, assert_pictures_close, test_patches
from test_rrdb import BasicSR, FirstESRGAN, conv
from torch import nn
from torch.nn.functional import pixel_unshuffle

from ape_kernels import APEForward, NotRecognised, add_exits, all_exits


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(4, 4), (8, 28), (12, 4)], ids=str)
def test_sides_that_the_square_divides(scale, size, backend):
    model, patches = BasicSR(scale=scale), test_patches(2, *size)
    fast = APEForward(model, backend=backend)
    assert fast.scale == scale
    assert_pictures_close(fast.forward_patches(patches)[0], model(patches))
    assert_pictures_close(fast(patches), model(patches))


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(5, 7), (6, 13), (11, 10)], ids=str)
def test_other_sides_are_reflected_and_cut(scale, size, backend):
    """The published class takes no others; Real-ESRGAN reflects images before it."""
    model, patches = BasicSR(scale=scale), test_patches(2, *size)
    below, right = (-side % (4 // scale) for side in size)
    padded = nn.functional.pad(patches, (0, right, 0, below), mode="reflect")
    expected = model(padded)[:, :, : scale * size[0], : scale * size[1]]
    fast = APEForward(model, backend=backend)
    assert_pictures_close(fast.forward_patches(patches)[0], expected)
    assert_pictures_close(fast(patches), expected)


@pytest.mark.parametrize("scale", [1, 2])
def test_sides_below_the_square(scale, backend):
    model = BasicSR(scale=scale)
    fast, side = APEForward(model, backend=backend), 4 // scale
    assert_pictures_close(
        fast(test_patches(1, 1, 1)), model(test_patches(1, 1, 1).expand(-1, -1, side, side))[:, :, :scale, :scale]
    )
    for height, width in ((1, 3), (3, 2)):
        assert fast(test_patches(2, height, width)).shape == (2, 3, scale * height, scale * width)


def test_patches_of_an_image_start_on_squares(backend):
    model, image = BasicSR(scale=1), test_patches(1, 45, 41)
    fast = APEForward(model, backend=backend, context="patch", patch_size=18, overlap=3)  # in squares 16 and 4
    sr, report = fast(image, return_report=True)
    assert sr.shape == image.shape
    assert report.exit_index.shape == (1, 4, 4)
    assert_pictures_close(sr[:, :, :12, :12], model(image[:, :, :16, :16])[:, :, :12, :12])
    assert_pictures_close(sr[:, :, :12, 16:24], model(image[:, :, :16, 12:28])[:, :, :12, 4:12])


def test_exits_are_counted_in_squares(backend):
    model = add_exits(BasicSR(scale=2), every=1)
    model.regressor.requires_grad_(False)[2].bias.fill_(5.0)
    patches = test_patches(2, 7, 9)
    sr, report = APEForward(model, 0.5, backend=backend)(patches, return_report=True)
    assert (report.exit_index == 0).all()
    assert_pictures_close(sr, all_exits(model, patches)[0][0])
    program = APEForward(model).program
    assert report.flops == 2 * 4 * 5 * program.flops_to_stage(0)


def test_the_first_layout(backend):
    class Folding(FirstESRGAN):
        shuffle_factor = 2

        def forward(self, x):
            return self.model(pixel_unshuffle(x, 2))

    model, patches = Folding(2, 2), test_patches(2, 8, 6)
    model.model[0] = randomise(conv(12), gain=1.7).to(DEVICE)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


def test_compiled():
    fast = APEForward(BasicSR(scale=2))
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for size in ((60, 53), (61, 70)):
        assert torch.equal(compiled(test_patches(1, *size)), fast(test_patches(1, *size)))


def test_exported_for_any_size():
    fast = APEForward(BasicSR(scale=2))
    sides = {2: torch.export.Dim("height", min=49, max=4096), 3: torch.export.Dim("width", min=49, max=4096)}
    exported = torch.export.export(fast, (test_patches(1, 60, 53),), dynamic_shapes={"x": sides})
    image = test_patches(1, 71, 80)
    assert torch.equal(exported.module()(image), fast(image))


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: BasicSR(scale=4), r"model: its forward fails on a patch \[1, 3, 7, 6\]: pixel_unshuffle"),
        (lambda: FirstESRGAN(2), r"model.model.0: expected in_channels a multiple of 4, pixels .*, got 3"),
    ],
    ids=["basicsr", "first"],
)
def test_a_head_that_cannot_take_squares(model, message):
    model = model()
    model.scale = model.shuffle_factor = 2
    with pytest.raises(NotRecognised, match=message):
        APEForward(model)
