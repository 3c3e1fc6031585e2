"""SwinIR: every variant equals its own forward at every exit; near misses are refused by name."""

import copy
import gc
import itertools

import pytest
import torch
from families import assert_equals_its_forward, assert_leaves_as_predicted, assert_refused, edit, randomise, remove
from support import DEVICE, assert_pictures_close, test_patches
from swinir_layouts import CHANNELS, WINDOW, AuthorsSwinIR, BasicSR, conv, network
from torch import nn

from ape_kernels import APEForward, BackendUnavailable, NotRecognised
from ape_kernels.adapters.swinir import reflect_to_multiple
from ape_kernels.program import Module
from ape_sr.models import SwinIR
from ape_sr.models.swinir import SwinTransformerBlock

WINDOWS = [(4, 4), (8, 12), (4, 28)]  # whole windows: what the published class takes


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_exit_equals_the_forward(scale):
    model = network(scale)
    assert_equals_its_forward(model, model.forward_exits, "torch", [(1, 1), (3, 29), (8, 12)])


def test_windows_of_eight():
    model = network(window_size=8)
    assert_equals_its_forward(model, model.forward_exits, "torch", [(5, 19), (16, 24)])


def test_patches_leave_as_predicted():
    model = network()
    assert_leaves_as_predicted(model, model.forward_exits, "torch", test_patches(24, 8, 8))


def test_without_exits():
    model, patches = network(groups=2, exit_interval=None), test_patches(3, 8, 12)
    assert_pictures_close(APEForward(model).forward_patches(patches)[0], model(patches))


def test_every_part_of_the_network_shows():
    """Guards the other tests: a part that hardly matters could be wrong in the program unnoticed."""
    model, patches = network(), test_patches(2, 8, 12)
    exact = model(patches)
    for name, parameter in model.named_parameters():
        if name.startswith("regressor"):
            continue
        kept = parameter.clone()
        parameter.mul_(0.7)
        assert (model(patches) - exact).abs().max() > 1e-3, name
        parameter.copy_(kept)


def test_whole_images():
    model = network()
    image = test_patches(1, 30, 41)
    tile = APEForward(model, patch_size=16, overlap=4)(image)
    assert tile.shape == (1, 3, 60, 82)
    patch = image[:, :, :16, :16]
    assert_pictures_close(tile[:, :, :24, :24], model(patch)[:, :, :24, :24])


def test_the_authors_class():
    model = AuthorsSwinIR().eval()
    fast, patches = APEForward(model), test_patches(6, 8, 12)
    assert fast.threshold == 0.5
    assert [stage.has_exit for stage in fast.program.stages] == [True, False]
    (picture,), (prediction,) = model(patches)
    sr, exit_index, capacity = fast.forward_patches(patches, torch.zeros(6, dtype=torch.int64))
    assert_pictures_close(sr, picture)
    torch.testing.assert_close(capacity, 1 - prediction[:, 0], atol=1e-4, rtol=0)
    assert (exit_index == 0).all()


