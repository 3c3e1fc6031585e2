"""Arguments and set-up of the network, shared by the subcommands that run one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from ape_kernels import APEForward, BackendUnavailable, to_program
from ape_kernels.backends import ORDER, choose
from ape_kernels.geometry import PATCH_SIZE
from ape_sr.checkpoint import load_model
from ape_sr.cli.arguments import positive_float, positive_int
from ape_sr.distributed import ranks_from_environment
from ape_sr.errors import UserError
from ape_sr.weights import shipped_weights

DEFAULT_SCALE = 4
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add -n, -s, --backend and --dtype, which `open_network` reads."""
    parser.add_argument("-n", "--weights", type=Path, help="weights file (those that come with the package)")
    parser.add_argument(
        "-s", "--scale", type=positive_int, help=f"upscaling factor (that of the weights, else {DEFAULT_SCALE})"
    )
    parser.add_argument("--exit-every", type=positive_int, help="blocks between exits, for a .pth file with exits")
    parser.add_argument(
        "--res-scale",
        type=positive_float,
        help="of the residual blocks, for a .pth file (0.1 with 256 features, else 1)",
    )
    parser.add_argument("--backend", choices=("auto", *ORDER), default="auto", help="what computes (%(default)s)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the computation (%(default)s)")


def weights_path(args: argparse.Namespace) -> Path:
    """The weights file that is meant."""
    return args.weights or shipped_weights(args.scale or DEFAULT_SCALE)


def open_network(args: argparse.Namespace) -> APEForward:
    """The network in evaluation mode on its device, packed, with the backend resolved to a name.

    Raises UserError for weights that cannot be read or have another scale, and for a backend that cannot run.
    """
    path = weights_path(args)
    model = load_model(path, exit_interval=args.exit_every, res_scale=args.res_scale)
    if args.scale not in (None, model.scale):
        raise UserError(f"scale: expected {model.scale}, the scale of {path}, got {args.scale}")
    device = _device(args.backend)
    model.to(device)
    dtype = DTYPES[args.dtype]
    try:
        backend = choose(args.backend, to_program(model), device, dtype, PATCH_SIZE)
        network = APEForward(model, backend=backend, dtype=dtype)
    except (BackendUnavailable, ValueError) as error:  # of arguments and APE_BACKEND: no image has been seen yet
        raise UserError(str(error)) from None
    _ = network.program  # packs the weights now, so that the first picture is not timed with it
    return network


def _device(backend: str) -> torch.device:
    wish = os.environ.get("APE_BACKEND", "auto") if backend == "auto" else backend
    if wish == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks_from_environment().local % torch.cuda.device_count())
