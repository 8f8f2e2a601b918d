"""DiT (Peebles & Xie 2023, arXiv 2212.09748; facebookresearch/DiT): noise at a discrete time k of 0 .. 999.

The published networks predict epsilon and a variance (`learn_sigma`) at an integer k, of which precond `ddpm` makes a
velocity at t. This file embeds the number that it is given, and its answer means what it was trained to mean: from
random weights with another precond it is SiT.
"""

from typing import ClassVar

from facm.networks.layers.transformer import DIT_SIZES, AdaLNTransformer


class DiT(AdaLNTransformer):
    """F(x, t, y, r); zero at initialisation. Arguments, shapes and errors: see `AdaLNTransformer`."""

    NAME: ClassVar[str] = "dit"
    SIZES: ClassVar[dict[str, dict[str, int]]] = DIT_SIZES
