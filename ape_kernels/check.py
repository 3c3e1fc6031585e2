"""Does a program do what the network it was made from does?"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ape_kernels.adapters import NotRecognised
from ape_kernels.autocast import without_autocast
from ape_kernels.backends import get_backend
from ape_kernels.backends.protocol import Exits
from ape_kernels.backends.torch.precision import ALWAYS_EXACT_FLOAT32
from ape_kernels.packed import Packed, PictureShape
from ape_kernels.program import Conv, PatchProgram
from ape_kernels.run.patches import run_patches

PROBE_SIZE = (7, 6)  # every border class and an interior, and no side like another
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def check_program(model: nn.Module, program: PatchProgram, dtype: torch.dtype | None = None) -> bool:
    """Run `model` and `program` on one small random patch, at full depth, and compare the two pictures.

    Structure alone does not show what a module's forward does with its layers. The network is called in evaluation
    mode under no_grad and is left as it was found.

    dtype: of the program's matrix multiplications; in float16 values may overflow that the model's own dtype holds.

    Raises NotRecognised when the pictures differ by more than rounding in the dtype of the model's parameters, and when
    the model returns something else than a picture. ValueError for a program that overflows float16.
    """
    with torch.no_grad(), without_autocast(), ALWAYS_EXACT_FLOAT32:  # TF32 errors grow to 5e-3 in a deep network
        gives_three = _check(model, program)
        if dtype == torch.float16:
            _check_float16(model, program)
        return gives_three


def _check(model: nn.Module, program: PatchProgram) -> bool:
    parameter = next(model.parameters())
    patch = _probe(program, parameter.device)
    with _evaluating(model):
        try:
            output = model(patch.to(parameter.dtype, copy=True))  # some scale their input in place
        except Exception as error:  # whatever a forward raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise NotRecognised(f"model: its forward fails on a patch {list(patch.shape)}: {reason}") from error
    expected, stages = _picture(output, len(program.stages) - 1)
    tensors = get_backend("torch").pack(program, parameter.device, torch.float32)
    packed = Packed(program, "torch", torch.float32, tensors, PictureShape.of(program))
    expected, errors = expected.float(), []
    if not torch.isfinite(expected).all():
        raise NotRecognised(_why_not_finite(model, parameter.dtype))
    for stage in stages:
        sr = run_patches(patch, packed, Exits(0.0, torch.tensor([stage], device=patch.device))).sr
        if expected.shape != sr.shape:
            raise NotRecognised(
                f"model: its forward gives {list(expected.shape)} where its layers give {list(sr.shape)}"
            )
        error = (sr - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
        if error <= TOLERANCE[parameter.dtype]:
            return isinstance(output, tuple) and len(output) == 3
        errors.append(float(error))
    raise NotRecognised(
        f"model: its forward does something else than its layers say: {errors[0]:.1e} of the range apart on a "
        f"random {patch.shape[3]}x{patch.shape[2]} patch"
    )


def _check_float16(model: nn.Module, program: PatchProgram) -> None:
    patch = _probe(program, next(model.parameters()).device)
    tensors = get_backend("torch").pack(program, patch.device, torch.float16)
    packed = Packed(program, "torch", torch.float16, tensors, PictureShape.of(program))
    if not torch.isfinite(run_patches(patch, packed, Exits(math.inf)).sr).all():
        raise ValueError(
            "dtype: expected one that holds the network's values; in torch.float16 they overflow to NaN or infinity on "
            "a random patch"
        )


def _probe(program: PatchProgram, device: torch.device) -> Tensor:
    """A small random patch, in the range that the network reads."""
    generator = torch.Generator().manual_seed(0)
    size = [side * program.fold + -side * program.fold % program.multiple_of for side in PROBE_SIZE]
    patch = value_range(program) * torch.rand(
        1, program.in_channels, *size, generator=generator, dtype=torch.float32, device="cpu"
    )
    return patch.to(device)


def value_range(program: PatchProgram) -> float:
    """255 for a network that reads pixels from 0 to 255, else 1, as its mean shift tells.

    A shift by more than 1, in units of the pixels, is that of a network of 0 to 255. In half precision such a network
    must be tried on its own range: beside a mean of 110, pixels from 0 to 1 are nothing but rounding.
    """
    for step in program.head:
        if isinstance(step, Conv) and step.weight.shape[2:] == (1, 1):
            if step.bias is None:
                return 1.0
            factor = step.weight.detach().flatten(1).abs().amax(dim=1).clamp_min(1e-12)
            return 255.0 if float((step.bias.detach().abs() / factor).max()) > 1 else 1.0
    return 1.0


def _why_not_finite(model: nn.Module, dtype: torch.dtype) -> str:
    """Why a forward gives NaN or infinity."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(tensor).all():
            return f"model.{name}: expected finite weights, got NaN or infinity"
    return f"model: its layers overflow {dtype}: its forward gives NaN or infinity on a random patch"


def _picture(output: object, last: int) -> tuple[Tensor, tuple[int, ...]]:
    """The picture in what a network returns, and the stages after which it may have been taken.

    output: a picture; or (pictures of all exits, predictions); or (picture, exit index or -1, predictions).
    last: the stage after which a patch of full depth leaves.
    """
    match output:
        case Tensor():
            return output, (last,)
        case ([*_, Tensor() as picture] as pictures, [*_]):
            return picture, (len(pictures) - 1,)  # this picture does not contain blocks after the last exit
        case (Tensor() as picture, Tensor() as exit_index, Tensor()):
            # Where the interval does not divide the number of blocks, the APE authors' RRDB gives the last exit the
            # number of the exit before it.
            index = int(exit_index.flatten()[0])
            return picture, (last,) if index < 0 else (index, last)
        case _:
            raise NotRecognised(f"model: expected its forward to return a picture, got {type(output).__name__}")


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None, None, None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
