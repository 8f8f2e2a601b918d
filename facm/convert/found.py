"""A network that was found in a foreign file, in this project's terms."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """What a format makes of the weights.

    Attributes:
        backbone: key of facm.networks.backbones.
        constants: of that network.
        shape: (C, H, W) of a latent.
        num_classes: 0: none.
        weights: by our names, conventions folded in.
        conditioning: plain | expanded | auxiliary: what the network knows.
        fraction: share of the FM format in its training, 0 where it knows t only.
        precond: key of facm.networks.preconds: what makes a velocity of the network's answer; none: it is one.
        precond_constants: those of it that the file tells.
        null_label: whether it was trained with a label that stands for none, so that it can be guided.
    """

    backbone: str
    constants: dict[str, Any]
    shape: tuple[int, ...]
    num_classes: int
    weights: dict[str, Tensor] = field(repr=False)
    conditioning: str = "plain"
    fraction: float = 0.0
    precond: str = "none"
    precond_constants: dict[str, Any] = field(default_factory=dict)
    null_label: bool = True
