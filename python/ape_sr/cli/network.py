"""Arguments of the network, shared by the subcommands that run one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ape_sr.cli.arguments import positive_float, positive_int
from ape_sr.errors import UserError
from ape_sr.weights import SUFFIXES, find_weights, shipped_names, shipped_weights

if TYPE_CHECKING:  # PyTorch comes with them, for which no help should wait
    from ape_kernels.policy import Fidelity
    from ape_sr.upscaler import Upscaler

DEFAULT_SCALE = 4


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add -n, -s, --exit-every, --res-scale, --backend and --dtype, which `open_network` reads."""
    names = ", ".join(shipped_names())
    parser.add_argument(
        "-n",
        "--weights",
        type=Path,
        help=f"weights: a name ({names}; by default the one of the scale), or a file ({', '.join(SUFFIXES)}) of EDSR, "
        "RCAN, VDSR, ECBSR, ESRGAN, Compact or SwinIR, or its name in the folder APE_MODELS",
    )
    parser.add_argument(
        "-s",
        "--scale",
        type=positive_int,
        help=f"upscaling factor (of the weights if given, else {DEFAULT_SCALE})",
    )
    parser.add_argument(
        "--exit-every",
        type=positive_int,
        help="residual blocks between exits, for another project's file with exits",
    )
    parser.add_argument(
        "--res-scale",
        type=positive_float,
        help="factor of the residual blocks, for an EDSR of another project (0.1 with 256 features, else 1)",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        help="backend that computes, by a name that `ape-sr info` lists (%(default)s)",
    )
    parser.add_argument("--dtype", default="fp32", help="of the matrix products: fp32, bf16 or fp16 (%(default)s)")


def weights_path(args: argparse.Namespace) -> Path:
    """The weights file that is meant. UserError if there is none."""
    return find_weights(args.weights) if args.weights else shipped_weights(args.scale or DEFAULT_SCALE)


def open_network(
    args: argparse.Namespace,
    *,
    threshold: float | None = None,
    min_gain_db: float | None = None,
    fidelity: Fidelity = "auto",
    budget: float | None = None,
    device: str | None = None,
) -> Upscaler:
    """What `ape_sr.load` makes of the arguments.

    Raises UserError for weights that cannot be read or have another scale, for a setting that the network cannot have,
    and for a backend that cannot run.
    """
    from ape_kernels import BackendUnavailable
    from ape_sr.upscaler import load

    path = weights_path(args)
    try:
        upscaler = load(
            path,
            threshold=threshold,
            min_gain_db=min_gain_db,
            fidelity=fidelity,
            budget=budget,
            dtype=args.dtype,
            backend=args.backend,
            device=device,
            exit_interval=args.exit_every,
            res_scale=args.res_scale,
            scale=args.scale,
        )
    except (BackendUnavailable, ValueError) as error:  # of arguments and APE_BACKEND: no image has been seen yet
        raise UserError(str(error)) from None
    return upscaler


def network_settings(upscaler: Upscaler) -> dict[str, object]:
    """All of the network's settings that a picture depends on, but for the weights; for notes."""
    from ape_sr.fits import digest_of

    network = upscaler.network
    return {
        "context": network.context,
        "fidelity": network.fidelity,
        "fit": None if network.fit is None else digest_of(network.fit),
        "threshold": network.threshold,
        "budget": network.budget,
        "backend": upscaler.backend,
        "dtype": str(network.dtype),
    }
