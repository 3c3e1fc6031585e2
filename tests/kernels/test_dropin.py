"""`APEForward` in the place of a network in other people's code; small stand-ins make the same calls as theirs."""

import copy

import pytest
import torch
from support import DEVICE, assert_pictures_close, spread_network, test_patches
from test_ecbsr import AuthorsECBSR
from test_rrdb import AuthorsRRDB, BasicSR
from torch import nn
from torch.nn.functional import pad

from ape_kernels import APEForward, PatchForward, Wish, pack, to_program
from ape_sr.models import EDSR


def small(**options) -> nn.Module:
    return spread_network(2, 2, 8, None, **options)


class Enhancer:
    """Calls a model as Real-ESRGAN's `RealESRGANer` does: loads into it, moves it, pads, runs whole or by tiles."""

    def __init__(self, scale, state, model, *, tile=0, half=False):
        self.scale, self.tile = scale, tile
        model.load_state_dict(state, strict=True)
        model.eval()
        self.model = model.to(DEVICE)
        if half:
            self.model = self.model.half()
        self.dtype = torch.float16 if half else torch.float32

    @torch.no_grad()
    def enhance(self, pixels):
        image = pad(pixels.to(DEVICE, self.dtype), (0, 10, 0, 10), "reflect")
        height, width = image.shape[2:]
        fold = {2: 2, 1: 4}.get(self.scale, 1)
        image = pad(image, (0, -width % fold, 0, -height % fold), "reflect")
        output = self.tiles(image) if self.tile else self.model(image)
        height, width = (side * self.scale for side in pixels.shape[2:])
        return output.data[:, :, :height, :width].float().clamp_(0, 1)

    def tiles(self, image):
        scale, (height, width) = self.scale, image.shape[2:]
        output = image.new_zeros(1, 3, height * scale, width * scale)
        for y in range(0, height, self.tile):
            for x in range(0, width, self.tile):
                top, left = max(0, y - 10), max(0, x - 10)
                part = self.model(image[:, :, top : y + self.tile + 10, left : x + self.tile + 10])
                inner = part[:, :, (y - top) * scale :, (x - left) * scale :]
                place = output[:, :, y * scale : (y + self.tile) * scale, x * scale : (x + self.tile) * scale]
                place.copy_(inner[:, :, : place.shape[2], : place.shape[3]])
        return output


@pytest.mark.parametrize("scale", [4, 2])
@pytest.mark.parametrize("options", [{}, {"tile": 16}, {"half": True}], ids=["whole", "tiles", "half"])
def test_in_real_esrgans_helper(scale, options):
    model, pixels = BasicSR(scale=scale), test_patches(1, 21, 26)
    state = {name: value * 0.9 for name, value in model.state_dict().items()}
    expected = Enhancer(scale, state, BasicSR(scale=scale), **{**options, "half": False}).enhance(pixels)
    got = Enhancer(scale, state, APEForward(model), **options).enhance(pixels)
    assert_pictures_close(got, expected, 1e-2 if "half" in options else 1e-4)


