"""The TF-Inception of published FIDs: torch-fidelity's `inception-v3-compat`.

Beside the 2048 features of the last pooling it gives what the Inception Score and sFID need: the 1008 logits without
their bias, and the spatial features of ADM's evaluator, the first 7 channels of mixed_6/conv at 17 x 17. That node is
the first branch (1x1) of the third block of that resolution, torch-fidelity's Mixed_6d.branch1x1, after its ReLU.

Its weights lie in torch's cache, pinned by their sha256: no other network may call its distance `fid`. torch-fidelity
reads them with pickle, so they are checked before they are loaded.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from facm.data.images.images import Images
from facm.networks import precision
from facm.runtime import weights

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17


class Inception:
    """InceptionV3 2015-12-05; it knows ImageNet's classes in TensorFlow's order, so it classifies nothing here."""

    name: ClassVar[str] = "inception"
    seeded: ClassVar[bool] = False
    batch: ClassVar[int] = 64
    widths: ClassVar[dict[str, int]] = {"features": 2048, "spatial": SPATIAL_CHANNELS * SPATIAL_SIDE**2, "logits": 1008}
    exact: ClassVar[None] = None

    def __init__(self, path: Path):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )

    @classmethod
    def create(cls, train: Images | None, seed: int) -> "Inception":
        """With the pinned weights, whatever data and seed; raises as `find_weights` does."""
        return cls(find_weights())

    @classmethod
    def load(cls, path: Path) -> "Inception":
        """With the pinned weights, if `path` was saved with them; raises as `weights.check` and `weights.find`."""
        weights.check(path, "Inception", SHA256)
        return cls(find_weights())

    def save(self, path: Path) -> dict[str, Any]:
        """Write which weights these are, not the weights; returns `file`, `bytes`, `sha256`."""
        return weights.save(path, SHA256)

    def to(self, device: Any) -> "Inception":
        self.network.to(device)
        return self

    def extract(self, images: Tensor) -> Tensor:
        """Images uint8 (N, H, W, 3), or grey (N, H, W, 1) repeated -> features float32 (N, 2048), on the CPU."""
        return self.look(images)["features"]

    @torch.no_grad()
    def look(self, images: Tensor) -> dict[str, Tensor]:
        """Images as for `extract` -> float32, on the CPU: features (N, 2048), logits (N, 1008), spatial (N, 2023).

        The spatial features are in ADM's order: row, column, channel.
        """
        device = next(self.network.parameters()).device
        seen: dict[str, list[Tensor]] = {"features": [], "spatial": [], "logits": []}

        def keep(module: Any, inputs: Any, output: Tensor) -> None:
            seen["spatial"].append(output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).cpu())

        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(keep)
        try:
            for chunk in images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).split(self.batch):
                with precision.full():
                    features, logits = self.network(chunk.to(device))
                seen["features"].append(features.cpu())
                seen["logits"].append(logits.cpu())
        finally:
            hook.remove()
        return {name: torch.cat(parts) for name, parts in seen.items()}

    def classify(self, features: Tensor) -> None:
        """Nothing: its classes are not the dataset's."""


def find_weights() -> Path:
    """The pinned weights; raises as `weights.find` does."""
    return weights.find("inception", FILE, URL, SHA256)
