"""What the weights of a DiT-like transformer tell about it, and conventions folded into them.

Names and layouts are those of facebookresearch/DiT, willisma/SiT, sihyun-yu/REPA and hustvl/LightningDiT.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.convert import labels
from facm.convert.settings import Settings
from facm.convert.weights import Found, Layout, is_plain, refuse_misshapen
from facm.networks.layers.transformer import WIDTHS
from facm.runtime.foreign import ForeignError

HEADS = {size["hidden"]: size["heads"] for size in WIDTHS.values()}  # of the published widths
DEPTHS = {(size["hidden"], size["heads"]): size["depth"] for size in WIDTHS.values()}
MAX_PERIOD = 1e4  # of the time embedding
NEEDED = ("x_embedder.proj.weight", labels.TABLE, "final_layer.linear.weight")
LAYOUTS: dict[str, Layout] = {
    "x_embedder.proj.weight": ("hidden", "channels", "patch", "patch"),
    labels.TABLE: ("labels", "hidden"),
    "final_layer.linear.weight": ("patch patch channels", "hidden"),
    "pos_embed": ("1", "tokens", "hidden"),
    "feat_rope.freqs_cos": ("tokens", "head"),
    "blocks.0.attn.q_norm.weight": ("head",),
    "blocks.0.adaLN_modulation.1.bias": ("parts hidden",),
    "blocks.0.mlp.fc1.weight": ("width", "hidden"),
    "blocks.0.mlp.w3.weight": ("hidden", "width"),
}
"""Weights from which sizes are read."""
COUNTS = ("heads", "side", "depth")  # which of the constants that a user gives are reckoned with
TIME, LAST = "t_embedder.mlp.0.weight", ("final_layer.linear.weight", "final_layer.linear.bias")  # see reverse_time


def describe(
    backbone: str, weights: Mapping[str, Tensor], settings: Settings, given: Mapping[str, Any], path: Path
) -> Found:
    """The network, from the authors' weights and settings.

    Args:
        backbone: key of facm.networks.backbones.
        given: constants that the user knows; they win. `heads` is needed where neither the width is a published one nor
            QK-norm or RoPE tell it; `side` (H = W) where there is no position embedding; `depth` where it is not the
            published one of that width; `classes` where neither settings nor the published number tell it.

    Raises:
        ForeignError: not the weights of such a network, or a constant that they do not tell.
    """
    refuse_other(weights, path)
    _refuse_counts(given, path)
    hidden, channels, patch_size, _ = weights["x_embedder.proj.weight"].shape
    constants: dict[str, Any] = {"patch_size": patch_size, "hidden": hidden}
    constants["heads"] = given.get("heads") or _heads(weights, hidden, path)
    constants["depth"] = given.get("depth") or _depth(weights, hidden, constants["heads"], path)
    constants["mlp_ratio"] = _mlp_ratio(weights, hidden)
    answered = weights["final_layer.linear.weight"].shape[0] // patch_size**2
    if answered not in (channels, 2 * channels):
        raise ForeignError(f"{path} takes {channels} channels and answers {answered}: neither as many nor twice that")
    constants["learn_sigma"] = answered == 2 * channels
    side = given.get("side") or _tokens_per_side(weights, path) * patch_size
    classes, null_label = labels.read(weights[labels.TABLE].shape[0], given, settings, path)
    constants |= {name: value for name, value in given.items() if name not in ("side", "classes")}
    weights = labels.padded(weights, classes)
    return Found(backbone, constants, (channels, side, side), classes, weights, null_label=null_label)


def refuse_other(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise ForeignError where a weight that such a network has is missing, or one that tells sizes is mis-shaped."""
    absent = [name for name in NEEDED if name not in weights]
    if absent:
        raise ForeignError(f"{path} lacks {', '.join(absent)}: it is not what --from says, it has {list(weights)[:4]}")
    refuse_misshapen(weights, LAYOUTS, path)


def number_of_blocks(names: Iterable[str]) -> int:
    """One more than the highest number of a block; 0 where there is none."""
    found = (re.match(r"blocks\.([0-9]+)\.", name) for name in names)
    return max((1 + int(match[1]) for match in found if match), default=0)


