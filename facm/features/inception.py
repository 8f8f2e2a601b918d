"""The TF-Inception of published FIDs: torch-fidelity's `inception-v3-compat`, 2048 features of the last pooling.

Its weights lie outside the repository, in torch's cache, and are pinned by their sha256: no other network may call its
distance `fid`. torch-fidelity reads them with pickle, so they are checked before they are loaded.
"""

import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from facm.data import Images
from facm.files import load_tensors, save_tensors, sha256

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception:
    """InceptionV3 2015-12-05; it knows ImageNet's classes in TensorFlow's order, so it classifies nothing here."""

    name: ClassVar[str] = "inception"
    seeded: ClassVar[bool] = False
    batch: ClassVar[int] = 64
    exact: ClassVar[None] = None

    def __init__(self, weights: Path):
        """
        Args:
            weights: the file FILE.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import (
            FeatureExtractorInceptionV3,
        )

        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )

    @classmethod
    def create(cls, train: Images, seed: int) -> "Inception":
        """With the pinned weights, whatever data and seed; raises as `find_weights` does."""
        return cls(find_weights())

    @classmethod
    def load(cls, path: Path) -> "Inception":
        """With the pinned weights, if `path` was saved with the same ones.

        Raises:
            FileNotFoundError: no such file, or no weights.
            ValueError: damaged, or other weights.
        """
        saved = bytes(load_tensors(path, f"remove {path.parent} and run `dvc repro`")["sha256"].tolist()).hex()
        if saved != SHA256:
            raise ValueError(f"{path} was made with Inception weights {saved}, needed are {SHA256}: run `dvc repro`")
        return cls(find_weights())

    def save(self, path: Path) -> dict[str, Any]:
        """Write which weights these are, not the weights; returns `file`, `bytes`, `sha256`."""
        return save_tensors(path, {"sha256": torch.tensor(list(bytes.fromhex(SHA256)), dtype=torch.uint8)})

    def to(self, device: Any) -> "Inception":
        """Move it to a device."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Pictures uint8 (N, H, W, 3), or grey (N, H, W, 1) repeated -> features float32 (N, 2048), on the CPU."""
        device = next(self.network.parameters()).device
        chunks = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).split(self.batch)
        return torch.cat([self.network(chunk.to(device))[0].cpu() for chunk in chunks])

    def classify(self, features: Tensor) -> None:
        """Nothing: its classes are not the data set's."""


def find_weights() -> Path:
    """The pinned weights in torch's cache, downloaded where they are missing.

    Raises:
        FileNotFoundError: neither there nor to be had.
        ValueError: a file of that name with other content.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=sys.stderr.isatty())
        except OSError as error:
            raise FileNotFoundError(
                f"reference.features 'inception' needs {FILE}, and it could not be downloaded ({error}): "
                f"fetch {URL} where there is a network and put it at {path} (TORCH_HOME moves that folder)"
            ) from None
    if (found := sha256(path)) != SHA256:
        raise ValueError(f"{path} has sha256 {found}, needed is {SHA256}: remove it, it is fetched again from {URL}")
    return path
