"""Recognition by structure: what is taken, and near misses that must be refused by name."""

import copy

import pytest
import torch
from families import assert_refused, edit
from reference import literal_forward, picture_at_exit
from support import assert_pictures_close, spread_network, test_patches
from torch import nn

from ape_kernels import APEForward, NotRecognised, fit_exits, to_program
from ape_kernels.program import Conv, Reconstruct


class AuthorsEDSR(nn.Module):
    """The authors' class as users have it: attributes only, and a forward with two modes."""

    def __init__(self, test_only: bool, exit_threshold: float = 0.5, blocks: int = 4, exit_interval: int = 1) -> None:
        super().__init__()
        ours = spread_network(blocks=blocks)
        for name, child in ours.named_children():
            self.add_module(name, child)
        self.exit_interval, self.exit_threshold, self.test_only = exit_interval, exit_threshold, test_only

    def forward(self, x):
        if not self.test_only:
            skip, pictures, predictions = self.head(self.sub_mean(x)), [], []
            stream = skip
            for i, block in enumerate(self.body[:-1], start=1):
                stream = block(stream)
                if i % self.exit_interval == 0:
                    pictures.append(self.add_mean(self.tail(skip + self.body[-1](stream))))
                    predictions.append(self.regressor(stream))
            return pictures, predictions
        sr, exit_index, predictions = literal_forward(self, x, self.exit_threshold)
        return sr, exit_index.float(), predictions[-1][:, None]


class PlainEDSR(nn.Module):
    """EDSR-PyTorch's frame: no regressor, no exits; blocks without res_scale attribute work too."""

    def __init__(self, mean_shift: bool = True) -> None:
        super().__init__()
        ours = spread_network(exit_interval=None)
        for name, child in ours.named_children():
            if mean_shift or not name.endswith("_mean"):
                self.add_module(name, child)

    def forward(self, x):
        x = self.head(self.sub_mean(x) if hasattr(self, "sub_mean") else x)
        x = self.tail(x + self.body(x))
        return self.add_mean(x) if hasattr(self, "add_mean") else x


@pytest.mark.parametrize("test_only", [False, True], ids=["training-mode", "test-mode"])
def test_the_authors_class(test_only, backend):
    model = AuthorsEDSR(test_only)
    patches = test_patches(12)
    sr, exit_index, _ = APEForward(model, backend=backend).forward_patches(patches)
    literal, _, _ = literal_forward(model, patches, 0.5)
    assert_pictures_close(sr, literal)
    assert len(set(exit_index.tolist())) > 1


@pytest.mark.parametrize("mean_shift", [True, False], ids=["with-mean-shift", "without-mean-shift"])
def test_a_plain_edsr(mean_shift, backend):
    model = PlainEDSR(mean_shift)
    patches = test_patches(2)
    assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))


