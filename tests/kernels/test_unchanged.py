"""A second wrapper of an unchanged model takes what the first one has prepared; of a changed one nothing."""

import copy
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from support import spread_network, test_patches
from torch import nn

from ape_kernels import APEForward, NotRecognised, forward
from ape_kernels.unchanged import fingerprint

PATCHES = test_patches(3)


@pytest.fixture
def model() -> nn.Module:
    return spread_network().cpu()


@pytest.fixture
def work(monkeypatch) -> list[str]:
    """The names of what was done to prepare, in order."""
    done = []

    def noted(name):
        original = getattr(forward, name)

        def call(*args):
            done.append(name)
            return original(*args)

        return call

    for name in ("to_program", "check_program", "choose"):
        monkeypatch.setattr(forward, name, noted(name))
    return done


def pictures(fast: APEForward) -> torch.Tensor:
    return fast.forward_patches(PATCHES.cpu())[0]


def test_a_second_wrapper_prepares_nothing(model, work):
    first = APEForward(model, 0.5, backend="torch")
    assert work == ["to_program", "check_program", "choose"]
    second = APEForward(model, 0.0, backend="torch", patch_size=20)
    assert work == ["to_program", "check_program", "choose"]
    assert second.program is first.program and second.threshold == 0.0 and second.patch_size == 20
    assert torch.equal(pictures(second), pictures(APEForward(copy.deepcopy(model), 0.0, backend="torch")))


def test_another_dtype_is_packed_from_the_same_program(model, work):
    first = APEForward(model, backend="torch")
    second = APEForward(model, backend="torch", dtype=torch.bfloat16)
    assert work == ["to_program", "check_program", "choose", "choose"]
    assert not torch.equal(pictures(first), pictures(second))


def test_training_mode_is_no_change(model, work):
    first = APEForward(model, backend="torch")
    APEForward(model.train(), backend="torch")
    assert work == ["to_program", "check_program", "choose"]
    assert not first.training


def add_in_place(model):
    with torch.no_grad():
        model.body[0].body[0].weight.add_(0.01)


def add_by_data(model):
    model.body[0].body[0].weight.data.add_(0.01)


def change_one_bit(model):
    bits = model.body[1].body[2].weight.data.view(torch.int32)
    bits[3, 2, 1, 0] ^= 1 << 20


def exchange_channels(model):
    """The sum of the weights stays the same."""
    weight = model.body[0].body[0].weight
    weight.data = weight.data.flip(0)


def exchange_channels_in_place(model):
    weight = model.body[0].body[0].weight.data
    weight.copy_(weight.flip(0))


def exchange_neighbours_in_place(model):
    weight = model.head[0].weight.data
    weight.copy_(weight.flip(-1))


def change_tail(model):
    model.tail[1].bias.data[2] += 0.1


def exchange_blocks(model):
    model.body[0], model.body[1] = model.body[1], model.body[0]


def change_res_scale(model):
    model.body[0].res_scale = 0.5


def change_interval(model):
    model.exit_interval = 2


def replace_block(model):
    model.body[2] = copy.deepcopy(model.body[0])


def drop_regressor(model):
    del model.regressor


CHANGES = (
    add_in_place,
    add_by_data,
    change_one_bit,
    exchange_channels,
    exchange_channels_in_place,
    exchange_neighbours_in_place,
    change_tail,
    exchange_blocks,
    change_res_scale,
    change_interval,
    replace_block,
    drop_regressor,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_a_changed_model_is_prepared_anew(model, change, work):
    first = APEForward(model, backend="torch")
    change(model)
    second = APEForward(model, backend="torch")
    assert work == ["to_program", "check_program", "choose"] * 2
    assert second.program is not first.program
    assert torch.equal(pictures(second), pictures(APEForward(copy.deepcopy(model), backend="torch")))


def test_a_forward_that_changes_is_checked_again(model, monkeypatch):
    first = APEForward(model, backend="torch")
    monkeypatch.setattr(type(model), "reconstruct", lambda self, features: self.tail(features))
    with pytest.raises(NotRecognised, match="does something else"):
        APEForward(model, backend="torch")
    assert first.program is not None


def test_a_hook_is_checked_every_time(model):
    first = APEForward(model, backend="torch")
    model.head.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(NotRecognised, match="does something else"):
        APEForward(model, backend="torch")
    assert first.program is not None


def test_what_cannot_be_compared_has_no_fingerprint(model):
    assert fingerprint(model) == fingerprint(model) is not None
    model.options = SimpleNamespace(scale=4)
    assert fingerprint(model) is None
    assert fingerprint("model") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_every_byte_of_a_tensor_counts(dtype):
    module = nn.Module()
    storage = torch.arange(150_003, dtype=torch.int64).to(dtype)
    module.register_buffer("values", storage[3:])  # starts at no multiple of 8 bytes
    marks = [fingerprint(module)]
    for place in (0, 70_000, -1):
        module.values[place] += 1 if dtype is torch.uint8 else 4096
        marks.append(fingerprint(module))
    assert None not in marks and all(a != b for i, a in enumerate(marks) for b in marks[:i])


def test_what_was_prepared_goes_with_its_last_wrapper(model):
    fast = APEForward(model, backend="torch")
    program = weakref.ref(fast.program)
    del fast
    gc.collect()
    assert program() is None


def test_the_model_goes_with_its_wrappers():
    model = spread_network().cpu()
    fast, second = APEForward(model, backend="torch"), APEForward(model, backend="torch")
    wrapped = weakref.ref(model)
    del model, fast, second
    gc.collect()
    assert wrapped() is None


def test_a_wrapper_goes_its_own_way_once_the_weights_change(model):
    first, second = APEForward(model, backend="torch"), APEForward(model, backend="torch")
    before = pictures(first)
    add_in_place(model)
    expected = pictures(APEForward(copy.deepcopy(model), backend="torch"))
    assert torch.equal(pictures(first), expected) and torch.equal(pictures(second), expected)
    assert not torch.equal(before, expected)


def test_wrapped_from_several_threads(model):
    expected = pictures(APEForward(copy.deepcopy(model), backend="torch"))
    failures = []

    def wrap():
        for _ in range(5):
            if not torch.equal(pictures(APEForward(model, backend="torch")), expected):
                failures.append("another picture")

    threads = [threading.Thread(target=wrap) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
