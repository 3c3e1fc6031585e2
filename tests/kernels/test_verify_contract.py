"""What a verification runs and when its results are right: synthetic programs, and planted errors of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import randomise
from support import DEVICE, spread_network
from torch import Tensor

from ape_kernels import to_program
from ape_kernels.backends import torch as oracle
from ape_kernels.program import Activation, ChannelAttention, Conv, Exit, Interpolation, Reconstruct, Upsample
from ape_kernels.table import Column
from ape_kernels.verify import candidate, contract, images
from ape_kernels.verify.device import Device
from ape_kernels.verify.programs import PROGRAMS, residual
from ape_kernels.verify.signature import Json, program_of, signature_of
from ape_kernels.verify.task import IMAGES, Task
from ape_sr.models import ECBSR, EDSR, RCAN, VDSR, RRDBNet, SwinIR

NETWORKS = {
    "EDSR": lambda: EDSR(4, 16, 64, 2),
    "EDSR 32x256": lambda: EDSR(2, 32, 256, 4, res_scale=0.1),
    "RCAN": lambda: RCAN(scale=2, n_resgroups=10, n_resblocks=20, n_feats=16),
    "VDSR": lambda: VDSR(scale=2),
    "ECBSR": lambda: ECBSR(scale=3),
    "RRDB": lambda: RRDBNet(scale=4, n_resblocks=3, exit_interval=1),
}
COLUMNS_OF_OFFSETS = [Column.WEIGHT, Column.BIAS, Column.SLOPE]


def task(signature: Json, dtype: str = "float32", size: int = 8) -> Task:
    return Task(signature, Device.of(DEVICE), dtype, (size, size), "highest")


def arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


@cache
def reference(name: str = "small") -> dict[str, Any]:
    return arrays(candidate.make_reference(task(SIGNATURES[name]), DEVICE))


def measured(backend: Any, name: str = "small", dtype: str = "float32") -> dict[str, Any]:
    return arrays(candidate.measure(backend, task(SIGNATURES[name], dtype), DEVICE, reference(name)))


SIGNATURES = {"small": residual(8, 3, 2), **PROGRAMS}


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


class TestSignature:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_synthetic_program_has_the_table_of_the_network(self, name):
        program = to_program(randomise(NETWORKS[name]()))
        signature = json.loads(json.dumps(signature_of(program)))
        made = program_of(signature)
        assert signature_of(made) == signature
        tables = [oracle.pack(p, torch.device("cpu"), torch.float32).table for p in (program, made)]
        for table in tables:
            table[:, COLUMNS_OF_OFFSETS] = 0
        assert torch.equal(*tables)

    @pytest.mark.parametrize("name", [*NETWORKS, *PROGRAMS])
    def test_its_signals_are_of_order_one_and_its_exits_split_the_patches(self, name):
        """Over any depth: RCAN has 624 steps."""
        signature = PROGRAMS.get(name) or signature_of(to_program(randomise(NETWORKS[name]())))
        made = candidate.make_reference(task(signature, size=6), DEVICE)  # raises where they are not
        program = program_of(signature)
        exits = [i for i, stage in enumerate(program.stages[:-1]) if stage.has_exit]
        left = made["right.exit"].cpu().bincount(minlength=len(program.stages))
        assert sum(int(left[i] > 0) for i in exits) >= 2 / 3 * len(exits)
        assert 0.1 < float(made["right.sr"].std()) < 10

    def test_no_prediction_is_near_the_boundary(self):
        """Where one could fall on either side by rounding, exits would not have to be equal."""
        for name in ("small", "residual, 64 channels", "dense"):
            capacity = reference(name)["right.capacity"]
            assert np.abs(1 - capacity - candidate.BOUNDARY).min() > candidate.GAP

    def test_patches_that_can_hardly_be_told_apart_leave_together_or_not_at_all(self):
        means = torch.rand(candidate.PATCHES, 4, dtype=torch.float64) * 1e-3
        means[::2] += 1
        exits = candidate.split_exits([means, means])
        there = torch.ones(candidate.PATCHES, dtype=torch.bool)
        for (weight, bias), leaving in zip(exits, (6, 0), strict=True):
            predictions = torch.tanh(means.float() @ weight + bias)
            assert (predictions[there] - candidate.BOUNDARY).abs().min() > candidate.GAP
            left = there & (predictions >= candidate.BOUNDARY)
            assert int(left.sum()) == leaving
            there &= ~left

    def test_what_makes_programs_unlike_is_in_it(self):
        signature = lambda **changes: json.dumps(signature_of(to_program(spread_network(**changes))))  # noqa: E731
        same = signature()
        assert signature(seed=5) == same, "weights do not matter"
        for changes in ({"blocks": 5}, {"feats": 24}, {"scale": 2}, {"exit_interval": 2}, {"res_scale": 0.5}):
            assert signature(**changes) != same, changes

    def test_module_steps_are_refused(self):
        program = to_program(SwinIR(scale=2, embed_dim=8, depths=(1,), num_heads=(1,), n_feats=8))
        with pytest.raises(ValueError, match="program: expected no Module steps, got one of"):
            signature_of(program)

    def test_an_unknown_step_is_refused(self):
        with pytest.raises(ValueError, match="signature: expected a step of a patch program, got 'Sort'"):
            program_of({**SIGNATURES["small"], "head": [{"step": "Sort"}]})

    def test_the_programs_of_the_command_have_every_kind_of_step(self):
        steps = [step for signature in PROGRAMS.values() for step in program_of(signature).steps()]
        assert {type(step) for step in steps} == {Conv, ChannelAttention, Upsample, Exit, Reconstruct}
        convs = [step for step in steps if isinstance(step, Conv)]
        assert {step.activation for step in convs} == set(Activation)
        assert {step.weight.shape[-1] for step in convs} >= {1, 3, 5}
        assert {len(step.sources) for step in convs} >= {1, 2, 5}
        assert {step.interpolation for step in steps if isinstance(step, Upsample)} == set(Interpolation)
        tails = {(s.tail.kernel.shape[0], s.add is None) for s in steps if isinstance(s, Reconstruct)}
        assert tails == {(4, True), (1, True), (1, False)}


def spoilt(operation: str, spoil: Callable[..., None]) -> SimpleNamespace:
    """The torch backend, one operation of which spoils its results."""

    def spoiling(*arguments: Any) -> Any:
        returned = getattr(oracle, operation)(*arguments)
        results = arguments[-1] if operation == "run_patches" else returned
        spoil(*results) if isinstance(results, tuple) else spoil(results)
        return returned

    return SimpleNamespace(**{**vars(oracle), operation: spoiling})


def last_row(sr: Tensor, *_: Tensor) -> None:
    sr[:, :, -1] = sr[:, :, -2]


def one_exit(sr: Tensor, exits: Tensor, capacity: Tensor) -> None:
    exits[4] += 1 if exits[4] == 0 else -1


def in_company(sr: Tensor, *_: Tensor) -> None:
    if len(sr) > candidate.PATCHES:
        sr[-1] += 1e-2


FAULTS = {
    "one pixel": ("run_patches", lambda sr, *_: sr[3, 1, 5].add_(2e-3), "run_patches: pixels off by up to"),
    "last row": ("run_patches", last_row, "run_patches: pixels off by up to"),
    "NaN": (
        "run_patches",
        lambda sr, *_: sr[0, 0, 0, :2].fill_(torch.nan),
        "run_patches: 2 pixels are NaN or infinite",
    ),
    "infinity": ("run_patches", lambda sr, *_: sr[0, 0, 0].fill_(torch.inf), "run_patches: 16 pixels are NaN or inf"),
    "an exit": ("run_patches", one_exit, "run_patches: 1 of 12 patches left at another exit"),
    "a prediction": ("run_patches", lambda s, e, c: c[5].add_(1e-3), "run_patches: predictions off by up to 1.0e-03"),
    "no prediction": ("run_patches", lambda s, e, c: c[5].fill_(torch.nan), "run_patches: predictions are NaN"),
    "shape": (
        "run_patches",
        lambda sr, *_: sr.resize_(len(sr), 3, 16, 8),
        "run_patches: sr [12, 3, 16, 8], not [12, 3",
    ),
    "company": ("run_patches", in_company, "run_patches, device full: pixels off by up to"),
    "a stage": ("run_stage", lambda features, *_: features[:, 0].mul_(1.01), "run_stage: pixels off by up to"),
    "merge": ("merge", lambda image: image[1, 0, 7].add_(1e-3), "split and merge: pixels off by 1.0e-03"),
    "split": ("split", lambda patches: patches[1:].copy_(patches[:-1].clone()), "split and merge: pixels off by"),
}


class TestContract:
    def test_what_is_right_is_found_right(self):
        for name in ("small", "parametric"):
            results = measured(oracle, name)
            assert contract.why_wrong(reference(name), results, "float32", results) == ""
            assert 0 < results["milliseconds"] < 1000

    @pytest.mark.parametrize("name", FAULTS)
    def test_a_fault_is_found(self, name):
        operation, spoil, reason = FAULTS[name]
        results = measured(spoilt(operation, spoil))
        assert contract.why_wrong(reference(), results, "float32", measured(oracle)).startswith(reason)

    def test_tolerance_of_float32_is_the_contracts(self):
        extent = float(reference()["right.sr"].max() - reference()["right.sr"].min())
        for share, right in ((0.9e-4, True), (1.1e-4, False)):
            results = measured(spoilt("run_patches", lambda sr, *_, by=share: sr[0, 0, 0].add_(by * extent)))
            assert (contract.why_wrong(reference(), results, "float32", None) == "") is right

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    @pytest.mark.parametrize("name", PROGRAMS)
    def test_rounding_in_half_precision_is_right(self, name, dtype):
        """Its errors are within the contract's bounds, and in float16 within a fifth of them."""
        results = measured(oracle, name, dtype)
        errors = contract.errors_of(reference(name), results, "few")
        assert contract.why_wrong(reference(name), results, dtype, None) == ""
        assert errors.pixel > 1e-5, "it is half precision"
        if dtype == "float16":
            bounds = astuple(contract.SIXTEEN_BITS)
            assert all(error < bound / 5 for error, bound in zip(astuple(errors), bounds, strict=True))

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (last_row, "run_patches: pixels off by up to"),
            (lambda sr, *_: sr.add_(torch.rand_like(sr) - 0.5, alpha=0.06), "(root mean square), not 1.5e-03"),
            (lambda s, e, capacity: capacity.add_(0.05), "run_patches: predictions off by up to 5"),
            (one_exit, "run_patches: 1 of 12 patches left at another exit"),
        ],
        ids=["last row", "noise", "predictions", "exit"],
    )
    def test_errors_in_half_precision_are_found(self, spoil, reason):
        own = measured(oracle, dtype="float16")
        results = measured(spoilt("run_patches", spoil), dtype="float16")
        assert reason in contract.why_wrong(reference(), results, "float16", own)

    def test_where_torch_rounds_more_others_may(self):
        noisy = lambda by: spoilt("run_patches", lambda sr, *_: sr.add_(torch.rand_like(sr) - 0.5, alpha=by))  # noqa: E731
        own = measured(noisy(0.06), dtype="float16")
        assert contract.why_wrong(reference(), measured(noisy(0.07), dtype="float16"), "float16", own) == ""
        assert contract.why_wrong(reference(), measured(noisy(0.13), dtype="float16"), "float16", own) != ""
        assert contract.why_wrong(reference(), measured(noisy(0.07)), "float32", own) != "", "float32 knows no excuse"


