import copy
import math
import pickle
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import literal_merge, literal_split, picture_at_exit
from support import assert_pictures_close, spread_network, test_patches
from torch import nn

from ape_kernels import APEForward, BackendUnavailable


@pytest.fixture
def model() -> nn.Module:
    return spread_network()


@cache
def wrapped_once(backend: str) -> APEForward:
    """For tests of many examples: wrapping costs more than running."""
    return APEForward(spread_network(2, 1, 4, 1), 0.5, backend=backend)


def image(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return test_patches(batch, height, width)


def image_with(pixel: float) -> torch.Tensor:
    lr = image(9, 7)
    lr[0, 1, 4, 3] = pixel
    return lr


def test_a_negated_view(model, backend):
    negated = torch.complex(image(9, 7), image(9, 7)).conj().imag
    assert negated.is_neg()
    fast = APEForward(model, 0.0, backend=backend)
    assert torch.equal(fast(negated), fast(-image(9, 7)))


def test_one_patch_at_full_depth_equals_the_model(model, backend):
    lr = image(20, 31)
    assert_pictures_close(APEForward(model, 0.0, backend=backend)(lr), model(lr))


def test_average_merge_equals_the_authors_where_the_step_divides(model, backend):
    lr = image(2 * 10 + 12, 10 + 12)
    fast = APEForward(model, 0.0, backend=backend, context="patch", patch_size=12, overlap=2, blend="average")
    expected = literal_merge(model(literal_split(lr, 12, 10)), 3, 2, 40)
    assert_pictures_close(fast(lr), expected)


@given(height=st.integers(1, 40), width=st.integers(1, 40), patch=st.integers(1, 20), data=st.data())
def test_any_size_gives_every_pixel(height, width, patch, data):
    overlap = data.draw(st.integers(0, patch - 1))
    pictures = []
    for backend in ("torch", "cpu"):
        fast = wrapped_once(backend)
        fast.patch_size, fast.overlap = patch, overlap
        pictures.append(fast(image(height, width)))
    assert pictures[0].shape == (1, 3, 2 * height, 2 * width)
    assert_pictures_close(pictures[0], pictures[1])


@pytest.mark.parametrize("context", ["model", "patch"])
def test_no_images(model, backend, context):
    fast = APEForward(model, context=context, backend=backend, cell=12, patch_size=12)
    sr, report = fast(image(17, 40, batch=0), True)
    assert sr.shape == (0, 3, 68, 160)
    assert report.exit_index.shape == report.capacity.shape == (0, 2, 4)
    assert report.flops == 0 and math.isnan(report.share) and math.isnan(report.body_share)


def test_batch_equals_single_images(model, backend):
    fast = APEForward(model, 0.5, backend=backend, patch_size=12)
    lr = image(17, 40, batch=3)
    assert_pictures_close(fast(lr), torch.cat([fast(lr[i : i + 1]) for i in range(3)]), 1e-6)


def test_report_counts_exits_and_flops(model, backend):
    fast = APEForward(model, 0.5, backend=backend, patch_size=12, overlap=2)
    sr, report = fast(image(32, 50, batch=2), return_report=True)
    assert sr.shape == (2, 3, 128, 200)
    assert report.exit_index.shape == report.capacity.shape == (2, 3, 5)
    assert report.patches_per_exit.tolist() == torch.bincount(report.exit_index.flatten(), minlength=4).tolist()
    pixels = 12 * 12
    head, block, tail = 2 * (3 * 3 + 27 * 16), 2 * 2 * 9 * 16 * 16, 2 * (9 * 16 * 16 + 25 * 16 * 48)
    exits = 16
    done = sum(
        n * pixels * (head + (i + 1) * (block + exits) + tail) for i, n in enumerate(report.patches_per_exit.tolist())
    )
    assert report.flops == done
    assert report.flops_full == 30 * pixels * (head + 4 * (block + exits) + tail)
    assert report.body_share == pytest.approx((report.mean_exit + 1) / 4)
    assert 0 < report.share < 1


class TestThreshold:
    def test_own_exit_threshold_is_one_minus(self, model):
        model.exit_threshold = 0.7
        assert APEForward(model).threshold == pytest.approx(0.3)

    def test_own_exit_threshold_that_no_prediction_reaches(self, model):
        model.exit_threshold = 1.5
        assert APEForward(model).threshold == 0

    def test_own_exit_threshold_below_any_that_can_be_said(self, model):
        model.exit_threshold = -0.5
        with pytest.raises(ValueError, match=r"model.exit_threshold: expected at least 0 .*, got -0.5"):
            APEForward(model)
        assert APEForward(model, 0.3).threshold == 0.3

    def test_plain_network_has_zero(self):
        assert APEForward(spread_network(exit_interval=None)).threshold == 0

    def test_gain_in_db(self, model):
        assert APEForward(model, min_gain_db=0.1).threshold == pytest.approx(math.tanh(0.1))

    def test_can_be_set_between_calls(self, model):
        fast, patches = APEForward(model, 0.0), test_patches(8)
        deep = fast.forward_patches(patches)[1]
        fast.threshold = 1.0
        shallow = fast.forward_patches(patches)[1]
        assert (deep == 3).all()
        assert (shallow < deep).any()

    def test_none_is_the_models_own(self, model):
        model.exit_threshold = 0.7
        fast = APEForward(model, 0.9)
        assert fast.context == "patch"
        fast.threshold = None
        assert fast.threshold == pytest.approx(0.3) and fast.context == "model"

    @pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, "0.5"], ids=repr)
    def test_bad_values(self, model, bad):
        with pytest.raises(ValueError, match="threshold: expected a number from 0 to 1"):
            APEForward(model).threshold = bad


