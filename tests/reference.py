"""The method's formulas, written out literally: slow and obvious. The torch backend is compared with them.

They follow the description in the APE paper (ECCV 2022, section 3), for networks in the authors' layout. Tests and
benchmarks share them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def literal_forward(model: nn.Module, patches: Tensor, exit_threshold: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Patches through an EDSR with exits, block by block, as the authors' test mode does it.

    Features of the patches still running are gathered and scattered back around every block, the
    regressor sees all patches at every exit, the exited ids are looked up one by one. Returns the
    pictures, the exit index (-1: no exit reached the threshold) and the predictions ``[N]`` of all exits.
    """
    shifted = model.sub_mean(patches)
    skip = model.head(shifted)
    stream = skip.clone()
    exit_index = torch.full((len(patches),), -1)
    running = torch.arange(len(patches))
    predictions = []
    for i, block in enumerate(model.body[:-1]):
        if len(running):
            stream[running] = block(stream[running])
        if (i + 1) % model.exit_interval == 0:
            prediction = model.regressor(stream)[:, 0]
            predictions.append(prediction)
            for patch in torch.where(prediction >= exit_threshold)[0].tolist():
                if exit_index[patch] < 0:
                    exit_index[patch] = i // model.exit_interval
            running = torch.where(prediction < exit_threshold)[0]
    return model.add_mean(model.tail(skip + model.body[-1](stream))), exit_index, predictions


def picture_at_exit(model: nn.Module, patches: Tensor, exit_index: int) -> Tensor:
    """Pictures of all patches leaving after exit `exit_index`."""
    skip = model.head(model.sub_mean(patches))
    stream = skip
    for block in model.body[: (exit_index + 1) * model.exit_interval]:
        stream = block(stream)
    return model.add_mean(model.tail(skip + model.body[-1](stream)))


def literal_split(image: Tensor, patch: int, step: int) -> Tensor:
    """Patches of ``[1, C, H, W]`` every `step` pixels; the rest that the step does not divide is dropped."""
    _, _, height, width = image.shape
    return torch.cat(
        [
            image[:, :, y : y + patch, x : x + patch]
            for y in range(0, height - patch + 1, step)
            for x in range(0, width - patch + 1, step)
        ]
    )


def literal_merge(patches: Tensor, rows: int, columns: int, step: int) -> Tensor:
    """Patches added up on a zero image, overlaps between neighbours halved."""
    size = patches.shape[-1]
    image = patches.new_zeros(1, patches.shape[1], (rows - 1) * step + size, (columns - 1) * step + size)
    for i in range(rows):
        for j in range(columns):
            image[0, :, i * step : i * step + size, j * step : j * step + size] += patches[i * columns + j]
    for j in range(1, columns):
        image[:, :, :, j * step : j * step + size - step] /= 2
    for i in range(1, rows):
        image[:, :, i * step : i * step + size - step, :] /= 2
    return image
