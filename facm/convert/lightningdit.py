"""LightningDiT (Yao et al. 2025, arXiv 2501.01423; hustvl/LightningDiT): {model, ema, opt, config}.

Its forward(x, t, y) takes a raw t in [0, 1] with t = 1 for data, and answers data - noise: our convention. The
published checkpoint of 800 epochs was trained without QK-norm. RoPE has no weights, only tables (`feat_rope.*`), which
the published files have; of a file without them the user must say whether the network has RoPE: `--set rope=true`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.convert.settings import EITHER, SWITCHES, Settings
from facm.convert.transformer import describe, refuse_other
from facm.convert.weights import Format, Found, Weights
from facm.runtime.foreign import ForeignError

SETTINGS: dict[str, tuple[Any, ...]] = {
    "path": ("Linear",),
    "prediction": ("velocity",),
    "families": ("LightningDiT",),
    **dict.fromkeys(SWITCHES, EITHER),
}


class LightningDiT(Format):
    """Codec and statistics: VA-VAE f16d32, each channel normalised by the authors' latents_stats.pt."""

    codec = "va_vae"
    normalised = True
    settings = SETTINGS

    def read(self, weights: Weights, given: Mapping[str, Any], path: Path) -> Found:
        return describe_all(weights.tensors, weights.settings, given, path)


def describe_all(tensors: Mapping[str, Tensor], settings: Settings, given: Mapping[str, Any], path: Path) -> Found:
    """As `transformer.describe`, with LightningDiT's switches, `rope` always among them."""
    refuse_other(tensors, path)
    found = describe("lightningdit", tensors, settings, switches(tensors) | dict(given), path)
    if not found.constants["learn_sigma"]:
        del found.constants["learn_sigma"]  # the default of this network
    if "rope" not in found.constants:
        raise ForeignError(
            f"{path} has no feat_rope.*, the tables of rotary positions (RoPE): its network has none, or they were "
            "left out; the answers differ, so say which with --set rope=true or --set rope=false (in params.yaml: "
            "backbones.lightningdit.rope)"
        )
    return found


def switches(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Which of LightningDiT's parts the names and shapes tell of."""
    found = {
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "rms_norm": "blocks.0.norm1.weight" in tensors,
        "swiglu": "blocks.0.mlp.w12.weight" in tensors,
    }
    if any(name.startswith("feat_rope.") for name in tensors):
        found["rope"] = True
    if "blocks.0.adaLN_modulation.1.bias" in tensors:
        rows = tensors["blocks.0.adaLN_modulation.1.bias"].shape[0]
        found["shift"] = rows == 6 * tensors["x_embedder.proj.weight"].shape[0]
    return found
