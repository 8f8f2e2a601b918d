"""Representation alignment in pretraining (REPA; Yu et al. 2025, arXiv 2410.06940; sihyun-yu/REPA, loss.py).

The network projects the tokens behind one of its blocks (facm/networks/backbones/repa.py), and the projections are
drawn to the patch tokens that a frozen encoder, DINOv2, has of the clean picture. Paper: sim is the cosine similarity,
lambda = 0.5, at SiT's block 8. REPA's time runs the other way; neither loss depends on that.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from facm.data.latents.tokens import TokenSet
from facm.flow.interface import FTheta, Point
from facm.objectives.fm import FM


def alignment(projected: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean over tokens of -cos(projected, tokens), from -1 (aligned) to 1, (B,).

    Args:
        projected: (B, N, features).
        tokens: of the encoder, like `projected`.

    Raises:
        ValueError: their shapes differ.
    """
    if projected.shape != tokens.shape:
        raise ValueError(f"got projected tokens {tuple(projected.shape)} for an encoder's {tuple(tokens.shape)}")
    return -(normalize(projected, dim=-1) * normalize(tokens, dim=-1)).sum(-1).mean(-1)


@dataclass(frozen=True, kw_only=True)
class Aligned(FM):
    """Flow matching and, from the same pass, the alignment of the network's tokens.

    Attributes:
        coefficient: lambda, weight of the alignment, above 0.
    """

    coefficient: float

    terms = ("fm", "repa")  # type: ignore[assignment]

    def __call__(self, F_theta: FTheta, point: Point) -> dict[str, Tensor]:
        """Return flow matching's loss, and `coefficient` times the alignment, (B,) each.

        Args:
            F_theta: a network that has a projector.
            point: what flow matching needs; `tools["tokens"]()` are the encoder's, (B, N, features).
        """
        ((F, projected),) = F_theta(self.query(point)._replace(tokens=True))
        return {
            "fm": self.loss(F, point.v),
            "repa": self.coefficient * alignment(projected, point.tools["tokens"]()),
        }


def wanted(network: nn.Module) -> bool:
    """Whether a network has a projector, which nothing but alignment trains."""
    return getattr(network, "projectors", None) is not None


def aligned(objective: FM, network: nn.Module, tokens: TokenSet | None) -> FM:
    """The objective itself for a network without a projector, else with the alignment beside it.

    Args:
        objective: of pretraining.
        network: about to be trained.
        tokens: of the encoder, None where there are none.

    Raises:
        ValueError: a projector without tokens, or tokens of another number or width than the network's.
    """
    refuse_unfit(network, None if tokens is None else tokens.shape)
    place: Any = network
    return Aligned(**asdict(objective), coefficient=place.coefficient) if wanted(network) else objective


def refuse_unfit(network: nn.Module, shape: tuple[int, ...] | None) -> None:
    """Raise where a network with a projector is to be trained beside other tokens than it needs.

    Args:
        network: about to be trained.
        shape: number and width of the tokens of a picture; None: there are none.

    Raises:
        ValueError: see `aligned`.
    """
    if not wanted(network):
        return
    place: Any = network
    if shape is None:
        raise ValueError(
            "params.yaml, backbones.repa.coefficient: above 0 it needs an encoder's tokens beside the latents: set "
            "latents.tokens.encoder, or coefficient to 0"
        )
    rows, columns = place.final_layer.grid
    needed = (rows * columns, place.features)
    if tuple(shape) != needed:
        raise ValueError(
            f"data/latents has tokens {tuple(shape)} (number, width) per picture, the network of params.yaml, "
            f"backbones.repa needs {needed}: set latents.tokens.side (14 pixels a token for DINOv2) or "
            "backbones.repa.features"
        )
