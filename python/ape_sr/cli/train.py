"""`ape-sr train`: train a backbone, plain or with all its exits."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path

import torch
from tqdm import tqdm

from ape_sr.checkpoint import load_model
from ape_sr.cli.arguments import Commands, counted, existing_folder, positive_float, positive_int
from ape_sr.data.crops import CropSampler
from ape_sr.data.resident import ResidentCrops
from ape_sr.distributed import joined, named_device
from ape_sr.errors import UserError
from ape_sr.files import check_writable
from ape_sr.models import NETWORKS, build_model
from ape_sr.training.run import TrainingConfig, TrainingRun, initialise

DEFAULTS = TrainingConfig()
EXIT_EVERY = 2  # residual blocks
SETTINGS = [field for field in fields(TrainingConfig) if field.name not in ("clip", "save_seconds")]


def add_parser(commands: Commands) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "train",
        description="Train a network. Without --plain all exits are trained together with the regressor, as in the "
        "paper; start such a run from a plain network with --init. If a run was interrupted, give the same command "
        "again: it goes on. Under torchrun the processes share every batch.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "-i",
        "--data",
        type=existing_folder,
        required=True,
        nargs="+",
        action="extend",
        help="folders of training images (HR), or the folder that DIV2K is unpacked to: <set>_train_HR in it is taken, "
        "and <set>_train_LR_bicubic/X<scale> if it is there; all images are drawn equally often",
    )
    parser.add_argument(
        "--lr-data",
        type=existing_folder,
        help="folder of their LR versions (by default they are made by bicubic downscaling)",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for weights, log and checkpoint")
    parser.add_argument("-s", "--scale", type=int, default=4, choices=(1, 2, 3, 4, 8), help="upscaling factor (4)")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="edsr", help="network (%(default)s)")
    parser.add_argument(
        "--blocks",
        type=positive_int,
        default=16,
        help="residual blocks; of VDSR and Compact convolutions, of SwinIR residual groups (16)",
    )
    parser.add_argument("--groups", type=positive_int, help="residual groups of RCAN (10)")
    parser.add_argument("--feats", type=positive_int, default=64, help="channels of the feature maps (64)")
    parser.add_argument(
        "--exit-every", type=positive_int, default=EXIT_EVERY, help="residual blocks between exits (%(default)s)"
    )
    parser.add_argument(
        "--head-exit",
        action="store_true",
        help="add an exit before the first block (EDSR and RCAN, --target look-ahead)",
    )
    parser.add_argument("--plain", action="store_true", help="train without exits")
    parser.add_argument(
        "--regressor-only", action="store_true", help="train the regressor alone, on the network given by --init"
    )
    parser.add_argument(
        "--target",
        choices=("paper", "look-ahead"),
        default=DEFAULTS.target,
        help="what the regressor predicts: the gain of the stage just run, or of the next one (%(default)s)",
    )
    parser.add_argument("--init", type=Path, help="weights to start from, with or without exits")
    parser.add_argument("--steps", type=positive_int, default=DEFAULTS.steps, help="optimiser steps (%(default)s)")
    parser.add_argument(
        "--minutes",
        type=positive_float,
        help="minutes of training at most; the schedule then ends with them (no limit)",
    )
    parser.add_argument("--batch", type=positive_int, default=DEFAULTS.batch, help="crops per step (%(default)s)")
    parser.add_argument(
        "--patch", type=positive_int, default=DEFAULTS.patch, help="sides of the HR crops (%(default)s)"
    )
    parser.add_argument("--lr", type=positive_float, default=DEFAULTS.lr, help="learning rate (%(default)s)")
    parser.add_argument(
        "--regressor-lr",
        type=positive_float,
        default=DEFAULTS.regressor_lr,
        help="learning rate of the regressor (%(default)s)",
    )
    parser.add_argument(
        "--regressor-weight",
        type=positive_float,
        default=DEFAULTS.regressor_weight,
        help="weight of the regressor's loss, where the pictures' is 1 (%(default)s)",
    )
    parser.add_argument(
        "--schedule", choices=("halve", "cosine"), default=DEFAULTS.schedule, help="how the rates fall (%(default)s)"
    )
    parser.add_argument(
        "--warm-up",
        type=positive_int,
        default=DEFAULTS.warm_up,
        help="steps over which the rates rise to those of the schedule; the first steps of a run with --init then do "
        "not spoil the weights (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default=DEFAULTS.precision,
        help="dtype of the matrix products (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULTS.seed, help="seed of crops and initial weights (%(default)s)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Train. An interrupted run goes on where it stopped."""
    if args.plain:
        of_exits = {"exit_every": EXIT_EVERY, "head_exit": False}
        of_exits |= {name: getattr(DEFAULTS, name) for name in ("target", "regressor_lr", "regressor_weight")}
        for name, default in of_exits.items():
            if (value := getattr(args, name)) != default:
                raise UserError(f"{name.replace('_', '-')}: expected without --plain, which has no exits, got {value}")
    if args.regressor_only and args.init is None:
        raise UserError("regressor-only: expected --init with a trained backbone, got none")
    device = named_device(args.device)
    with joined(device) as ranks:
        torch.manual_seed(args.seed)
        try:
            model = build_model(args.network, network_config(args))
            if args.init is not None:
                initialise(model, load_model(args.init))
        except (ValueError, TypeError) as error:  # sizes or intervals that do not go together
            raise UserError(str(error)) from None
        if ranks.leads:
            check_writable(args.out, "out", folder=True)
        tell = _say if ranks.leads else _say_nothing
        sampler = CropSampler(args.data, args.scale, args.patch, args.seed, args.lr_data, tell)
        ranks.check_same("data", f"{len(sampler.pairs)} images of {sampler.nbytes} bytes decoded")
        if ranks.leads:
            print(f"{counted(len(sampler.pairs))} ({sampler.skipped} smaller than {args.patch}x{args.patch} left out)")
        config = TrainingConfig(**{field.name: getattr(args, field.name) for field in SETTINGS})
        weights = TrainingRun(model, _crops(sampler, device), config, args.out, str(device), ranks).run()
        if ranks.leads:
            print(f"weights: {weights}")


