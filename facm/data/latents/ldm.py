"""Autoencoders in the layout of latent diffusion's code (LDM: CompVis/latent-diffusion, ldm/modules/diffusionmodules/
model.py, which SD-VAE and VA-VAE were trained with), key by key as diffusers' AutoencoderKL names them.

    encoder.down.<i>.block.<j>, .attn.<j>, .downsample.conv    down_blocks.<i>.resnets.<j>, .attentions.<j>, ...
    decoder.up.<i>.block.<j>, .attn.<j>, .upsample.conv        up_blocks.<levels - 1 - i>. likewise
    mid.block_1, mid.attn_1, mid.block_2                       mid_block.resnets.0, .attentions.0, .resnets.1
    nin_shortcut; norm, q, k, v, proj_out (1x1 convolutions)   conv_shortcut; group_norm, to_q, to_k, to_v, to_out.0

A training's file holds more: losses, the aligned foundation model and its projection (VA-VAE). That is left out, by
name; anything else that is not known is an error.
"""

import re
from collections.abc import Mapping

from torch import Tensor

DROPPED = ("loss.", "foundation_model.", "linear_proj.", "model_ema.")
SHORT = {"norm_out": "conv_norm_out"}
RESNET = {"nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
MID = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
LEVEL = re.compile(r"(down|up)\.(\d+)\.(block|attn|downsample|upsample)\.(\w+)\.(.+)")


def is_ldm(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are named as in LDM."""
    return any(name.startswith("encoder.down.") for name in weights)


def converted(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under diffusers' names, without what serves training alone; ValueError for unknown names."""
    kept = {name: value for name, value in weights.items() if not name.startswith(DROPPED)}
    levels = 1 + max((int(name.split(".")[2]) for name in kept if name.startswith("encoder.down.")), default=0)
    unknown = [name for name in kept if _renamed(name, levels) is None]
    if unknown:
        raise ValueError(f"{len(unknown)} names are not of LDM's autoencoder: {', '.join(unknown[:5])}")
    new = {str(_renamed(name, levels)): value for name, value in kept.items()}
    return {name: value[:, :, 0, 0] if _is_linear(name, value) else value for name, value in new.items()}


def width(weights: Mapping[str, Tensor]) -> int:
    return int(weights["encoder.conv_in.weight"].shape[0])


def _is_linear(name: str, value: Tensor) -> bool:
    """Whether a converted weight is a 1x1 convolution that diffusers has as a linear layer."""
    return ".attentions." in name and value.dim() == 4


def _renamed(name: str, levels: int) -> str | None:
    """Diffusers' name of an LDM weight; None for one that is not known."""
    part, _, rest = name.partition(".")
    if part in ("quant_conv", "post_quant_conv"):
        return name
    if part not in ("encoder", "decoder"):
        return None
    module, _, weight = rest.rpartition(".")
    if module in ("conv_in", "conv_out", "norm_out"):
        return f"{part}.{SHORT.get(module, module)}.{weight}"
    if module.startswith("mid."):
        _, block, inner = module.split(".")
        names = ATTENTION if block.startswith("attn") else RESNET
        return f"{part}.mid_block.{MID[block]}.{names.get(inner, inner)}.{weight}" if block in MID else None
    found = LEVEL.fullmatch(rest)
    if found is None or (found[1] == "down") != (part == "encoder"):
        return None
    level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
    place = f"{part}.{found[1]}_blocks.{level}"
    if found[3] in ("downsample", "upsample"):
        return f"{place}.{found[3]}rs.0.conv.{found[5]}" if found[4] == "conv" else None
    inner, _, weight = found[5].rpartition(".")
    if found[3] == "block":
        return f"{place}.resnets.{found[4]}.{RESNET.get(inner, inner)}.{weight}"
    return f"{place}.attentions.{found[4]}.{ATTENTION.get(inner, inner)}.{weight}"
