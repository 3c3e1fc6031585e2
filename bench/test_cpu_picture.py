"""An image of 510x339 pixels, upscaled by 4 on the CPU at full depth, from the image to the picture.

The paper's forward and ours work on patches of 48x48 pixels every 46 pixels; their times include splitting and merging.
Every other engine, and ours by default, gets the whole image, as its user would do it. The two kinds compute different
pictures, because the body does not see beyond its patch. Each row is compared with a picture of its own kind, and ours
also with the paper's where both have the same patches. The paper's way drops the pixels beyond the last whole patch (77
patches, 508x324 pixels). Ours covers every pixel, with the last row and column of patches moved back (96 patches): it
does a quarter more work.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from interleave import CLOCK, Samples, loop_of, measure, replay, selected
from networks import make
from peers import NEVER, PATCH, PEERS, STEP, Unavailable, authors_on_a_picture
from reference import literal_forward
from skimage import data
from torch import Tensor, nn

from ape_kernels import APEForward
from ape_kernels.geometry import patch_grid
from ape_kernels.run.patches import merge, split

NETWORK = "EDSR 16x64 x4"
WIDTH, HEIGHT, SCALE = 510, 339, 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AUTHORS = "authors' eager forward"
OURS = ("ape_kernels torch", "ape_kernels cpu")  # on patches
WHOLE = ("ape_kernels torch, whole", "ape_kernels cpu, whole")  # on shared feature maps, the default


def _image() -> Tensor:
    pixels = torch.from_numpy(data.astronaut()[:HEIGHT, :WIDTH].copy())
    return pixels.permute(2, 0, 1)[None].float().div(255).contiguous()


def _patchwise(model: nn.Module, image: Tensor) -> Tensor:
    """The picture that ours has to give: the network's literal forward on every patch, blended by the torch backend."""
    grid = patch_grid(HEIGHT, WIDTH, PATCH, PATCH - STEP, SCALE, "linear")
    return merge(grid, literal_forward(model, split(grid, image, "torch"), NEVER)[0], 1, "torch")


def _assert_same(row: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    span = max(1.0, float(expected.max() - expected.min()))
    error = float((got - expected).abs().max())
    assert got.shape == expected.shape and error <= tolerance * span, f"{row} computes another picture: {error:.1e}"


@cache
def group(dtype_name: str, rows: tuple[str, ...], rounds: int) -> tuple[dict[str, Samples], dict[str, str]]:
    """Samples of those `rows` that can run, and the reasons why the others cannot."""
    model, dtype, image = make(NETWORK)[0], DTYPES[dtype_name], _image()
    runs, reasons = {}, {}
    with torch.inference_mode():
        whole, patchwise, authors = model(image), _patchwise(model, image), authors_on_a_picture(model, SCALE)(image)
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        # Here the paper's patches and ours have the same places, and no patch that was moved back reaches here.
        same = (..., slice((HEIGHT - PATCH) * SCALE), slice((WIDTH - PATCH) * SCALE))
        for row in rows:
            try:
                if row == AUTHORS:
                    runs[row] = lambda: authors_on_a_picture(model, SCALE)(image)
                elif row in OURS:
                    cut = {"context": "patch", "patch_size": PATCH, "overlap": PATCH - STEP}
                    options = {"backend": row.split()[1], "dtype": dtype, **cut}
                    run = APEForward(model, 0.0, **options)
                    _assert_same(row, run(image), patchwise, tolerance)
                    averaged = APEForward(model, 0.0, blend="average", **options)(image)
                    _assert_same(row, averaged[same], authors[same], tolerance)
                    runs[row] = lambda run=run: run(image)
                elif row in WHOLE:
                    run = APEForward(model, 0.0, backend=row.split()[1].rstrip(","), dtype=dtype)
                    _assert_same(row, run(image), whole, tolerance)
                    runs[row] = lambda run=run: run(image)
                else:
                    run = PEERS[row](model, dtype, image)
                    _assert_same(row, run(image), whole, tolerance)
                    runs[row] = lambda run=run: run(image)
            except Unavailable as reason:
                reasons[row] = f"{row}: {reason}"
        return measure(runs, rounds, loop_of(dtype)), reasons


@pytest.mark.parametrize("row", [*PEERS, *OURS, *WHOLE])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(timer=CLOCK)
def test_picture(benchmark, request, dtype, row):
    """Seconds per picture."""
    samples, reasons = group(dtype, selected(request, dtype=dtype), request.config.getoption("--rounds"))
    if row in reasons:
        pytest.skip(reasons[row])
    replay(benchmark, f"cpu {NETWORK} {dtype}, picture {WIDTH}x{HEIGHT}", row, samples[row], 1, {})
