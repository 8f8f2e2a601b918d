"""SiT (Ma et al. 2024, arXiv 2401.08740; willisma/SiT): a bare average, or {model, ema, opt, args}.

Raw t in [0, 1], t = 1 for data, answers data - noise: our convention. Of the 2C channels in the last layer of the
published files the first C are the velocity (`learn_sigma`, read from the shapes; the network drops the others).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facm.convert.settings import PLAIN
from facm.convert.transformer import describe
from facm.convert.weights import Format, Found, Weights


class SiT(Format):
    """Codec: SD-VAE f8d4, latents times 0.18215 and not normalised further."""

    settings = PLAIN | {
        "path": ("Linear",),
        "prediction": ("velocity",),
        "families": ("SiT",),
    }

    def read(self, weights: Weights, given: Mapping[str, Any], path: Path) -> Found:
        return describe("sit", weights.tensors, weights.settings, given, path)