def without(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights less those that serve training alone."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}


def reverse_time(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of F(x, t) = -theirs(x, 1 - t), the same velocity in this project's convention.

    The embedding of a time is [cos(f_i t), sin(f_i t)], and

        cos(f (1 - t)) = cos f cos(f t) + sin f sin(f t)
        sin(f (1 - t)) = sin f cos(f t) - cos f sin(f t),

    a reflection for each frequency f, which goes into the first layer; the sign goes into the last one. Both are exact,
    the reflection up to the rounding of float32. Where one of these weights is missing, mis-shaped or no dense number,
    nothing is changed: weights.compare reports it.
    """
    if not _reversible(weights):
        return dict(weights)
    turned = dict(weights)
    of_cos, of_sin = weights[TIME].double().chunk(2, dim=1)
    number = of_cos.shape[1]
    i = torch.arange(number, dtype=torch.float64, device=of_cos.device)
    f = torch.exp(-math.log(MAX_PERIOD) / number * i)
    reflected = [of_cos * f.cos() + of_sin * f.sin(), of_cos * f.sin() - of_sin * f.cos()]
    turned[TIME] = torch.cat(reflected, dim=1).to(torch.promote_types(weights[TIME].dtype, torch.float32))
    return turned | {name: -weights[name] for name in LAST}


def _reversible(weights: Mapping[str, Tensor]) -> bool:
    if not all(name in weights and is_plain(weights[name]) for name in (TIME, *LAST)):
        return False
    shape = weights[TIME].shape
    return len(shape) == 2 and shape[1] > 0 and shape[1] % 2 == 0


def _refuse_counts(given: Mapping[str, Any], path: Path) -> None:
    """Raise ForeignError unless constants that are reckoned with are whole numbers."""
    for name in COUNTS:
        value = given.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ForeignError(
                f"{path}: {name} {value!r} must be a whole number of at least 1: --set {name}=N (in params.yaml: "
                "backbones, the block of backbone.name)"
            )


def _depth(weights: Mapping[str, Tensor], hidden: int, heads: int, path: Path) -> int:
    """Number of blocks, which a file that lost its last ones does not tell."""
    depth = number_of_blocks(weights)
    published = DEPTHS.get((hidden, heads), depth)
    if depth != published:
        raise ForeignError(
            f"{path} has {depth} blocks, the published networks of width {hidden} with {heads} heads have {published}: "
            f"fetch it again if some are lost; if it is meant so, say --set depth={depth} (in params.yaml: backbones, "
            "the block of backbone.name)"
        )
    return max(depth, 1)


def _heads(weights: Mapping[str, Tensor], hidden: int, path: Path) -> int:
    """Heads, by the width of one of them or by the published sizes."""
    for name in ("blocks.0.attn.q_norm.weight", "feat_rope.freqs_cos"):
        if name in weights:
            of_one = weights[name].shape[-1]
            if hidden % of_one:
                raise ForeignError(
                    f"{path}: {name} says that a head has {of_one} channels, which do not divide the width {hidden}: "
                    "fetch it again, or choose another --from (in params.yaml: imported.format)"
                )
            return hidden // of_one
    if hidden not in HEADS:
        raise ForeignError(f"{path} has width {hidden}, and nothing in it tells the number of heads: --set heads=N")
    return HEADS[hidden]


def _mlp_ratio(weights: Mapping[str, Tensor], hidden: int) -> float:
    """Width of the MLP over `hidden`; SwiGLU's is int(2/3 ratio hidden). Left at 4 where there is no MLP to look at."""
    if "blocks.0.mlp.w3.weight" in weights:
        width = weights["blocks.0.mlp.w3.weight"].shape[1]
        return next((r for r in (4.0, 1.5 * width / hidden) if int(2 * r * hidden / 3) == width), 4.0)
    width = weights["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in weights else 4 * hidden
    return width / hidden


def _tokens_per_side(weights: Mapping[str, Tensor], path: Path) -> int:
    """Side of the square of tokens."""
    for name, axis in (("pos_embed", 1), ("feat_rope.freqs_cos", 0)):
        if name in weights:
            return math.isqrt(weights[name].shape[axis])
    raise ForeignError(f"{path} has no position embedding that tells the size of a latent: --set side=N (its pixels)")