@cache
def image_reference(name: str = "small") -> dict[str, Any]:
    return arrays(images.make_reference(image_task(name), DEVICE))


def image_task(name: str, dtype: str = "float32") -> Task:
    return replace(task(SIGNATURES[name], dtype), operation=IMAGES)


def images_measured(backend: Any, name: str = "small", dtype: str = "float32") -> dict[str, Any]:
    return arrays(images.measure(backend, image_task(name, dtype), DEVICE, image_reference(name)))


def spoilt_image(spoil: Callable[..., None]) -> SimpleNamespace:
    """The torch backend, which spoils pictures: ``spoil(out, whether there is a plan)``."""

    def run_image(packed: Any, sharing: Tensor, image: Tensor, depths: Any, picture: Any) -> None:
        oracle.run_image(packed, sharing, image, depths, picture)
        spoil(picture.out, depths.exit_at is not None)

    return SimpleNamespace(**{**vars(oracle), "run_image": run_image})


IMAGE_FAULTS = {
    "one pixel": (lambda out, planned: out[1, 1, 5, 6].add_(2e-3), "images at full depth: pixels off by up to"),
    "by a plan": (lambda out, planned: out[0, 0, 0, 0].add_(2e-3 * planned), "images by a plan: pixels off by up to"),
    "NaN": (lambda out, planned: out[0, 0, 0, :2].fill_(torch.nan), "images at full depth: 2 pixels are NaN or inf"),
    "company": (
        lambda out, planned: out[-1].add_(1e-2 * (len(out) > images.IMAGES)),
        "images by a plan, device full: pixels off by up to",
    ),
}