class TestModuleBehaviour:
    def test_state_dict_is_the_models_own(self, model):
        fast = APEForward(model)
        assert fast.state_dict().keys() == model.state_dict().keys()
        fast.load_state_dict(spread_network(seed=5).state_dict())
        assert torch.equal(model.head[0].weight, spread_network(seed=5).head[0].weight)

    def test_state_dict_inside_another_module(self, model):
        outer = nn.Sequential(APEForward(model), nn.ReLU())
        state = outer.state_dict()
        assert set(state) == {f"0.{name}" for name in model.state_dict()}
        result = outer.load_state_dict({f"0.{k}": v for k, v in spread_network(seed=5).state_dict().items()})
        assert not result.missing_keys and not result.unexpected_keys
        assert torch.equal(model.head[0].weight, spread_network(seed=5).head[0].weight)

    def test_loaded_weights_are_picked_up(self, model, backend):
        fast, lr = APEForward(model, 0.0, backend=backend), image(10, 10)
        before = fast(lr)
        fast.load_state_dict(spread_network(seed=5).state_dict())
        assert_pictures_close(fast(lr), spread_network(seed=5)(lr))
        assert not torch.allclose(fast(lr), before)

    def test_an_optimiser_step_is_picked_up(self, model, backend):
        fast, lr = APEForward(model, 0.0, backend=backend), image(10, 10)
        before = fast(lr)
        model.requires_grad_(True)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        model.train()(lr)[0][-1].sum().backward()
        optimiser.step()
        model.eval()
        assert not torch.allclose(fast(lr), before)
        assert_pictures_close(fast(lr), model(lr).detach())

    def test_training_mode_hands_on_to_all_exits(self, model):
        fast = APEForward(model).train()
        pictures, predictions = fast(image(8, 8))
        assert len(pictures) == len(predictions) == 4
        assert_pictures_close(pictures[1], picture_at_exit(model, image(8, 8), 1))

    def test_half_computes_in_half(self, model):
        fast = APEForward(copy.deepcopy(model).half())
        lr = image(10, 10)
        sr = fast(lr.half())
        assert sr.dtype == torch.float16
        assert_pictures_close(sr.float(), APEForward(model, 0.0)(lr), 1e-2)

    def test_to_float32_and_back(self, model):
        fast, lr = APEForward(model, 0.0), image(10, 10)
        before = fast(lr)
        assert fast.half().float()(lr).dtype == torch.float32
        assert_pictures_close(fast(lr), before, 1e-2)

    def test_copies_and_pickles(self, model):
        fast, lr = APEForward(model, 0.3), image(10, 10)
        expected = fast(lr)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other(lr), expected)

    def test_wrapping_leaves_the_model_as_it_was(self, model):
        model.train()
        model.body[1].eval()
        state = copy.deepcopy(model.state_dict())
        APEForward(model)
        assert model.training and not model.body[1].training and model.body[0].training
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())

    def test_works_under_no_grad_and_inference_mode(self, model):
        lr = image(10, 10)
        expected = APEForward(model)(lr)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(APEForward(copy.deepcopy(model))(lr), expected)

    def test_the_result_carries_no_gradient(self, model):
        assert not APEForward(model.requires_grad_(True))(image(6, 6).requires_grad_(True)).requires_grad


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_memory_layouts(model, backend, layout):
    fast, lr = APEForward(model, 0.5, backend=backend), image(30, 26)
    other = lr.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        other = lr.repeat_interleave(2, 2).repeat_interleave(3, 3)[:, :, ::2, ::3]
    assert torch.equal(fast(other), fast(lr))
    assert torch.equal(fast.forward_patches(other)[0], fast.forward_patches(lr)[0])


