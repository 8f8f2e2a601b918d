"""DiT (Peebles & Xie 2023, arXiv 2212.09748; facebookresearch/DiT): a bare average, or {model, ema, opt, args}.

It predicts the noise epsilon at a discrete time k = 0 .. 999 (k = 0 is nearly data), beside a variance (`learn_sigma`,
read from the shapes; the network drops it). Precond `ddpm` makes of it the velocity at t:

    t = sqrt(abar_k) / (sqrt(abar_k) + sqrt(1 - abar_k)),   x_k = (sqrt(abar_k) + sqrt(1 - abar_k)) x_t,
    v = x1_hat - eps,   x1_hat = (x_k - sqrt(1 - abar_k) eps) / sqrt(abar_k).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from facm.convert.settings import PLAIN
from facm.convert.transformer import describe
from facm.convert.weights import Format, Found, Weights


class DiT(Format):
    """Codec: SD-VAE f8d4, latents times 0.18215 and not normalised further."""

    settings = PLAIN | {
        "prediction": ("epsilon", "eps", "noise"),
        "noise_schedule": ("linear",),
        "predict_xstart": (False,),
        "diffusion_steps": (1000,),
        "families": ("DiT",),
    }

    def read(self, weights: Weights, given: Mapping[str, Any], path: Path) -> Found:
        return replace(describe("dit", weights.tensors, weights.settings, given, path), precond="ddpm")