class TestImages:
    def test_what_is_right_is_found_right(self):
        for name, dtype in (("small", "float32"), ("parametric", "float16"), ("high resolution", "float32")):
            results = images_measured(oracle, name, dtype)
            assert contract.why_images_wrong(image_reference(name), results, dtype, results) == ""
            assert 0 < results["milliseconds"] < 1000

    @pytest.mark.parametrize("name", IMAGE_FAULTS)
    def test_a_fault_is_found(self, name):
        spoil, reason = IMAGE_FAULTS[name]
        results = images_measured(spoilt_image(spoil))
        assert contract.why_images_wrong(image_reference(), results, "float32", None).startswith(reason)

    def test_the_plan_has_interpolated_cells_and_all_depths(self):
        assert set(np.unique(image_reference()["plan"])) == {-1, 0, 1, 2}


class TestDevice:
    """What cannot be seen without a GPU, with stand-ins for what torch says of two."""

    @pytest.fixture
    def cards(self, monkeypatch):
        order = ["uuid-a", "uuid-b"]
        properties = lambda i: SimpleNamespace(name="card", major=9, minor=0, uuid=order[i])  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(order))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        return order

    def test_is_found_again_under_another_index(self, cards):
        device = Device.of(torch.device("cuda", 1))
        assert (device.name, device.capability, device.uuid) == ("card", "9.0", "uuid-b")
        assert Device.of(torch.device("cuda")) == device, "no index: the current one"
        assert device.find() == torch.device("cuda", 1)
        cards.reverse()
        assert device.find() == torch.device("cuda", 0)
        assert device.identity == Device.of(torch.device("cuda", 1)).identity, "cards of one kind share verdicts"

    def test_says_so_when_it_is_not_visible(self, cards):
        device = Device.of(torch.device("cuda", 1))
        cards.pop()
        with pytest.raises(RuntimeError, match="device: expected card uuid-b among the visible devices"):
            device.find()
