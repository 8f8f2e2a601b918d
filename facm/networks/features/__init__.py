"""Feature networks in whose space samples are compared, one file each; a new one is a file and a line in FEATURES.

Not every data set has a published scale: on small pictures a small classifier, trained in the pipeline, takes the
place of Inception, and its distances are comparable within one data/reference only.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from facm.data.images.images import Images
from facm.runtime.names import refuse_unknown

FEATURES = {
    "digits_cnn": "DigitsCNN",
    "dinov2": "DINOv2",
    "exact_map": "ExactMap",
    "inception": "Inception",
    "pictures_cnn": "PicturesCNN",
}
POINTS = ("exact_map",)  # which of them look at points


class FeatureNetwork(Protocol):
    """What a feature network has.

    Attributes:
        name: its key in FEATURES.
        seeded: its weights depend on a seed, so that a second, independent one can check the first.
        batch: pictures that it takes at once; part of the result, since rounding may depend on it.
        widths: of all that it sees in a picture: `features`, and where it has them `spatial` and `logits`.
    """

    name: ClassVar[str]
    seeded: ClassVar[bool]
    batch: ClassVar[int]
    widths: ClassVar[dict[str, int]]

    @classmethod
    def create(cls, train: Images | None, seed: int) -> Self:
        """Train it on a train split, or find its weights, which needs none."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """From what `save` wrote."""

    def save(self, path: Path) -> dict[str, Any]:
        """Write what `load` needs as safetensors; returns `file`, `bytes`, `sha256`."""

    def extract(self, images: Tensor) -> Tensor:
        """Pictures uint8 (N, H, W, C), or points float32 -> features float32 (N, D), on the CPU."""

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """The same -> all that it sees, float32 (N, width) each, on the CPU, by the names of `widths`."""

    def classify(self, features: Tensor) -> Tensor | None:
        """Features (N, D) of `extract` -> logits (N, classes) on the CPU; None where it knows other classes."""

    def to(self, device: Any) -> Any:
        """Move it to a device."""

    @property
    def exact(self) -> Callable[[Tensor], Tensor] | None:
        """The exact map of noise float64 (N, D) to samples in the data's units; None where nobody knows it."""


def network_class(name: str) -> type[FeatureNetwork]:
    """The class of a key of FEATURES.

    Raises:
        ValueError: unknown name.
    """
    refuse_unknown([name], FEATURES, "params.yaml, reference.features")
    network: type[FeatureNetwork] = getattr(import_module(f"{__name__}.{name}"), FEATURES[name])
    return network


def find_weights(names: Iterable[str]) -> None:
    """Find, or fetch, the published weights of networks that have some; raises as `facm.runtime.weights.find`."""
    for name in names:
        refuse_unknown([name], FEATURES, "params.yaml, reference.features")
        find = getattr(import_module(f"{__name__}.{name}"), "find_weights", None)
        if find is not None:
            find()
