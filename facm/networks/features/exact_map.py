"""Points of the 2-D mixture (facm/data/datasets/mixture.py), measured against its exact flow; nothing is trained here.

A network learns the flow from N(0, I) to the normalised data, so its exact map is that of the normalised mixture, put
back into the data's units, in which errors are given. The features, in which distances between distributions are taken,
are harmonics of the coordinates: mean and covariance of the points alone would not tell data from noise.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from facm.data.datasets.mixture import LAW
from facm.data.images.images import Images
from facm.runtime.files import load_tensors, save_tensors

FREQUENCIES = (1.0, 2.0, 3.0)  # the modes are 3.5 apart and .4 to .5 wide


class ExactMap:
    """The exact map of noise to data.

    `mean` and `std` of the train split are float64 (2,); data/latents has the same, rounded to float32.
    """

    name: ClassVar[str] = "exact_map"
    seeded: ClassVar[bool] = False
    batch: ClassVar[int] = 1000
    widths: ClassVar[dict[str, int]] = {"features": 2 + 4 * len(FREQUENCIES)}

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    @classmethod
    def create(cls, train: Images, seed: int) -> "ExactMap":
        """For a train split of the mixture; nothing is random."""
        points = train.images[:].double()
        return cls(points.mean(0), points.std(0))

    @classmethod
    def load(cls, path: Path) -> "ExactMap":
        """From what `save` wrote; FileNotFoundError, or ValueError for a damaged file."""
        stored = load_tensors(path, f"remove {path.parent} and run `dvc repro`")
        return cls(stored["mean"], stored["std"])

    def save(self, path: Path) -> dict[str, Any]:
        return save_tensors(path, {"mean": self.mean, "std": self.std})

    def to(self, device: Any) -> "ExactMap":
        """Stays on the CPU."""
        return self

    def extract(self, images: Tensor) -> Tensor:
        """Points (N, 2) -> coordinates, and cosines and sines at FREQUENCIES, float32 (N, 14)."""
        x = images.double()
        waves = [wave(frequency * x) for frequency in FREQUENCIES for wave in (torch.cos, torch.sin)]
        return torch.cat([x, *waves], dim=1).float()

    def look(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.extract(images)}

    def classify(self, features: Tensor) -> None:
        """Nothing: there are no classes."""

    def exact(self, x0: Tensor) -> Tensor:
        """Noise float64 (N, 2) -> where the exact flow takes it, float64 (N, 2), in the data's units."""
        time = torch.zeros(len(x0), dtype=x0.dtype)
        columns = []
        for x, mean, std in zip(x0.unbind(1), self.mean.tolist(), self.std.tolist(), strict=True):
            columns.append(mean + std * LAW.normalised(mean, std).flow_map(x, time, time + 1))
        return torch.stack(columns, dim=1)
