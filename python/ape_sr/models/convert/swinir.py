"""SwinIR, named as by its authors, by BasicSR and by the APE authors."""

from __future__ import annotations

from ape_sr.models.convert.reading import (
    State,
    Unsaid,
    count,
    filled,
    interval,
    shuffle_scale,
    sizes,
    upsampler_scale,
)
from ape_sr.models.swinir import SwinIR

TABLE = "layers.{}.residual_group.blocks.0.attn.relative_position_bias_table"


def is_swinir(state: State) -> bool:
    """Whether these are the keys of a SwinIR."""
    return TABLE.format(0) in state and not any("overlap_attn" in key for key in state)  # HAT has them


def swinir(state: State, unsaid: Unsaid) -> SwinIR:
    """The SwinIR that `state` was saved from. One without upsampler (for noise or JPEG) is refused."""
    embed_dim = sizes(state, "conv_first.weight")[0]
    groups = count(state, lambda i: TABLE.format(i), "residual group")
    blocks = "layers.{}.residual_group.blocks.{}.norm1.weight"
    positions = sizes(state, TABLE.format(0), 2)[0]
    span = round(positions**0.5)
    if span**2 != positions or span % 2 == 0:
        raise ValueError(f"{TABLE.format(0)}: expected the square of 2 * window - 1 rows, got {positions}")
    mlp = "layers.0.residual_group.blocks.0.mlp.fc1.weight"
    features = "conv_before_upsample.0.weight"
    upsampler, scale = _upsampler(state)
    model = SwinIR(
        scale=scale,
        embed_dim=embed_dim,
        depths=tuple(count(state, lambda j, i=i: blocks.format(i, j), "block") for i in range(groups)),
        num_heads=tuple(sizes(state, TABLE.format(i), 2)[1] for i in range(groups)),
        window_size=(span + 1) // 2,
        mlp_ratio=sizes(state, mlp, 2)[0] / embed_dim,
        n_feats=sizes(state, features)[0] if features in state else 64,
        exit_interval=interval(state, unsaid),
        upsampler=upsampler,
        resi_connection="3conv" if "conv_after_body.0.weight" in state else "1conv",
    )
    return filled(model, state)


def _upsampler(state: State) -> tuple[str, int]:
    """The kind of the upsampler, and the scale."""
    if "conv_up1.weight" in state:
        return "nearest+conv", 2 ** count(state, lambda i: f"conv_up{i + 1}.weight", "doubling")
    if "conv_before_upsample.0.weight" in state:
        return "pixelshuffle", upsampler_scale(state, lambda i: f"upsample.{i}.weight")
    return "pixelshuffledirect", shuffle_scale(state, "upsample.0.weight")