BAD_IMAGES = {
    "uint8": (
        torch.zeros(1, 3, 5, 5, dtype=torch.uint8),
        TypeError,
        "x: expected a floating-point torch.Tensor, got torch.uint8",
    ),
    "list": ([[1.0]], TypeError, "x: expected a floating-point torch.Tensor, got list"),
    "two-dimensional": (torch.zeros(5, 5), ValueError, r"x: expected \[N, 3, H, W\], .*got \[5, 5\]"),
    "one-channel": (torch.zeros(1, 1, 5, 5), ValueError, r"x: expected \[N, 3, H, W\]"),
    "empty": (torch.zeros(1, 3, 0, 5), ValueError, r"H and W at least 1, got \[1, 3, 0, 5\]"),
    "nan": (torch.full((1, 3, 5, 5), math.nan), ValueError, r"x: expected finite values \(in float32\), got NaN"),
    "infinity": (torch.full((1, 3, 5, 5), math.inf), ValueError, "x: expected finite values"),
    "one-nan": (image_with(math.nan), ValueError, "x: expected finite values"),
    "too-large-for-float32": (image_with(1e30).double() ** 2, ValueError, "x: expected finite values"),
    "one-minus-infinity": (image_with(-math.inf).half(), ValueError, "x: expected finite values"),
    "other-device": (
        torch.zeros(1, 3, 5, 5, device="meta"),
        ValueError,
        "x: expected on the model's device cpu, got meta",
    ),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(model, case):
    value, error, message = BAD_IMAGES[case]
    with pytest.raises(error, match=message):
        APEForward(model)(value)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(threshold=2), ValueError, "threshold: expected a number from 0 to 1, got 2"),
        (dict(min_gain_db=-1), ValueError, "min_gain_db: expected a number of at least 0, got -1"),
        (dict(threshold=0.1, min_gain_db=1), ValueError, "threshold: expected at most one of threshold, min_gain_db, "),
        (dict(patch_size=0), ValueError, "patch_size: expected a whole number"),
        (dict(overlap=48), ValueError, "overlap: expected a whole number from 0 to patch_size - 1 = 47, got 48"),
        (dict(blend="max"), ValueError, "blend: expected one of linear, average, got 'max'"),
        (dict(backend="tpu"), ValueError, "backend: expected auto, .*got 'tpu'"),
        (dict(dtype=torch.int8), ValueError, "dtype: expected None, .*got torch.int8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(model, arguments, error, message):
    with pytest.raises(error, match=message):
        APEForward(model, **arguments)


def test_the_mode_is_the_models_own():
    """A fresh model is in training mode; its own eval() is enough, and no picture comes in place of a report."""
    model = spread_network(2, 1, 4, 1).train()
    fast, lr = APEForward(model, 0.0), image(9, 8, batch=2)
    with pytest.raises(ValueError, match="model: expected in evaluation mode for a report"):
        fast(lr, return_report=True)
    model.eval()
    sr, report = fast(lr, return_report=True)
    assert_pictures_close(sr, model(lr))
    assert report.exit_index.shape == (2, 1, 1)


@pytest.mark.parametrize("notice", ["refresh", "eval"])
def test_writes_that_pytorch_does_not_count_are_read_when_asked(notice):
    model, lr = spread_network(2, 1, 4, 1), image(9, 8)
    fast = APEForward(model, 0.0)
    fast(lr)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    getattr(fast, notice)()
    assert_pictures_close(fast(lr), model(lr))


BAD_EXITS = {
    "list": ([0, 1], TypeError, "exit_at: expected a torch.Tensor, .*got list"),
    "number": (1, TypeError, "exit_at: expected a torch.Tensor, .*got int"),
    "shape": (
        torch.zeros(3, dtype=torch.int64),
        ValueError,
        r"exit_at: expected int64 \[2\] on cpu, got torch.int64 \[3\]",
    ),
    "dtype": (torch.zeros(2), ValueError, r"exit_at: expected int64 \[2\] on cpu, got torch.float32"),
    "too-deep": (torch.tensor([0, 4]), ValueError, "exit_at: expected 0 to 3, got 0 to 4"),
    "below": (torch.tensor([-1, 3]), ValueError, "exit_at: expected 0 to 3, got -1 to 3"),
}


@pytest.mark.parametrize("case", BAD_EXITS)
def test_bad_exit_at(model, case):
    exit_at, error, message = BAD_EXITS[case]
    with pytest.raises(error, match=message):
        APEForward(model).forward_patches(test_patches(2), exit_at)


def test_exit_at_with_strides(model, backend):
    fast, patches = APEForward(model, backend=backend), test_patches(6)
    _, exit_index, _ = fast.forward_patches(patches, torch.tensor([2]).expand(6))
    assert exit_index.tolist() == [2] * 6


class TestChoiceOfBackend:
    def test_a_named_backend_that_cannot_run_says_why_and_who_can(self, model):
        with pytest.raises(
            BackendUnavailable,
            match=r"cpu cannot run: computes in torch.float32 and torch.bfloat16, not torch.float16; able: torch",
        ):
            APEForward(model, backend="cpu", dtype=torch.float16)(image(5, 5))

    def test_auto_takes_the_native_cpu_backend_for_float32(self, model):
        assert APEForward(model).packed.backend == "cpu"

    def test_auto_falls_back_for_other_dtypes(self, model):
        assert APEForward(model, dtype=torch.float16).packed.backend == "torch"

    def test_environment_decides_for_auto(self, model, monkeypatch):
        monkeypatch.setenv("APE_BACKEND", "torch")
        assert APEForward(model).packed.backend == "torch"

    def test_environment_with_an_unknown_name(self, model, monkeypatch):
        monkeypatch.setenv("APE_BACKEND", "tpu")
        with pytest.raises(ValueError, match="backend: expected auto"):
            APEForward(model)(image(5, 5))

    def test_log_names_each_operation_with_shapes(self, model, monkeypatch, caplog):
        monkeypatch.setenv("APE_LOG", "1")
        APEForward(model, backend="torch")(image(5, 6))
        APEForward(model, context="patch", backend="torch", patch_size=4)(image(5, 6))
        lines = caplog.text.splitlines()
        for operation, shape in (
            ("split", "float32[1, 3, 5, 6]@cpu"),
            ("run_patches", "float32[4, 3, 4, 4]@cpu"),
            ("merge", "float32[4, 3, 16, 16]@cpu"),
            ("run_image", "float32[1, 3, 5, 6]@cpu"),
        ):
            said = [line for line in lines if f"{operation} on torch: " in line]
            assert said and shape in said[-1]
            assert "tensor(" not in said[-1]


class TestTracing:
    """torch.compile and torch.export see one operation."""

    def test_compile_fullgraph(self, model, backend):
        fast = APEForward(model, 0.5, backend=backend)
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        for height, width in ((60, 53), (61, 70), (20, 20)):
            assert torch.equal(compiled(image(height, width)), fast(image(height, width)))

    def test_compiled_calls_follow_threshold_and_loaded_weights(self, model):
        fast, lr = APEForward(model, 0.0), image(20, 20)
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        before = compiled(lr)
        fast.threshold = 1.0
        shallow = compiled(lr)
        assert not torch.equal(shallow, before)
        fast.load_state_dict(spread_network(seed=5).state_dict())
        assert torch.equal(compiled(lr), fast(lr))
        assert not torch.equal(compiled(lr), shallow)

    @pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
    def test_export_for_any_size(self, model, strict):
        fast = APEForward(model, 0.5)
        sides = {2: torch.export.Dim("height", min=49, max=4096), 3: torch.export.Dim("width", min=49, max=4096)}
        exported = torch.export.export(fast, (image(60, 53),), dynamic_shapes={"x": sides}, strict=strict)
        calls = [node.target for node in exported.graph.nodes if node.op == "call_function"]
        assert calls.count(torch.ops.ape_kernels.upscale.default) == 1
        assert not any("conv" in str(call) for call in calls)
        assert torch.equal(exported.module()(image(70, 81)), fast(image(70, 81)))
