"""Small pictures and weights for the system's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import WEIGHTS
from skimage import data
from support import spread_network

from ape_sr.checkpoint import save_model
from ape_sr.cli import main
from ape_sr.data.crops import CropSampler
from ape_sr.data.images import write_image
from ape_sr.models import EDSR


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained EDSR x2 with four exits that differ from patch to patch."""
    path = tmp_path_factory.mktemp("weights") / "tiny_x2.safetensors"
    save_model(path, spread_network(2, 4, 8, 1, exit_threshold=0.5))
    return path


@pytest.fixture(scope="session")
def fitted_weights(tmp_path_factory: pytest.TempPathFactory, fitted_model: EDSR) -> Path:
    """A file of weights that carry a fit."""
    path = tmp_path_factory.mktemp("weights") / "fitted_x2.safetensors"
    save_model(path, fitted_model)
    return path


@pytest.fixture(scope="session")
def cat() -> np.ndarray:
    """A photo, uint8 [100, 120, 3]."""
    return np.ascontiguousarray(data.chelsea()[60:160, 100:220])


@pytest.fixture
def photos(tmp_path: Path, cat: np.ndarray) -> Path:
    """A folder of three photos of different sizes and formats."""
    folder = tmp_path / "photos"
    write_image(folder / "a.png", cat[:60, :70])
    write_image(folder / "b.bmp", cat[:37, :53])
    write_image(folder / "c.webp", cat)
    return folder


@pytest.fixture
def upscaled(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command on one image with trained weights, and gives the line that it printed."""

    def run(source: Path, target: Path, *options: object) -> str:
        arguments = ["upscale", source, "-o", target, "-n", WEIGHTS, *options]
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out.splitlines()[0]

    return run


@pytest.fixture
def sampler(photos: Path) -> CropSampler:
    """Crops of the photos."""
    return CropSampler([photos], 2, 32, seed=3)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """Frames per segment of a video, few."""
    from ape_sr.video import segments, work

    for module in (segments, work):
        monkeypatch.setattr(module, "LENGTH", 4)
    return 4


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames of an object that moves, without loss."""
    from video_files import moving_object, write_video

    path = tmp_path / "clip.mkv"
    write_video(path, moving_object(10))
    return path