def _say(fault: str) -> None:
    """Print what is wrong with an image, above the bar."""
    tqdm.write(f"ape-sr: error: {fault}", file=sys.stderr)


def _say_nothing(fault: str) -> None:
    """The first process says it."""


def network_config(args: argparse.Namespace) -> dict[str, object]:
    """The arguments by the names that the chosen network's class has. Raises UserError for one that it lacks."""
    config: dict[str, object] = {"scale": args.scale, "exit_interval": None if args.plain else args.exit_every}
    if args.network == "swinir":
        heads = 6 if args.feats % 6 == 0 else 4
        config |= {"embed_dim": args.feats, "depths": (6,) * args.blocks, "num_heads": (heads,) * args.blocks}
    else:
        config |= {"n_blocks" if args.network == "ecbsr" else "n_resblocks": args.blocks, "n_feats": args.feats}
    for name, key, value in (("groups", "n_resgroups", args.groups), ("head-exit", "head_exit", args.head_exit)):
        if value and key not in signature(NETWORKS[args.network]).parameters:
            raise UserError(f"{name}: expected with another network, as {args.network} has none, got {value}")
        if value:
            config[key] = value
    return config


def _crops(sampler: CropSampler, device: torch.device) -> CropSampler | ResidentCrops:
    """Crops that are cut on the GPU, if the images fit in half of its free memory; else on the CPU."""
    if device.type != "cuda":
        return sampler
    free, _ = torch.cuda.mem_get_info(device)
    if sampler.nbytes <= free // 2:
        return ResidentCrops(sampler, device)
    print(f"images: {sampler.nbytes >> 20} MiB, {free >> 20} MiB free on {device}: crops are cut on the CPU")
    return sampler
