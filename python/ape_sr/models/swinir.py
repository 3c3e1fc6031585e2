"""SwinIR with exits (Liang et al. 2021; exits after Wang et al., "Adaptive Patch Exiting", ECCV 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from ape_kernels.adapters.swinir import reflect_to_multiple
from ape_sr.models.base import ExitNetwork, expect_divisor
from ape_sr.models.edsr import RGB_MEAN, Upsampler, conv3x3

UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect", "nearest+conv")
SLOPE = 0.2  # of LeakyReLUs, which stand in two parts that only some variants have
MASKED = -100.0  # added to the attention between pixels that only the cyclic shift made neighbours


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learnt bias for each relative position.

    Takes and returns windows ``[B, n, w * w, C]``. mask ``[n, w * w, w * w]`` is added to the attention.
    """

    def __init__(self, channels: int, window_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_index: Tensor
        span = 2 * window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(span * span, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        row, column = torch.meshgrid(torch.arange(window_size), torch.arange(window_size), indexing="ij")
        between = lambda axis: axis.flatten()[:, None] - axis.flatten()[None, :] + window_size - 1  # noqa: E731
        self.register_buffer("relative_position_index", between(row) * span + between(column), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        batch, count, tokens, channels = windows.shape
        heads = (batch, count, tokens, 3, self.num_heads, channels // self.num_heads)
        query, key, value = self.qkv(windows).view(heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(mixed.transpose(2, 3).reshape(windows.shape))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(f"{prefix}relative_position_index", None)  # published checkpoints store what is computed here
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, for each token by itself."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[..., C]`` to the same."""
        return self.fc2(self.act(self.fc1(x)))


class SwinTransformerBlock(nn.Module):
    """Attention in windows, then an MLP, both residual. Every second block shifts its windows by half a window."""

    def __init__(self, channels: int, num_heads: int, window_size: int, shift_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size, self.shift_size = window_size, shift_size
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window_size, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """Tokens ``[N, h * w, C]`` to the same. x_size: (h, w), multiples of the window."""
        (height, width), window = x_size, self.window_size
        features = self.norm1(x).unflatten(1, x_size).roll((-self.shift_size,) * 2, dims=(1, 2))
        grid = features.view(len(x), height // window, window, width // window, window, -1).transpose(2, 3)
        mask = self._mask(height, width, x) if self.shift_size else None
        mixed = self.attn(grid.reshape(len(x), -1, window * window, x.shape[2]), mask)
        mixed = mixed.view(grid.shape).transpose(2, 3).reshape(features.shape)
        x = x + mixed.roll((self.shift_size,) * 2, dims=(1, 2)).flatten(1, 2)
        return x + self.mlp(self.norm2(x))

    def _mask(self, height: int, width: int, like: Tensor) -> Tensor:
        """``[windows, w * w, w * w]``: MASKED where the shift brought pixels of opposite borders together."""
        window = self.window_size

        def part(size: int) -> Tensor:
            index = torch.arange(size, device=like.device)
            return (index >= size - window).long() + (index >= size - self.shift_size).long()

        parts = 3 * part(height)[:, None] + part(width)
        parts = parts.view(height // window, window, width // window, window).transpose(1, 2).flatten(2).flatten(0, 1)
        return (parts[:, :, None] != parts[:, None, :]).to(like.dtype) * MASKED

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(f"{prefix}attn_mask", None)  # published checkpoints store that of one image size
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class BasicLayer(nn.Module):
    """Transformer blocks. Every second one shifts its windows."""

    def __init__(self, channels: int, depth: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        shifts = [window_size // 2 if i % 2 else 0 for i in range(depth)]
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(channels, num_heads, window_size, shift, mlp_ratio) for shift in shifts
        )

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """Tokens ``[N, h * w, C]`` to the same."""
        for block in self.blocks:
            x = block(x, x_size)
        return x


class PatchEmbed(nn.Module):
    """Feature map ``[N, C, h, w]`` to tokens ``[N, h * w, C]``, normalised if asked for."""

    def __init__(self, channels: int, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x.flatten(2).transpose(1, 2)
        return x if self.norm is None else self.norm(x)


class PatchUnEmbed(nn.Module):
    """Tokens ``[N, h * w, C]`` to a feature map ``[N, C, h, w]``."""

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """See the class. x_size: (h, w)."""
        return x.transpose(1, 2).unflatten(2, x_size)


def residual_conv(channels: int, kind: str) -> nn.Module:
    """What stands before a skip: one convolution ("1conv"), or three with a quarter of the channels ("3conv")."""
    if kind == "1conv":
        return conv3x3(channels, channels)
    narrow = channels // 4
    return nn.Sequential(
        conv3x3(channels, narrow),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(SLOPE, inplace=True),
        conv3x3(narrow, channels),
    )


class RSTB(nn.Module):
    """A residual group of transformer blocks and convolutions: ``x + conv(blocks(x))`` over tokens."""

    def __init__(
        self,
        channels: int,
        depth: int,
        num_heads: int,
        window_size: int,
        mlp_ratio: float,
        resi_connection: str = "1conv",
    ) -> None:
        super().__init__()
        self.residual_group = BasicLayer(channels, depth, num_heads, window_size, mlp_ratio)
        self.conv = residual_conv(channels, resi_connection)
        self.patch_embed = PatchEmbed(channels)
        self.patch_unembed = PatchUnEmbed()

    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """Tokens ``[N, h * w, C]`` to the same."""
        return x + self.patch_embed(self.conv(self.patch_unembed(self.residual_group(x, x_size), x_size)))


class SwinIR(ExitNetwork):
    """SwinIR for super-resolution, plain or with exits after every `exit_interval` residual groups.

    scale: upscaling factor, 2, 3, 4 or 8.
    embed_dim: channels. depths, num_heads: for each group, its transformer blocks and its attention heads.
    window_size: of the attention. Images are reflected to a multiple of it. mlp_ratio: hidden channels of the MLPs,
        divided by embed_dim.
    n_feats: channels of the upsampler.
    exit_interval: groups between exits, a divisor of their number. None builds a plain network without regressor.
    exit_threshold: the prediction from which on a patch leaves (1 - threshold).
    upsampler: "pixelshuffle" (classical), "pixelshuffledirect" (lightweight) or "nearest+conv" (real-world; scales 2, 4
        and 8).
    resi_connection: "1conv", or "3conv" of the large real-world network.

    `forward` is that of `ExitNetwork`. Raises ValueError for arguments outside these ranges.
    """

    rgb_range = 1.0
    img_range = 1.0  # the published name for the factor of the images

    def __init__(
        self,
        scale: int = 4,
        embed_dim: int = 180,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        n_feats: int = 64,
        exit_interval: int | None = 1,
        exit_threshold: float = 1.0,
        upsampler: str = "pixelshuffle",
        resi_connection: str = "1conv",
    ) -> None:
        super().__init__()
        if upsampler not in UPSAMPLERS:
            raise ValueError(f"upsampler: expected one of {', '.join(UPSAMPLERS)}, got {upsampler!r}")
        if resi_connection not in ("1conv", "3conv"):
            raise ValueError(f"resi_connection: expected 1conv or 3conv, got {resi_connection!r}")
        if upsampler == "nearest+conv" and scale not in (2, 4, 8):
            raise ValueError(f"scale: expected 2, 4 or 8 with the upsampler nearest+conv, got {scale}")
        if len(num_heads) != len(depths) or any(embed_dim % heads for heads in num_heads):
            raise ValueError(
                f"num_heads: expected {len(depths)} divisors of embed_dim = {embed_dim}, got {tuple(num_heads)}"
            )
        expect_divisor(exit_interval, "len(depths)", len(depths))
        self.config = dict(
            scale=scale,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            n_feats=n_feats,
            exit_interval=exit_interval,
            exit_threshold=exit_threshold,
            upsampler=upsampler,
            resi_connection=resi_connection,
        )
        self.scale = self.upscale = scale
        self.upsampler = upsampler
        self.window_size = window_size
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = conv3x3(3, embed_dim)
        self.patch_embed = PatchEmbed(embed_dim, norm=True)
        self.patch_unembed = PatchUnEmbed()
        self.layers = nn.ModuleList(
            RSTB(embed_dim, depth, heads, window_size, mlp_ratio, resi_connection)
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)
        self._make_tail(embed_dim, n_feats)
        if exit_interval is not None:
            self.exit_interval = exit_interval
            self.exit_threshold = exit_threshold
            self.regressor = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(embed_dim, 1), nn.Tanh())
        for linear in [module for module in self.modules() if isinstance(module, nn.Linear)]:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def _make_tail(self, embed_dim: int, n_feats: int) -> None:
        if self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv3x3(embed_dim, 3 * self.scale**2), nn.PixelShuffle(self.scale))
            return
        self.conv_before_upsample = nn.Sequential(conv3x3(embed_dim, n_feats), nn.LeakyReLU(inplace=True))
        if self.upsampler == "pixelshuffle":
            self.upsample = Upsampler(self.scale, n_feats)
        else:
            for i in range(self.scale.bit_length() - 1):
                self.add_module(f"conv_up{i + 1}", conv3x3(n_feats, n_feats))
            self.conv_hr = conv3x3(n_feats, n_feats)
            self.lrelu = nn.LeakyReLU(SLOPE, inplace=True)
        self.conv_last = conv3x3(n_feats, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[list[Tensor], list[Tensor]]:
        """See the class."""
        if self.training and self.has_exits:
            return self.forward_exits(x)
        skip, features = self.exit_features(x)
        return self._picture(skip, features[-1], x)

    def forward_exits(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pictures ``[N, 3, s * h, s * w]`` and predictions ``[N, 1]`` of every exit, shallowest first."""
        skip, features = self.exit_features(x)
        return [self._picture(skip, f, x) for f in features], [self.regressor(f.flatten(2)) for f in features]

    def exit_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features of the first convolution, and the feature map at every exit, at the padded size.

        A plain network gives the feature map after the last group.
        """
        x = reflect_to_multiple(x, self.window_size)
        size = (x.shape[2], x.shape[3])
        skip = self.conv_first((x - self.mean) * self.img_range)
        features = self.after_blocks([partial(layer, x_size=size) for layer in self.layers], self.patch_embed(skip))
        return skip, [self.patch_unembed(stream, size) for stream in features]

    def reconstruct(self, features: Tensor) -> Tensor:
        """The pixels of features ``[N, C, h, w]`` after the last activation. This end of the network is linear."""
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(features) / self.img_range + self.mean
        if self.upsampler == "pixelshuffle":
            features = self.upsample(features)
        return self.conv_last(features) / self.img_range + self.mean

    def _picture(self, skip: Tensor, features: Tensor, x: Tensor) -> Tensor:
        normed = self.norm(features.movedim(1, -1)).movedim(-1, 1)
        features = self.conv_after_body(normed) + skip
        if self.upsampler != "pixelshuffledirect":
            features = self.conv_before_upsample(features)
        if self.upsampler == "nearest+conv":
            for i in range(self.scale.bit_length() - 1):
                conv = self.get_submodule(f"conv_up{i + 1}")
                features = self.lrelu(conv(interpolate(features, scale_factor=2, mode="nearest")))
            features = self.lrelu(self.conv_hr(features))
        picture = self.reconstruct(features)
        return picture[:, :, : self.scale * x.shape[2], : self.scale * x.shape[3]]
