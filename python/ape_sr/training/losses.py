"""The paper's training objective: all exits at once, with the regressor trained towards the measured capacity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, l1_loss, mse_loss, pixel_shuffle

from ape_kernels.collapse import RADIUS, collapse_interior, linear_steps
from ape_sr.metrics import batch_psnr
from ape_sr.models import EDSR, ExitNetwork


@dataclass
class LossParts:
    """Losses of one batch.

    total: the loss that is minimised. l1 (grey levels), regressor, psnr (dB): ``[exits]``, without gradient.
    """

    total: Tensor
    l1: Tensor
    regressor: Tensor
    psnr: Tensor


def joint_loss(
    model: ExitNetwork, lr: Tensor, hr: Tensor, target: str = "paper", regressor_weight: float = 1.0
) -> LossParts:
    """Sum over exits of L1(SR_i, HR) + regressor_weight * MSE(prediction_i, 1 - I_i), section 3.3 of the APE paper.

    I_i = tanh(PSNR_i - PSNR_{i-1}) with PSNR_0 = 0, measured on the batch without gradient. L1 is in grey levels of 0
    to 255 as in the paper. This keeps the regressor's influence on the backbone small. With a weight above the paper's
    1 the backbone also learns pooled features from which the regressor can predict.
    With the target "look-ahead" the prediction at exit i is trained towards 1 - I_{i+1}. A patch then leaves before the
    stage that would bring little, and not after it.
    lr: ``[N, 3, h, w]``, hr: ``[N, 3, s * h, s * w]``, float32, both in [0, rgb_range].
    A network without exits has one "exit", which is its end, and no regressor.
    """
    if isinstance(model, EDSR):  # the tail of EDSR and its subclasses has only convolutions and shuffles
        skip, features = model.exit_features(lr)
        pictures = _reconstruct_all(model, skip, features).float().view(len(features), *hr.shape)
        predicted = _predict_all(model, features)
    elif model.has_exits:
        made, predicted = model.forward_exits(lr)
        pictures = torch.stack([picture.float() for picture in made])
    else:
        pictures, predicted = model(lr).float()[None], []
    truth = hr.expand(len(pictures), *hr.shape)
    l1 = torch.stack([l1_loss(sr, hr_i) for sr, hr_i in zip(pictures, truth, strict=True)]) * (255 / model.rgb_range)
    with torch.no_grad():
        border = model.scale + 6
        psnr = torch.stack(
            [batch_psnr(sr, hr_i, border, model.rgb_range) for sr, hr_i in zip(pictures, truth, strict=True)]
        )
        gain = torch.diff(psnr, dim=0, prepend=torch.zeros_like(psnr[:1]))
        if target == "look-ahead":  # the gain of the next stage; the last exit has none
            gain = torch.cat([gain[1:], torch.zeros_like(gain[:1])])
        wanted = 1 - torch.tanh(gain)
    regressor = torch.zeros_like(l1)
    if model.has_exits:
        regressor = torch.stack([mse_loss(p.float()[:, 0], w) for p, w in zip(predicted, wanted, strict=True)])
    return LossParts(l1.sum() + regressor_weight * regressor.sum(), l1.detach(), regressor.detach(), psnr.mean(dim=1))


def _predict_all(model: ExitNetwork, features: list[Tensor]) -> list[Tensor]:
    """Predictions ``[N, 1]`` of every exit. They are float32, because their differences are small."""
    if not model.has_exits:
        return []
    with torch.autocast(features[0].device.type, enabled=False):
        return [model.regressor(f.float()) for f in features]


def _reconstruct_all(model: EDSR, skip: Tensor, features: list[Tensor]) -> Tensor:
    """Pictures of all exits, ``[exits * N, 3, s * h, s * w]``.

    The collapsed tail is used: one 5x5 convolution at low resolution per exit, instead of the whole upsampler. It is
    several times cheaper, and differentiable. It is wrong at the border pixels, where the zero padding inside the tail
    matters. These pixels are computed with the tail itself, on strips that are just wide enough.
    """
    with torch.autocast(skip.device.type, enabled=False):
        kernel, bias = collapse_interior(linear_steps([model.tail, model.add_mean]))
    closed = model.body[-1](torch.cat(features)) + skip.repeat(len(features), 1, 1, 1)
    inner = pixel_shuffle(conv2d(closed, kernel, bias, padding=kernel.shape[-1] // 2), model.scale)
    s, width = model.scale, RADIUS + 1
    rows = model.reconstruct(torch.cat([closed[:, :, :width], closed[:, :, -width:]]))
    columns = model.reconstruct(torch.cat([closed[..., :width], closed[..., -width:]]))
    top, bottom = rows[: len(closed), :, :s], rows[len(closed) :, :, -s:]
    left, right = columns[: len(closed), :, s:-s, :s], columns[len(closed) :, :, s:-s, -s:]
    middle = torch.cat([left, inner[:, :, s:-s, s:-s], right], dim=3)
    return torch.cat([top, middle, bottom], dim=2)
