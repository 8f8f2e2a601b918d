"""REPA's SiT (Yu et al. 2025, arXiv 2410.06940; sihyun-yu/REPA): SiT with a projector that pretraining aligns.

The projector maps the tokens behind block `encoder_depth` to an encoder's patch tokens (facm/training/repa.py has the
loss). It serves pretraining alone: a student has none, and inference leaves it idle.

REPA's published checkpoints have t = 1 for noise and answer noise - data: F(x, t) = -theirs(x, 1 - t). Networks
trained here have this project's convention.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from facm.networks.layers.transformer import DIT_SIZES, AdaLNTransformer
from facm.runtime.ranges import Count, NonNegative, Positive


class REPA(AdaLNTransformer):
    """Velocity F(x, t, y, r); zero at initialisation. Other arguments: see `Transformer`.

    Attributes:
        projectors: a list of one, as in the published state dicts, or None.

    Raises:
        ValueError: as `Transformer` does, or an `encoder_depth` beyond `depth`, or a negative `coefficient`.
    """

    NAME: ClassVar[str] = "repa"
    SIZES: ClassVar[dict[str, dict[str, int]]] = DIT_SIZES
    STUDENT: ClassVar[dict[str, bool]] = {"projector": False}
    """Constants of a network that is no longer pretrained."""

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        patch_size: Count,
        hidden: Count,
        depth: Count,
        heads: Count,
        mlp_ratio: Positive = 4.0,
        qk_norm: bool = False,
        label_std: NonNegative = 0.02,
        t_std: NonNegative | Sequence[NonNegative] = 0.02,
        gate_bias: float = 0.0,
        pixel_norm: bool = False,
        learn_sigma: bool = False,
        encoder_depth: Count = 8,  # number of the block, from 1, whose tokens are projected
        coefficient: NonNegative = 0.5,  # weight of the alignment loss beside the velocity loss; 0: no projector
        projector_width: Count = 2048,  # of the two hidden layers of the projector
        features: Count = 768,  # channels of the encoder's tokens
        projector: bool = True,  # False: no projector, as in a student; set by the stages, not in params.yaml
        auxiliary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            shape=shape,
            num_classes=num_classes,
            patch_size=patch_size,
            hidden=hidden,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            label_std=label_std,
            t_std=t_std,
            gate_bias=gate_bias,
            pixel_norm=pixel_norm,
            learn_sigma=learn_sigma,
            dropout=dropout,
        )
        place = f"params.yaml, backbones.{self.NAME}"
        if encoder_depth > depth:
            raise ValueError(f"{place}.encoder_depth: {encoder_depth} must be one of the blocks 1..{depth} (depth)")
        self.encoder_depth, self.coefficient, self.features = encoder_depth, coefficient, features
        self.projectors: nn.ModuleList | None = None
        if projector and coefficient > 0:
            self.projectors = nn.ModuleList([make_projector(hidden, projector_width, features)])
        if auxiliary:  # last, see `Transformer`
            self.add_second_time(t_std if isinstance(t_std, int | float) else t_std[0])

    def with_tokens(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `forward` returns and projected tokens (B, N, features) from one pass; not for dual numbers.

        Raises ValueError: as `forward` does, or a network without a projector.
        """
        if self.projectors is None:
            raise ValueError("this network has no projector: it serves pretraining with backbones.repa.coefficient > 0")
        F, tokens = self.run(x, t, y, r, key, watched=self.encoder_depth)
        return F, self.projectors[0](tokens)


def make_projector(hidden: int, width: int, features: int) -> nn.Sequential:
    """Tokens (..., hidden) -> (..., features): three layers and SiLU; Xavier-uniform weights, zero biases."""
    sizes = (hidden, width, width, features)
    linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(linears[0], nn.SiLU(), linears[1], nn.SiLU(), linears[2])