@pytest.mark.parametrize("test_only", [False, True], ids=["training-mode", "test-mode"])
def test_blocks_after_the_last_exit_belong_to_full_depth(test_only, backend):
    model = AuthorsEDSR(test_only, exit_threshold=1.0, blocks=3, exit_interval=2)
    patches = test_patches(2)
    fast = APEForward(model, 0.0, backend=backend)
    assert [stage.has_exit for stage in fast.program.stages] == [True, False]
    sr, exit_index, _ = fast.forward_patches(patches)
    assert exit_index.tolist() == [1, 1]
    assert_pictures_close(sr, literal_forward(model, patches, 2.0)[0])
    sr, _, _ = fast.forward_patches(patches, torch.tensor([0, 0]))
    assert_pictures_close(sr, picture_at_exit(model, patches, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_grey_levels(dtype):
    """A tail that brings nothing but its bias and the mean, in the published range: levels, not their rounding."""
    model = spread_network(exit_interval=None, rgb_range=255.0)
    model.tail[1].weight.zero_()
    patches = 255 * test_patches(2, 6, 6)
    sr = APEForward(model, backend="torch", dtype=dtype).forward_patches(patches)[0]
    assert_pictures_close(sr, model(patches))


def test_the_program_of_an_edsr():
    program = to_program(spread_network(blocks=4, exit_interval=2))
    assert [len(stage.steps) for stage in program.stages] == [5, 5]
    assert [type(step) for step in program.tail] == [Conv, Reconstruct]
    assert (program.upscale, program.out_channels, program.in_channels) == (4, 3, 3)


def insert(path: str, position: int, module: nn.Module):
    return lambda model: model.get_submodule(path).insert(position, module)


def conv(kernel: int = 3, channels: int = 16, **options) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=options.pop("padding", kernel // 2), **options)


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class ReluAfterSum(nn.Module):
    """A residual block by its parts, something else by its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), nn.ReLU(), conv())
        self.res_scale = 1.0

    def forward(self, x):
        return torch.relu(x + self.body(x))


NEAR_MISSES = {
    "kernel-5-head": (
        edit("head.0", nn.Conv2d(3, 16, 5, padding=2)),
        r"model.head.0: expected kernel_size \(3, 3\), got \(5, 5\)",
    ),
    "two-convs-in-head": (insert("head", 1, conv()), "model.head: expected 1 layers, got 2"),
    "kernel-1-block": (edit("body.1.body.0", conv(1)), "model.body.1.body.0: expected kernel_size"),
    "dilated-block": (edit("body.1.body.2", conv(dilation=2, padding=2)), "model.body.1.body.2: expected dilation"),
    "strided-block": (edit("body.1.body.2", conv(stride=2)), "model.body.1.body.2: expected stride"),
    "grouped-block": (edit("body.2.body.0", conv(groups=4)), "model.body.2.body.0: expected groups 1, got 4"),
    "reflecting-block": (
        edit("body.2.body.0", conv(padding_mode="reflect")),
        "model.body.2.body.0: expected padding_mode zeros, got reflect",
    ),
    "unpadded-block": (
        edit("body.2.body.0", conv(padding=0)),
        r"model.body.2.body.0: expected padding 1, got \(0, 0\)",
    ),
    "batch-norm-in-block": (
        insert("body.0.body", 1, nn.BatchNorm2d(16)),
        "model.body.0.body: expected 3 layers, got 4",
    ),
    "batch-norm-for-relu": (
        edit("body.0.body.1", nn.BatchNorm2d(16)),
        "model.body.0.body.1: expected an nn.ReLU, got BatchNorm2d",
    ),
    "prelu-in-block": (edit("body.3.body.1", nn.PReLU()), "model.body.3.body.1: expected an nn.ReLU, got PReLU"),
    "attention-beside-block": (edit("body.3.attention", conv(1)), "model.body.3.attention: expected no such submodule"),
    "tensor-res-scale": (
        edit("body.3.res_scale", torch.tensor(0.5)),
        "model.body.3.res_scale: expected a number, got Tensor",
    ),
    "conv-among-blocks": (edit("body.1", conv()), r"model.body.1: expected a residual block with .body"),
    "block-for-closing-conv": (
        lambda m: m.body.append(m.body[0]),
        "model.body.5: expected an nn.Conv2d 3x3, got ResBlock",
    ),
    "wider-closing-conv": (
        edit("body.4", nn.Conv2d(16, 24, 3, padding=1)),
        "model.body.4: expected out_channels 16, got 24",
    ),
    "relu-in-upsampler": (insert("tail.0", 2, nn.ReLU()), "model.tail.0: expected pairs of conv and PixelShuffle"),
    "relu-for-shuffle": (edit("tail.0.1", nn.ReLU()), "model.tail.0.1: expected an nn.PixelShuffle, got ReLU"),
    "relu-before-last-conv": (insert("tail", 1, nn.ReLU()), "model.tail: expected 2 layers, got 3"),
    "kernel-5-last-conv": (edit("tail.1", nn.Conv2d(16, 3, 5, padding=2)), r"model.tail.1: expected kernel_size"),
    "one-mean-shift": (
        lambda m: delattr(m, "add_mean"),
        "model.sub_mean: expected sub_mean and add_mean both, or neither",
    ),
    "extra-submodule": (edit("refine", conv()), "model.refine: expected no such submodule"),
    "sigmoid-regressor": (edit("regressor.3", nn.Sigmoid()), "model.regressor.3: expected an nn.Tanh, got Sigmoid"),
    "wider-regressor": (
        edit("regressor.2", nn.Linear(16, 2)),
        r"model.regressor.2: expected nn.Linear\(16, 1\), got \(16, 2\)",
    ),
    "pool-of-two": (edit("regressor.0", nn.AdaptiveAvgPool2d(2)), "model.regressor.0: expected output_size 1, got 2"),
    "no-exit-interval": (
        lambda m: delattr(m, "exit_interval"),
        "model.exit_interval: expected a whole number from 1 to 4, got None",
    ),
    "exit-interval-too-long": (
        edit("exit_interval", 5),
        "model.exit_interval: expected a whole number from 1 to 4, got 5",
    ),
    "conv-with-own-forward": (
        edit("body.1.body.0", Doubling(16, 16, 3, padding=1)),
        "model.body.1.body.0: expected an nn.Conv2d 3x3, got Doubling",
    ),
    "weight-by-a-hook": (
        lambda m: nn.utils.spectral_norm(m.body[1].body[0]),
        "model.body.1.body.0: expected a weight that is a parameter, got one that a hook computes",
    ),
    "block-with-own-forward": (
        edit("body.1", ReluAfterSum()),
        "model: its forward does something else than its layers say",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = spread_network()
    assert_refused(model, change, message)


class Around(nn.Module):
    """An EDSR that has a mean shift and uses it or not, on pixels times `factor`, in its forward alone."""

    def __init__(self, used: bool, factor: float) -> None:
        super().__init__()
        for name, child in spread_network(exit_interval=None, rgb_range=factor).named_children():
            self.add_module(name, child)
        self.used, self.factor, self.head_calls = used, factor, 0

    def forward(self, x, scale=None):
        x = self.factor * x
        x = self.sub_mean(x) if self.used else x
        x = self.head(x)
        self.head_calls += 1
        x = self.tail(x + self.body(x))
        return (self.add_mean(x) if self.used else x) / self.factor


@pytest.mark.parametrize("factor", [1.0, 255.0])
@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
class TestWhatSurroundsTheLayers:
    """super-image has a mean shift and leaves it out, torchSR multiplies inside: a probe of the forward shows it."""

    def test_is_seen(self, used, factor, backend):
        model, patches = Around(used, factor), test_patches(2)
        assert_pictures_close(APEForward(model, backend=backend).forward_patches(patches)[0], model(patches))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_in_half_precision(self, used, factor, dtype):
        model, patches = Around(used, factor), test_patches(2)
        expected = model(patches)
        fast = APEForward(model.to(dtype), backend="torch")
        assert_pictures_close(fast.forward_patches(patches)[0], expected, 0.05)

    def test_is_seen_again_in_a_copy_and_with_new_weights(self, used, factor):
        model, patches = Around(used, factor), test_patches(2)
        fast = copy.deepcopy(APEForward(model))
        for network in (fast.model, model):
            network.body[0].body[0].weight.mul_(0.5)
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))

    def test_runs_no_further_than_the_head(self, used, factor):
        model = Around(used, factor).train()
        to_program(model)
        assert model.head_calls == 0 and model.training
        assert not model.head._forward_pre_hooks


def test_a_forward_that_is_not_symmetric_is_refused():
    model = Around(True, 255.0)
    model.forward = lambda x: Around.forward(model, x) * 255
    with pytest.raises(NotRecognised, match="its forward does something else"):
        APEForward(model)


class TestRefusals:
    """One line: the nearest family and the first difference."""

    def test_a_part_that_is_missing(self):
        model = spread_network()
        del model.tail
        with pytest.raises(NotRecognised) as refusal:
            to_program(model)
        assert str(refusal.value) == (
            "model.tail: expected a submodule beside head, body, got none (nearest family: EDSR)"
        )

    def test_a_part_that_differs(self):
        model = spread_network()
        model.body[1].body[1] = nn.SiLU()
        with pytest.raises(NotRecognised) as refusal:
            to_program(model)
        assert str(refusal.value) == "model.body.1.body.1: expected an nn.ReLU, got SiLU (nearest family: EDSR)"

    def test_a_part_too_many(self):
        """MDSR: head, body, tail and upsample, like an ECBSR, but no ECB in it."""
        model = spread_network()
        model.pre_process, model.upsample = nn.ModuleList([conv()]), nn.ModuleList([conv()])
        with pytest.raises(NotRecognised, match=r"^model.pre_process: expected no such .* \(nearest family: EDSR\)$"):
            to_program(model)

    def test_nothing_alike(self):
        with pytest.raises(NotRecognised, match=r"^model: Sequential \(0, 1\) is like no known network \(ECBSR, "):
            to_program(nn.Sequential(conv(), nn.ReLU()))

    def test_what_is_wrapped_already(self):
        fast = APEForward(spread_network())
        for call in (to_program, APEForward, lambda model: fit_exits(model, [])):
            with pytest.raises(TypeError, match="expected a network, got the APEForward of one; give its"):
                call(fast)

    def test_families_are_named_once(self):
        with pytest.raises(NotRecognised) as refusal:
            to_program(nn.Sequential(conv()))
        names = str(refusal.value).partition("known network (")[2].rstrip(")").split(", ")
        assert {"EDSR", "RCAN", "HAT", "DAT", "SwinIR"} <= set(names)
        assert len(names) == len(set(names)) and not any(" or " in name for name in names)

    def test_weights_that_are_not_finite(self):
        model = spread_network()
        model.body[0].body[0].bias[3] = torch.inf
        with pytest.raises(NotRecognised, match=r"^model.body.0.body.0.bias: expected finite weights, got NaN or "):
            APEForward(model)

    def test_weights_that_overflow(self):
        model = spread_network().half()
        model.tail[0][0].weight.fill_(60000)
        with pytest.raises(NotRecognised, match=r"^model: its layers overflow torch.float16: its forward gives "):
            APEForward(model)

    def test_a_forward_that_fails(self):
        model = spread_network()
        model.forward = lambda x: x @ x
        with pytest.raises(NotRecognised, match=r"^model: its forward fails on a patch \[1, 3, 7, 6\]: "):
            APEForward(model)


def test_no_module_at_all():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        APEForward("edsr.pth")


def test_a_model_that_returns_no_picture():
    model = spread_network()
    model.forward = lambda x: {"sr": x}
    with pytest.raises(NotRecognised, match=r"expected its forward to return a picture, got dict"):
        APEForward(model)