class Model(nn.Module):
    """Calls a network as the `Model` of EDSR-PyTorch and of the APE authors does."""

    def __init__(self, network, chop=False, ensemble=False):
        super().__init__()
        self.model, self.chop, self.ensemble = network, chop, ensemble

    def forward(self, x, idx_scale):
        if hasattr(self.model, "set_scale"):
            self.model.set_scale(idx_scale)
        if self.training:
            return self.model(x)
        forward = self.forward_chop if self.chop else self.model.forward
        return self.forward_x8(x, forward) if self.ensemble else forward(x)

    def forward_chop(self, x, shave=4):
        (height, width), scale = x.shape[-2:], 2
        rows, columns = (slice(0, n // 2 + shave) for n in (height, width))
        low, right = slice(height - height // 2 - shave, height), slice(width - width // 2 - shave, width)
        parts = torch.cat([x[..., r, c] for r in (rows, low) for c in (columns, right)])
        y = [self.model(part) for part in parts.chunk(4)]
        half, rest = (scale * height // 2, scale * width // 2), (-(-scale * height // 2), -(-scale * width // 2))
        upper = torch.cat([y[0][..., : half[0], : half[1]], y[1][..., : half[0], -rest[1] :]], -1)
        lower = torch.cat([y[2][..., -rest[0] :, : half[1]], y[3][..., -rest[0] :, -rest[1] :]], -1)
        return torch.cat([upper, lower], -2)

    def forward_x8(self, x, forward):
        turned = [t for v in (x, x.flip(3)) for t in (v, v.flip(2))]
        made = [forward(t) for t in turned]
        back = [made[0], made[1].flip(2), made[2].flip(3), made[3].flip(2).flip(3)]
        return torch.cat(back).mean(0, keepdim=True)


@pytest.mark.parametrize("options", [{}, {"chop": True}, {"ensemble": True}], ids=["whole", "chop", "ensemble"])
def test_in_the_model_of_edsr_pytorch(options):
    network, lr = small(), test_patches(1, 20, 24)
    theirs, ours = Model(network, **options).eval(), Model(APEForward(network), **options).eval()
    assert_pictures_close(ours(lr, 0), theirs(lr, 0))
    assert ours.model.state_dict().keys() == network.state_dict().keys(), "what it saves"
    assert not any(ours.model.load_state_dict(network.state_dict(), strict=False))
    pictures = ours.train()(lr, 0)
    assert torch.equal(pictures, network(lr)) and pictures.requires_grad == network(lr).requires_grad


class Descriptor:
    """What spandrel's `ImageModelDescriptor` does with its model."""

    def __init__(self, model, scale):
        self._model, self.scale = model, scale

    @property
    def model(self):
        return self._model

    @property
    def dtype(self):
        return next(self.model.parameters()).dtype

    def to(self, device=None, dtype=None):
        self.model.to(device=device, dtype=dtype)
        return self

    @torch.inference_mode()
    def __call__(self, image):
        self.model.eval()
        return self.model(image).clamp_(0, 1)


def test_in_a_descriptor_of_spandrel():
    model, lr = BasicSR(scale=2), test_patches(1, 20, 18)
    expected = Descriptor(model, 2)(lr)
    descriptor = Descriptor(copy.deepcopy(model).train(), 2)
    assert_pictures_close(APEForward(descriptor).eval()(lr).clamp(0, 1), expected)
    descriptor._model = APEForward(descriptor.model)
    assert_pictures_close(descriptor.to(DEVICE)(lr), expected)
    assert_pictures_close(descriptor.to(dtype=torch.float16)(lr.half()).float(), expected, 1e-2)
    assert descriptor.dtype == torch.float16


class TestTheAuthorsTestCode:
    """``sr, exit_index, ic = model(patches, 0)``, with their exits and their count of them."""

    @pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 2.0])
    @pytest.mark.parametrize("count", [3, 12])
    def test_three_things(self, threshold, count):
        network, patches = AuthorsECBSR(test_only=True).to(DEVICE).eval(), test_patches(count)
        network.exit_threshold = threshold
        theirs = Model(network).eval()(patches, 0)
        sr, exit_index, ic = Model(PatchForward(network)).eval()(patches, 0)
        assert_pictures_close(sr, theirs[0])
        assert torch.equal(exit_index, theirs[1].to(exit_index.dtype))
        torch.testing.assert_close(ic, theirs[2], atol=1e-4, rtol=0)

    def test_predictions_of_exactly_one_leave_at_a_threshold_of_one(self):
        """As theirs do; a threshold of 0, which is 1 minus theirs, means never for `APEForward`."""
        network, patches = AuthorsECBSR(test_only=True).to(DEVICE).eval(), test_patches(4)
        network.regressor[2].bias.data.fill_(50.0)
        network.exit_threshold = 1
        sr, exit_index, ic = PatchForward(network)(patches)
        theirs = network(patches)
        assert (exit_index == 0).all() and torch.equal(exit_index, theirs[1].to(exit_index.dtype)) and (ic == 1).all()
        assert_pictures_close(sr, theirs[0])
        assert (APEForward(network).forward_patches(patches)[1] == 3).all()

    @pytest.mark.parametrize("bias, expected", [(50.0, 0.0), (0.0, -1.0)])
    def test_so_do_those_at_the_last_exit(self, bias, expected):
        network, patches = AuthorsECBSR(test_only=True, blocks=1).to(DEVICE).eval(), test_patches(4)
        network.regressor[2].bias.data.fill_(bias)
        network.exit_threshold = 1
        exit_index = PatchForward(network)(patches)[1]
        assert (exit_index == expected).all() and torch.equal(exit_index, network(patches)[1])

    def test_the_last_exit_of_rrdb_counts_as_the_one_before(self):
        network, patches = AuthorsRRDB(test_only=True, blocks=5).eval(), test_patches(12)
        network.exit_threshold = 0.9
        _, exit_index, _ = PatchForward(network)(patches)
        assert torch.equal(exit_index, network(patches)[1])
        assert 2 not in exit_index and (APEForward(network).forward_patches(patches)[1] == 2).any()

    def test_what_is_not_test_mode_is_handed_on(self):
        network, patches = AuthorsECBSR(test_only=False).to(DEVICE).eval(), test_patches(2)
        pictures, predictions = PatchForward(network)(patches)
        assert len(pictures) == len(predictions) == 4

    def test_a_batch_of_three_is_not_taken_apart(self):
        fast = APEForward(AuthorsECBSR(test_only=True).to(DEVICE).eval())
        with pytest.raises(ValueError, match=r"x: expected another batch than three images.*PatchForward"):
            _ = fast(test_patches(3))
        assert fast(test_patches(3), return_report=True)[0].shape == (3, 3, 24, 24)

    def test_a_network_without_exits_is_refused(self):
        with pytest.raises(ValueError, match="network: expected one with a regressor"):
            PatchForward(small())


class TestDataParallel:
    def replica(self, module: nn.Module) -> nn.Module:
        """As `nn.DataParallel` makes one for each GPU."""
        made = {m: m._replicate_for_data_parallel() for m in module.modules()}
        for original, copied in made.items():
            for name, child in original._modules.items():
                setattr(copied, name, made[child])
            for name, parameter in original._parameters.items():
                setattr(copied, name, None if parameter is None else parameter.detach())
        return made[module]

    @pytest.mark.parametrize("threshold", [0.0, 0.5])
    def test_replicas(self, threshold):
        fast, lr = APEForward(spread_network(2), threshold), test_patches(2, 20, 19)
        replica = self.replica(fast)
        assert torch.equal(replica(lr), fast(lr))
        assert torch.equal(replica(lr), fast(lr))
        assert replica.packed is self.replica(fast).packed, "packed once, not for every replica of every call"

    def test_a_wrapped_network_is_looked_into(self):
        network, lr = small(), test_patches(1, 9, 8)
        fast = APEForward(nn.DataParallel(network))
        assert fast.model is network
        assert_pictures_close(fast(lr), network(lr))

    def test_a_compiled_network_is_looked_into(self):
        network = small()
        assert APEForward(torch.compile(network, backend="eager")).model is network


class TestAttributes:
    def test_of_the_model_can_be_read(self):
        model = small()
        model.url = "somewhere"
        fast = APEForward(model)
        assert fast.body is model.body and fast.url == "somewhere" and fast.rgb_range == model.rgb_range

    def test_that_nobody_has_are_named(self):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = APEForward(small()).nothing
        assert not hasattr(APEForward(small()), "set_scale")


class TestAutocast:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_called_under_it(self, dtype):
        model, lr = small(), test_patches(1, 20, 21)
        fast = APEForward(model)
        before = fast(lr)
        with torch.autocast(DEVICE.type, dtype):
            sr = fast(lr)
            assert sr.dtype == model(lr).dtype == dtype
            assert fast.packed_for_images.dtype == dtype
            assert fast(lr.double()).dtype == torch.float64
        assert_pictures_close(sr.float(), before, 3e-2)
        assert torch.equal(fast(lr), before)

    @pytest.mark.parametrize("context", ["model", "patch"])
    def test_a_dtype_that_was_asked_for_stays(self, backend, context):
        fast, lr = APEForward(small(), dtype=torch.float32, backend=backend, context=context), test_patches(1, 9, 8)
        before = fast(lr)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            assert torch.equal(fast(lr), before.bfloat16())

    @pytest.mark.parametrize("backend", ["cpu", "torch"])
    def test_built_under_it(self, backend):
        with torch.autocast("cpu", torch.bfloat16):
            fast = APEForward(small(), backend=backend)
        lr = test_patches(1, 9, 8)
        assert_pictures_close(fast(lr), small()(lr))


class TestDtypes:
    """Where kernels have no such numbers they compute in float32; the picture has the dtype of the image."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_of_the_model(self, dtype):
        model, lr = small(), test_patches(1, 20, 21)
        fast = APEForward(copy.deepcopy(model).to(dtype))
        sr = fast(lr.to(dtype))
        assert sr.dtype == dtype
        assert_pictures_close(sr.float(), model(lr), 1e-2 if dtype == torch.float16 else 1e-4)
        if DEVICE.type == "cpu":
            assert fast.packed.dtype == torch.float32 and fast.packed.backend == "cpu"

    def test_packed_in_float32(self):
        assert pack(small().double()).dtype == torch.float32
        assert pack(small().double(), Wish(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_one_image_without_a_batch():
    model, lr = small(), test_patches(1, 9, 8)[0]
    fast = APEForward(model)
    assert_pictures_close(fast(lr), model(lr))
    sr, report = fast(lr, return_report=True)
    assert sr.shape == (3, 18, 16) and report.exit_index.shape == (1, 1, 1)


def test_a_plan_of_one_image(fitted_model):
    fast, image = APEForward(fitted_model, fidelity=45), test_patches(1, 60, 50)[0]
    assert torch.equal(fast.plan(image).exit_at, fast.plan(image[None]).exit_at)


def test_the_argument_is_called_as_in_the_networks():
    model, lr = small(), test_patches(1, 9, 8)
    assert_pictures_close(APEForward(model)(x=lr), model(x=lr))


class TestMovingAverages:
    """`net_g_ema` of BasicSR is written through ``.data``, others' by ``_foreach`` operations."""

    def step(self, average, network, way):
        pairs = [list(module.parameters()) for module in (average, network)]
        with torch.no_grad():
            if way == "foreach":
                torch._foreach_lerp_(*pairs, 0.5)
                return
            for mean, new in zip(*pairs, strict=True):
                target = mean.data if way == "data" else mean
                target.mul_(0.5).add_(new.data, alpha=0.5)

    @pytest.mark.parametrize("way", ["data", "foreach", "in-place"])
    def test_are_read_at_the_next_call(self, way):
        average, network, lr = small(), small(seed=1), test_patches(1, 9, 8)
        fast = APEForward(average)
        for _ in range(2):
            before = fast(lr)
            self.step(average, network, way)
            assert_pictures_close(fast(lr), average(lr))
            assert not torch.allclose(fast(lr), before)

    def test_programs_are_made_once_while_nothing_changes(self):
        model = small()
        fast = APEForward(model)
        assert fast.program is fast.program
        assert fast.program is not to_program(model)


def test_values_that_overflow_float16_are_said():
    """A float32 network may hold values that float16 does not: NaN would be a black picture."""
    model = EDSR(2, 4, 16, 2).eval().to(DEVICE)
    APEForward(model, 0.0, dtype=torch.float16, backend="torch")
    with torch.no_grad():
        for parameter in model.body.parameters():
            parameter.mul_(300)
    with pytest.raises(ValueError, match=r"dtype: expected one that holds the network's values; in torch.float16 they"):
        APEForward(model, 0.0, dtype=torch.float16, backend="torch")
    APEForward(model, 0.0)
