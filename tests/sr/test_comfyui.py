"""The nodes for ComfyUI, against a stand-in of the host's modules."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import ape_sr
from ape_sr.weights import shipped_names

BARS = []


class Interrupted(Exception):
    """What the host raises."""


class Bar:
    """Its ProgressBar."""

    def __init__(self, total, node_id=None):
        self.total, self.values = total, []
        BARS.append(self)

    def update_absolute(self, value, total=None, preview=None):
        self.values.append(value)


@pytest.fixture
def host(monkeypatch, weights, fitted_weights):
    """The modules of the host that the nodes call. stop: how many questions until it interrupts."""
    files = {path.name: str(path) for path in (weights, fitted_weights)}
    host = SimpleNamespace(stop=None, asked=0)

    def throw_exception_if_processing_interrupted():
        host.asked += 1
        if host.stop is not None and host.asked >= host.stop:
            raise Interrupted

    modules = {
        "folder_paths": dict(
            get_filename_list=lambda folder: sorted(files) if folder == "upscale_models" else [],
            get_full_path=lambda folder, name: files.get(name),
        ),
        "comfy": {},
        "comfy.utils": dict(ProgressBar=Bar),
        "comfy.model_management": dict(
            get_torch_device=lambda: torch.device("cpu"),
            throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
        ),
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    BARS.clear()
    return host


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """What the host finds in a folder of two lines."""
    package = tmp_path / "ape"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from ape_sr.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS\n"
        '__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ape", raising=False)
    import ape

    assert ape.NODE_DISPLAY_NAME_MAPPINGS.keys() == ape.NODE_CLASS_MAPPINGS.keys()
    return ape.NODE_CLASS_MAPPINGS


def run(node, **given):
    """As the host calls a node: by the name in FUNCTION, with the inputs that INPUT_TYPES has."""
    inputs = node.INPUT_TYPES()["required"]
    assert given.keys() == inputs.keys()
    for name, (kind, *_) in inputs.items():
        assert not isinstance(kind, list) or given[name] in kind
    result = getattr(node(), node.FUNCTION)(**given)
    assert len(result) == len(node.RETURN_TYPES)
    return result[0]


def batch(cat, count=2, channels=3):
    images = torch.from_numpy(np.stack([cat[20 * i : 20 * i + 40, :50] for i in range(count)])).float() / 255
    alpha = torch.linspace(0, 1, 50).expand(count, 40, 50)[..., None]
    return torch.cat([images, alpha], -1)[..., :channels]


def test_a_model_file_and_a_batch(host, nodes, weights, cat):
    images = batch(cat)
    upscaler = run(nodes["ApeLoadModel"], model_name=weights.name)
    pictures = run(nodes["ApeUpscale"], upscaler=upscaler, image=images, fidelity="auto")
    expected = ape_sr.load(weights).upscale(images.movedim(-1, 1)).movedim(1, -1)
    assert pictures.shape == (2, 80, 100, 3) and pictures.dtype == torch.float32
    assert torch.equal(pictures, expected)
    (bar,) = BARS
    assert bar.values == sorted(bar.values) and bar.values[-1] == bar.total and host.asked >= 4


def test_names_of_the_package_stand_beside_the_files(host, nodes, weights):
    (names,) = nodes["ApeLoadModel"].INPUT_TYPES()["required"]["model_name"]
    assert set(shipped_names()) < set(names) and weights.name in names
    assert run(nodes["ApeLoadModel"], model_name="edsr-12x32-x2").scale == 2
    with pytest.raises(ape_sr.UserError, match="model_name: expected a file in the folder upscale_models, got 'gone'"):
        nodes["ApeLoadModel"]().load("gone")


def test_fidelity(host, nodes, weights, fitted_weights, cat):
    images = batch(cat, 1)
    upscaler = run(nodes["ApeLoadModel"], model_name=fitted_weights.name)
    pictures = {
        fidelity: run(nodes["ApeUpscale"], upscaler=upscaler, image=images, fidelity=fidelity)
        for fidelity in ("35", "full", "auto")
    }
    full = ape_sr.load(fitted_weights, fidelity=None).upscale(images.movedim(-1, 1)).movedim(1, -1)
    assert torch.equal(pictures["full"], full)
    assert not torch.equal(pictures["35"], full)
    auto = ape_sr.load(fitted_weights).upscale(images.movedim(-1, 1)).movedim(1, -1)
    assert torch.equal(pictures["auto"], auto)
    plain = run(nodes["ApeLoadModel"], model_name=weights.name)
    with pytest.raises(ValueError, match="fidelity: expected a model that carries a fit"):
        run(nodes["ApeUpscale"], upscaler=plain, image=images, fidelity="45")


def test_transparency_is_interpolated(host, nodes, weights, cat):
    images = batch(cat, 1, 4)
    upscaler = run(nodes["ApeLoadModel"], model_name=weights.name)
    picture = run(nodes["ApeUpscale"], upscaler=upscaler, image=images, fidelity="full")
    opaque = run(nodes["ApeUpscale"], upscaler=upscaler, image=images[..., :3], fidelity="full")
    assert torch.equal(picture[..., :3], opaque)
    alpha = interpolate(images[..., 3][:, None], (80, 100), mode="bicubic").clamp(0, 1)
    assert torch.equal(picture[..., 3], alpha[:, 0])


def test_values_beyond_the_range_are_clamped(host, nodes, weights, cat):
    images = batch(cat, 1)
    upscaler = run(nodes["ApeLoadModel"], model_name=weights.name)
    loud = run(nodes["ApeUpscale"], upscaler=upscaler, image=images * 1.5 - 0.2, fidelity="full")
    tame = run(nodes["ApeUpscale"], upscaler=upscaler, image=(images * 1.5 - 0.2).clamp(0, 1), fidelity="full")
    assert torch.equal(loud, tame)


def test_the_host_can_stop_it(host, nodes, weights, cat):
    upscaler = run(nodes["ApeLoadModel"], model_name=weights.name)
    host.stop = 3
    with pytest.raises(Interrupted):
        run(nodes["ApeUpscale"], upscaler=upscaler, image=batch(cat, 3), fidelity="full")
    assert host.asked == 3


def test_other_shapes_are_refused(host, nodes, weights):
    upscaler = run(nodes["ApeLoadModel"], model_name=weights.name)
    with pytest.raises(ValueError, match=r"image: expected \[B, H, W, 3\] or \[B, H, W, 4\], got \[1, 8, 8, 1\]"):
        run(nodes["ApeUpscale"], upscaler=upscaler, image=torch.zeros(1, 8, 8, 1), fidelity="auto")
