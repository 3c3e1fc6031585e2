"""Nodes for ComfyUI: load a model, and upscale images with it.

A folder in ComfyUI's ``custom_nodes`` whose ``__init__.py`` is the following shows them in its menu, under
"image/upscaling":

>>> from ape_sr.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
>>> __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

Modules of the host are imported when a node is asked for something, never before.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ape_kernels.policy import Fidelity
from ape_sr.errors import UserError
from ape_sr.upscaler import Upscaler, load
from ape_sr.weights import shipped_names

FOLDER = "upscale_models"  # where the host keeps models for upscaling
FIDELITIES = ("auto", "full", "35", "40", "42", "45", "48", "50", "55", "60")
STEPS = 100  # of the progress bar, for each image


class LoadModel:
    """Node: a model file of the host's folder for upscalers, or weights that come with the package."""

    CATEGORY = "image/upscaling"
    FUNCTION = "load"
    RETURN_TYPES = ("APE_UPSCALER",)
    RETURN_NAMES = ("upscaler",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the host asks for: a list of names."""
        files = import_module("folder_paths").get_filename_list(FOLDER)
        return {"required": {"model_name": ([*shipped_names(), *files],)}}

    def load(self, model_name: str) -> tuple[Upscaler]:
        """The model, on the device that the host computes on. Raises UserError for one that cannot be loaded."""
        if model_name in shipped_names():
            path = model_name
        else:
            path = import_module("folder_paths").get_full_path(FOLDER, model_name)
            if path is None:
                raise UserError(f"model_name: expected a file in the folder {FOLDER}, got {model_name!r}")
        device = torch.device(import_module("comfy.model_management").get_torch_device())
        return (load(path, device=device if device.type in ("cpu", "cuda") else "cpu"),)


class Upscale:
    """Node: images enlarged by a model."""

    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the host asks for: a model, images, and the fidelity in dB to the model's own picture."""
        return {"required": {"upscaler": ("APE_UPSCALER",), "image": ("IMAGE",), "fidelity": (list(FIDELITIES),)}}

    def upscale(self, upscaler: Upscaler, image: Tensor, fidelity: str = "auto") -> tuple[Tensor]:
        """Enlarge images of the host.

        image: float ``[B, H, W, C]`` from 0 to 1, which other values are clamped to; C is 3, or 4 with transparency,
            which is interpolated. fidelity: one of `FIDELITIES`; a number needs a model that carries a fit.
        Returns float32 ``[B, s * H, s * W, C]`` from 0 to 1, on the CPU. The host is told how far the work is, and can
        stop it at any time. Raises ValueError for a number without a fit and for other shapes.
        """
        if image.ndim != 4 or image.shape[-1] not in (3, 4):
            raise ValueError(f"image: expected [B, H, W, 3] or [B, H, W, 4], got {list(image.shape)}")
        management = import_module("comfy.model_management")
        bar = import_module("comfy.utils").ProgressBar(STEPS * len(image))
        upscaler.network.fidelity = _fidelity(fidelity)
        pictures: list[Tensor] = []
        for number, planes in enumerate(image.movedim(-1, 1).float().clamp(0, 1)):

            def report(share: float, number: int = number) -> None:
                management.throw_exception_if_processing_interrupted()
                bar.update_absolute(int(STEPS * (number + share)))

            picture = upscaler.upscale(planes[:3], progress=report).cpu()
            if len(planes) == 4:
                alpha = interpolate(planes[None, 3:].cpu(), picture.shape[1:], mode="bicubic")
                picture = torch.cat([picture, alpha[0].clamp(0, 1)])
            pictures.append(picture.movedim(0, -1))
        return (torch.stack(pictures),)


def _fidelity(value: str) -> Fidelity:
    if value not in FIDELITIES:
        raise ValueError(f"fidelity: expected one of {', '.join(FIDELITIES)}, got {value!r}")
    if value == "auto":
        return "auto"
    return None if value == "full" else float(value)


NODE_CLASS_MAPPINGS = {"ApeLoadModel": LoadModel, "ApeUpscale": Upscale}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ApeLoadModel": "Load Upscale Model (ape-kernels)",
    "ApeUpscale": "Upscale Image (ape-kernels)",
}
