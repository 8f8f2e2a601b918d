"""Pixel norm (Karras et al. 2018, arXiv 1710.10196, Sec. 4.2), of AdaLN's and FiLM's vectors, as sCM needs it."""

import torch
from torch import Tensor

PIXEL_EPS = 1e-8


def pixel_norm(x: Tensor) -> Tensor:
    """Return x / sqrt(mean x^2 + PIXEL_EPS) over the last axis, (..., D) (Karras et al. 2018, Sec. 4.2)."""
    return torch.rms_norm(x, x.shape[-1:], None, PIXEL_EPS)
