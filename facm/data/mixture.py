"""Points of a 2 x 2 grid of Gaussians (facm/mixture.py), whose flow is known exactly: no download, no folder.

Points are quantiles of levels in the unit square. Those to train on have the levels of a Hammersley set, which fills it
evenly: 65536 random ones weigh the modes wrong by .002, and a perfect learner of them would err by .03 and more, since
it would take points on the border between two modes to the wrong one (LOG.md). Held-out points are random, as samples.
All are rounded to multiples of 2^-16, so that last bits, in which machines differ, do not reach the fingerprint.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.data import Images
from facm.mixture import LAW

BITS = 16  # 2^BITS points to train on
HELDOUT = 2048
SEED = 738  # of Philox
GRID = 2.0**-16


class MixturePoints:
    """Points float32 (N, 2) without classes: 65536 to train on, ordered by the first coordinate, and 2048 held out."""

    def __init__(self, root: Path | None = None):
        """
        Raises:
            ValueError: a folder is given.
        """
        if root is not None:
            raise ValueError(f"params.yaml, data.root: 'mixture' is drawn from its law, got {root}; set it to null")

    def load(self, split: str) -> Images:
        """One split."""
        levels = hammersley(BITS) if split == "train" else uniform(HELDOUT)
        points = LAW.quantile(levels, torch.ones(1, dtype=torch.float64))
        return Images(points.div(GRID).round().mul(GRID).float(), None, 0)


def hammersley(bits: int) -> Tensor:
    """(2^bits, 2) float64: number i over their count, and i with its binary digits reversed, both at mid-interval."""
    number = torch.arange(2**bits)
    reverse = torch.zeros_like(number)
    for bit in range(bits):
        reverse += ((number >> bit) & 1) << (bits - 1 - bit)
    return (torch.stack([number, reverse], dim=1).double() + 0.5) / 2**bits


def uniform(num: int) -> Tensor:
    """(num, 2) float64, random."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=[SEED, 0])).random((num, 2)))
