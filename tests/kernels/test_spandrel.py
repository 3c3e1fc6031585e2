"""Networks as spandrel builds them from a checkpoint run as they are; skipped where it is not installed."""

import pytest
import torch
from families import randomise
from support import DEVICE, assert_pictures_close, test_patches, torchvision_or_stand_in
from torch import nn

from ape_kernels import APEForward, NotRecognised

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's SwinIR


with torchvision_or_stand_in():
    spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed")
from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.DAT import DAT  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402
from spandrel.architectures.HAT import HAT  # noqa: E402
from spandrel.architectures.RCAN import RCAN  # noqa: E402
from spandrel.architectures.SPAN import SPAN  # noqa: E402
from spandrel.architectures.SwinIR import SwinIR  # noqa: E402

RCAN_SIZES = dict(n_feats=8, n_resgroups=2, n_resblocks=2, reduction=4)
DAT_SIZES = dict(embed_dim=32, split_size=[2, 4], depth=[2], num_heads=[2], expansion_factor=2.0, img_size=16)
HAT_SIZES = dict(embed_dim=16, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, squeeze_factor=4, img_size=16)
SWINIR = dict(img_size=16, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=8, mlp_ratio=2.0)


def built(network: nn.Module) -> nn.Module:
    """The network as spandrel builds it from its own reading of the checkpoint."""
    state = {name: value.clone() for name, value in randomise(network, gain=1.5).state_dict().items()}
    return spandrel.ModelLoader().load_from_state_dict(state).model.to(DEVICE).eval().requires_grad_(False)


NETWORKS = {
    "esrgan-x4": lambda: ESRGAN(num_filters=8, num_blocks=2, scale=4),
    "esrgan-x2": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=2),
    "esrgan-x1": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=1),
    "esrgan-folded-x2": lambda: ESRGAN(in_nc=12, num_filters=8, num_blocks=1, scale=4, shuffle_factor=2),
    "esrgan-folded-x1": lambda: ESRGAN(in_nc=48, num_filters=8, num_blocks=1, scale=4, shuffle_factor=4),
    "rcan-x4": lambda: RCAN(**RCAN_SIZES, scale=4),
    "rcan-x3-without-norm": lambda: RCAN(**RCAN_SIZES, scale=3, norm=False),
    "rcan-folded-x2": lambda: RCAN(**RCAN_SIZES, scale=2, unshuffle_mod=True),
    "rcan-folded-x1-without-norm": lambda: RCAN(**RCAN_SIZES, scale=1, unshuffle_mod=True, norm=False),
    "compact-x4": lambda: Compact(num_feat=8, num_conv=3, upscale=4),
    "compact-x2": lambda: Compact(num_feat=8, num_conv=2, upscale=2),
    "hat-x2": lambda: HAT(**HAT_SIZES, upscale=2),
    "hat-x4": lambda: HAT(**HAT_SIZES, upscale=4),
    "dat-x4": lambda: DAT(**DAT_SIZES, upscale=4, upsampler="pixelshuffle"),
    "dat-light-x2": lambda: DAT(**DAT_SIZES, upscale=2, upsampler="pixelshuffledirect"),
    "span-x2": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
    "span-x4-without-norm": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4, norm=False),
    "swinir-x2": lambda: SwinIR(**SWINIR, upscale=2, upsampler="pixelshuffle"),
    "swinir-x3": lambda: SwinIR(**SWINIR, upscale=3, upsampler="pixelshuffle"),
    "swinir-light-x4": lambda: SwinIR(**SWINIR, upscale=4, upsampler="pixelshuffledirect"),
    "swinir-real-x4": lambda: SwinIR(**SWINIR, upscale=4, upsampler="nearest+conv"),
    "swinir-real-large-x4": lambda: SwinIR(**SWINIR, upscale=4, upsampler="nearest+conv", resi_connection="3conv"),
    "swinir-jpeg": lambda: SwinIR(**{**SWINIR, "window_size": 7, "img_size": 14}, upsampler="", img_range=255.0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_spandrel_builds(name):
    model = built(NETWORKS[name]())
    fast = APEForward(model)
    for height, width in ((8, 8), (9, 13), (16, 24)):
        patches = test_patches(2, height, width)
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


def test_a_swinir_that_folds_pixels():
    """Its own forward takes whole windows of folded pixels; ours any size."""
    model = randomise(SwinIR(**SWINIR, upscale=4, upsampler="nearest+conv", start_unshuffle=2), gain=1.5).to(DEVICE)
    fast, image = APEForward(model), test_patches(1, 32, 48)
    assert fast.scale == 2
    assert_pictures_close(fast(image), model(image))
    assert fast(image[:, :, :31, :41]).shape == (1, 3, 62, 82)


REFUSED = {
    "esrgan-plus": (
        lambda: ESRGAN(num_filters=8, num_blocks=1, plus=True),
        "model.model.1.sub.0.RDB1.conv1x1: expected no such submodule",
    ),
    "esrgan-pixel-shuffle": (
        lambda: ESRGAN(num_filters=8, num_blocks=1, upsampler="pixel_shuffle"),
        "model.model.2: expected an nn.Upsample of mode nearest",
    ),
    "rcan-elu": (
        lambda: RCAN(**RCAN_SIZES, act_mode="elu"),
        r"model.body.0.body.0.body.1: expected an nn.ReLU, got ELU",
    ),
    "rcan-kernel-5": (
        lambda: RCAN(**RCAN_SIZES, kernel_size=5),
        r"model.head.0: expected kernel_size \(3, 3\), got \(5, 5\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    network, message = REFUSED[name]
    with pytest.raises(NotRecognised, match=message):
        APEForward(network())


def test_a_loaded_network_leaves_its_checkpoint_alone():
    model = built(NETWORKS["esrgan-x2"]())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    APEForward(model)(test_patches(1, 20, 20))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["esrgan-x4", "compact-x2", "rcan-x4"])
def test_a_descriptor_calls_it_instead_of_its_model(name):
    """The one line of docs/integrations.md."""
    state = {key: value.clone() for key, value in randomise(NETWORKS[name](), gain=1.5).state_dict().items()}
    theirs, ours = (spandrel.ModelLoader().load_from_state_dict(state).to(DEVICE).eval() for _ in range(2))
    ours._model = APEForward(ours)
    image = test_patches(1, 20, 18)
    assert_pictures_close(ours(image), theirs(image))
    assert ours.device == theirs.device and ours.dtype == theirs.dtype and ours.train().eval() is ours
    if ours.supports_half:
        assert_pictures_close(ours.half()(image.half()).float(), theirs(image), 2e-2)
