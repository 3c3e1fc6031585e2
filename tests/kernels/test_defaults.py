"""What the user has set for the whole process is not for the package: pictures stay as they are, bit for bit."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from families import randomise
from support import DEVICE, bitwise, spread_network, test_patches

from ape_kernels import APEForward, fit_exits
from ape_sr.models import RCAN, VDSR

SETTINGS = {  # what is set, and what sets it back
    # meta stands for another device: nothing on it can be used with the model's tensors
    "device": (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    "float16": (lambda: torch.set_default_dtype(torch.float16), lambda: torch.set_default_dtype(torch.float32)),
    "float64": (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
}
if DEVICE.type == "cpu":  # on a GPU the one asks for CUBLAS_WORKSPACE_CONFIG, and the other changes pictures
    SETTINGS |= {
        "deterministic": (
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False),
        ),
        # PyTorch's newer switch, after which torch.get_float32_matmul_precision() raises
        "TF32": (
            lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
            lambda: torch.set_float32_matmul_precision("highest"),
        ),
    }


@contextmanager
def under(setting):
    if setting == "inference":
        with torch.inference_mode():
            yield
        return
    enter, leave = SETTINGS[setting]
    enter()
    try:
        yield
    finally:
        leave()


NETWORKS = {
    "EDSR": spread_network,
    "RCAN": lambda: randomise(RCAN(2, 2, 2, 16)).to(DEVICE),
    "VDSR": lambda: randomise(VDSR(2, 3, 16, 1)).to(DEVICE),
}


@pytest.mark.parametrize("setting", [*SETTINGS, "inference"])
@pytest.mark.parametrize("network", NETWORKS)
def test_wrapped_and_run_under_a_setting(backend, network, setting):
    model, image = NETWORKS[network](), test_patches(1, 30, 40)

    def run():
        fast = APEForward(model, 0.5, backend=backend, patch_size=12)
        whole = APEForward(model, backend=backend, cell=16)
        picture, report = whole(image, return_report=True)
        assert report.flops == report.flops_full
        return [fast(image), *fast.forward_patches(image[:, :, :12, :12].contiguous()), picture]

    expected = run()
    with under(setting):
        got = run()
    assert bitwise(got, expected)


@pytest.mark.parametrize("setting", ["device", "float64"])
def test_fitted_and_planned_under_a_setting(setting):
    model, images = spread_network(), [test_patches(1, 72, 80, seed=seed) for seed in (3, 4, 5)]

    def run():
        model.exit_fit = None
        model.exit_fit = fit_exits(model, images, cell=8)
        fast = APEForward(model, fidelity=30.0)
        picture, report = fast(images[0], return_report=True)
        return [picture, report.exit_index]

    expected = run()
    with under(setting):
        got = run()
    assert bitwise(got, expected)