VARIANTS = {
    "pixelshuffle-x2": dict(upscale=2),
    "pixelshuffle-x3": dict(upscale=3),
    "pixelshuffle-x4-255": dict(upscale=4, img_range=255.0),
    "direct-x2": dict(upsampler="pixelshuffledirect", upscale=2),
    "direct-x3-255": dict(upsampler="pixelshuffledirect", upscale=3, img_range=255.0),
    "nearest-x4": dict(upsampler="nearest+conv"),
    "nearest-x2-7": dict(upsampler="nearest+conv", upscale=2, img_range=7.0),
    "none": dict(upsampler="", upscale=1),
    "none-255": dict(upsampler="", upscale=1, img_range=255.0),
    "three-convs": dict(upscale=2, three_convs=True),
    "three-convs-nearest": dict(upsampler="nearest+conv", upscale=2, three_convs=True),
    "no-patch-norm": dict(upscale=2, patch_norm=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_public_layouts(name):
    model = BasicSR(**VARIANTS[name])
    fast = APEForward(model)
    for size in WINDOWS:
        patches = test_patches(2, *size)
        assert_pictures_close(fast.forward_patches(patches)[0], model(patches))


def test_patches_are_reflected_to_whole_windows():
    """The published class takes no others; its users reflect images before it."""
    model, patches = BasicSR("", 1), test_patches(2, 5, 9)
    padded = nn.functional.pad(patches, (0, 3, 0, 3), mode="reflect")
    assert_pictures_close(APEForward(model).forward_patches(patches)[0], model(padded)[:, :, :5, :9])


def test_a_network_left_in_training_mode():
    """Dropout and stochastic depth are for training; a program never has them."""
    model, patches = BasicSR(upscale=2), test_patches(2, 8, 8)
    expected = model(patches)
    model.train()
    fast = APEForward(model).eval()
    model.train()
    assert_pictures_close(fast.forward_patches(patches)[0], expected)
    assert all(module.training for module in model.modules())


def test_new_weights_are_used():
    model, patches = network(), test_patches(2, 8, 8)
    fast = APEForward(model, 0.0)
    before = fast.forward_patches(patches)[0]
    model.layers[1].residual_group.blocks[0].attn.proj.weight.mul_(2)
    after = fast.forward_patches(patches)[0]
    assert not torch.allclose(before, after, atol=1e-3)
    assert_pictures_close(after, model(patches))


def test_results_carry_no_gradients():
    model = network().requires_grad_(True)
    assert not APEForward(model).forward_patches(test_patches(1, 8, 8))[0].requires_grad


def test_copies_are_independent():
    model, patches = network(), test_patches(2, 8, 8)
    fast = APEForward(model, 0.0)
    twin = copy.deepcopy(fast)
    model.layers[0].conv.weight.zero_()
    assert not torch.allclose(twin.forward_patches(patches)[0], fast.forward_patches(patches)[0], atol=1e-3)


def test_only_torch_has_the_groups():
    with pytest.raises(BackendUnavailable, match="has no kernels"):
        APEForward(network(), backend="cpu").forward_patches(test_patches(1, 8, 8))


def test_an_exported_network_runs_here_and_says_why_not_elsewhere():
    """Groups are known by number: an exported program does not hold them."""
    fast, image = APEForward(network(), patch_size=16), test_patches(1, 20, 24)
    exported = torch.export.export(fast, (image,)).module()
    assert torch.equal(exported(image), fast(image))
    del fast
    gc.collect()
    with pytest.raises(ValueError, match="table: expected modules of this process, got number"):
        exported(image)


def test_the_program_of_a_swinir():
    program = APEForward(network()).program
    assert [[type(step) for step in stage.steps if isinstance(step, Module)] for stage in program.stages] == [
        [Module]
    ] * 3
    group = program.stages[0].steps[0]
    linear, closing = 2 * 2 * CHANNELS**2 * (3 + 1 + 2 * 2), 2 * 9 * CHANNELS**2  # two blocks; a conv
    assert group.flops_per_pixel == linear + closing + 2 * 4 * WINDOW**2 * CHANNELS


@pytest.mark.parametrize("shift", [0, 2])
def test_attention_of_a_block_pixel_by_pixel(shift):
    """A pixel sees the pixels of its window, which a shift moves and the border cuts; nothing beyond."""
    height, width, heads, span = 8, 12, 3, 2 * WINDOW - 1
    block = randomise(SwinTransformerBlock(CHANNELS, heads, WINDOW, shift, 2.0), gain=1.5)
    x = torch.rand(1, height * width, CHANNELS)
    query, key, value = block.attn.qkv(block.norm1(x[0])).view(height, width, 3, heads, -1).unbind(2)
    mixed = torch.zeros(height, width, CHANNELS)
    window = lambda row, column: ((row - shift) // WINDOW, (column - shift) // WINDOW)  # noqa: E731
    pixels = list(itertools.product(range(height), range(width)))
    for row, column in pixels:
        seen = [pixel for pixel in pixels if window(*pixel) == window(row, column)]
        offsets = [(row - r + WINDOW - 1) * span + column - c + WINDOW - 1 for r, c in seen]
        keys, values = (torch.stack([t[pixel] for pixel in seen]) for t in (key, value))
        scores = (keys * query[row, column]).sum(-1) / query.shape[-1] ** 0.5
        weights = torch.softmax(scores + block.attn.relative_position_bias_table[offsets], dim=0)
        mixed[row, column] = (weights[:, :, None] * values).sum(0).flatten()
    expected = x + block.attn.proj(mixed.flatten(0, 1))
    expected = expected + block.mlp(block.norm2(expected))
    assert_pictures_close(block(x, (height, width)), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 29), (4, 8), (2, 5)], ids=str)
def test_images_are_reflected_to_whole_windows(size):
    model, patch = network(), test_patches(1, *size)
    padded = reflect_to_multiple(patch, WINDOW)
    assert padded.shape[2] % WINDOW == padded.shape[3] % WINDOW == 0
    assert torch.equal(padded[:, :, : size[0], : size[1]], patch)
    height, width = size
    assert_pictures_close(model(patch), model(padded)[:, :, : 2 * height, : 2 * width])
    if size == (3, 29):
        assert torch.equal(padded, nn.functional.pad(patch, (0, 3, 0, 1), mode="reflect"))


def test_published_checkpoints_load():
    """They also store what is computed here: position indices, and masks of the image size trained at."""
    model = network()
    state = model.state_dict()
    assert not any("index" in name or "mask" in name or name == "mean" for name in state)
    for i in range(3):
        prefix = f"layers.{i}.residual_group.blocks."
        state |= {f"{prefix}{j}.attn.relative_position_index": torch.zeros(16, 16) for j in range(2)}
        state[f"{prefix}1.attn_mask"] = torch.zeros(9, 16, 16)
    twin = SwinIR(**model.config).eval()
    twin.load_state_dict(state)
    patches = test_patches(2, 8, 8)
    assert torch.equal(twin.to(DEVICE)(patches), model(patches))


BLOCK = "layers.1.residual_group.blocks.0"
NEAR_MISSES = {
    "kernel-5-first": (edit("conv_first", conv(3, CHANNELS, 5)), "model.conv_first: expected kernel_size"),
    "position-embedding": (
        edit("absolute_pos_embed", nn.Parameter(torch.zeros(1, 64, CHANNELS))),
        "model.absolute_pos_embed: expected none: it ties the network to one image size",
    ),
    "folded-pixels": (edit("start_unshuffle", 2), "model.conv_first: expected in_channels a multiple of 4"),
    "no-mean": (remove("mean"), "model.mean: expected a tensor"),
    "no-range": (edit("img_range", None), "model.img_range: expected a number, got NoneType"),
    "projecting-embedding": (edit("patch_embed.proj", conv()), "model.patch_embed.proj: expected no such submodule"),
    "batch-norm-embedding": (
        edit("patch_embed.norm", nn.BatchNorm1d(CHANNELS)),
        "model.patch_embed.norm: expected an nn.LayerNorm",
    ),
    "other-norm": (edit("norm", nn.GroupNorm(2, CHANNELS)), r"model.norm: expected an nn.LayerNorm\(12\)"),
    "no-groups": (edit("layers", nn.ModuleList()), "model.layers: expected an nn.ModuleList of residual groups"),
    "conv-among-groups": (edit("layers.1", conv()), "model.layers.1: expected a residual group"),
    "overlapping-attention": (
        edit("layers.1.residual_group.overlap_attn", conv()),
        "model.layers.1.residual_group.overlap_attn: expected no such submodule",
    ),
    "conv-beside-attention": (edit(f"{BLOCK}.conv_block", conv()), f"model.{BLOCK}.conv_block: expected no such"),
    "cosine-attention": (edit(f"{BLOCK}.attn.cpb_mlp", conv()), f"model.{BLOCK}.attn.cpb_mlp: expected no such"),
    "no-position-bias": (
        remove(f"{BLOCK}.attn.relative_position_bias_table"),
        f"model.{BLOCK}.attn: expected window attention with .relative_position_bias_table",
    ),
    "no-window": (remove(f"{BLOCK}.window_size"), f"model.{BLOCK}.window_size: expected a whole number"),
    "wider-after-body": (edit("conv_after_body", conv(CHANNELS, 8)), "model.conv_after_body: expected out_channels 12"),
    "two-convs-after-body": (
        edit("conv_after_body", nn.Sequential(conv(), nn.LeakyReLU(0.2), conv())),
        "model.conv_after_body: expected 5 layers, got 3",
    ),
    "relu-before-upsample": (
        edit("conv_before_upsample.1", nn.ReLU()),
        "model.conv_before_upsample.1: expected an nn.LeakyReLU, got ReLU",
    ),
    "no-upsampler": (remove("upsample"), "model.upsample: expected an nn.Sequential, got None"),
    "relu-in-upsampler": (edit("upsample.1", nn.ReLU()), "model.upsample.1: expected an nn.PixelShuffle, got ReLU"),
    "auxiliary-picture": (edit("conv_aux", conv()), "model.conv_aux: expected no such submodule"),
    "no-last-conv": (remove("conv_last"), "model.conv_last: expected an nn.Conv2d 3x3, got None"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_are_refused_by_name(case):
    change, message = NEAR_MISSES[case]
    model = BasicSR(upscale=2)
    assert_refused(model, change, message)


def test_a_regressor_over_maps_is_none_over_tokens():
    model = network()
    model.regressor[0] = nn.AdaptiveAvgPool2d(1)
    with pytest.raises(
        NotRecognised, match=r"model.regressor.0: expected an nn.AdaptiveAvgPool1d, got AdaptiveAvgPool2d"
    ):
        APEForward(model)


def test_another_forward_is_refused():
    model = BasicSR(upscale=2)
    model.forward_features = lambda x: x
    with pytest.raises(NotRecognised, match="its forward does something else than its layers say"):
        APEForward(model)


@pytest.mark.parametrize(
    "options",
    [{"num_heads": (5, 2)}, {"num_heads": (2,)}, {"exit_interval": 3}, {"scale": 5}],
    ids=str,
)
def test_arguments_are_checked(options):
    defaults = dict(scale=2, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=2, n_feats=4)
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        SwinIR(**{**defaults, **options})
