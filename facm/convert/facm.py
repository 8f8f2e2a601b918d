"""FACM (arXiv 2507.03738; ali-vilab/FACM): released files {ema, _extracted_from}, training files {model, emas, ...}.

The network is LightningDiT's, whose forward(x, t, r, y) takes t in [0, 2] (expanded) or t and r (auxiliary: the file
has `r_embedder.*`). The stage-1 checkpoint was trained on both formats, half of the samples each. A student (`--kind
student`) is read with the sampler of eq. 19 and its own velocity at c_FM. `AdaLoss.*`, the weights of sCM's adaptive
loss, serve training alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from facm.convert.lightningdit import SETTINGS, describe_all
from facm.convert.transformer import without
from facm.convert.weights import Format, Found, Weights


class FACM(Format):
    """Codec and statistics: VA-VAE f16d32, each channel normalised by the authors' latents_stats.pt."""

    codec = "va_vae"
    normalised = True
    students = True
    settings = SETTINGS

    def read(self, weights: Weights, given: Mapping[str, Any], path: Path) -> Found:
        tensors = without(weights.tensors, ("AdaLoss.",))
        found = describe_all(tensors, weights.settings, given, path)
        auxiliary = any(name.startswith("r_embedder.") for name in tensors)
        conditioning = "auxiliary" if auxiliary else "expanded"
        return replace(found, conditioning=conditioning, fraction=0.5)
