"""SiT (Ma et al. 2024, arXiv 2401.08740; willisma/SiT): the network of DiT as a velocity at a raw t in [0, 1].

t = 1 is data there as here. The published checkpoints have 2C channels in their last layer (`learn_sigma`), although
only the first C, the velocity, were trained.
"""

from typing import ClassVar

from facm.networks.layers.transformer import DIT_SIZES, AdaLNTransformer


class SiT(AdaLNTransformer):
    """Velocity F(x, t, y, r); zero at initialisation. Arguments, shapes and errors: see `AdaLNTransformer`."""

    NAME: ClassVar[str] = "sit"
    SIZES: ClassVar[dict[str, dict[str, int]]] = DIT_SIZES
