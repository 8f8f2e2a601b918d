"""Feature networks without weights, for tests: they see of pictures what Inception and DINOv2 do, in few numbers."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from facm.runtime.files import save_tensors


class Fake:
    """Features are means and squares of levels; batches of 7, so that parts are no multiples of anything."""

    name, seeded, batch, exact = "fake", False, 7, None
    widths: ClassVar[dict[str, int]] = {"features": 4}

    @classmethod
    def create(cls, train: Any, seed: int) -> "Fake":
        return cls()

    @classmethod
    def load(cls, path: Path) -> "Fake":
        assert path.is_file()
        return cls()

    def save(self, path: Path) -> dict[str, Any]:
        return save_tensors(path, {"nothing": torch.zeros(1)})

    def to(self, device: Any) -> "Fake":
        return self

    def extract(self, images: Tensor) -> Tensor:
        return self.look(images)["features"]

    def look(self, images: Tensor) -> dict[str, Tensor]:
        x = images.flatten(1).float() / 255
        views = {"features": x[:, :4], "spatial": x[:, 3:6].square(), "logits": 9 * x[:, 2:7]}
        return {name: views[name] for name in self.widths}

    def classify(self, features: Tensor) -> None:
        return None


class Inception(Fake):
    """Three views, under Inception's name."""

    name = "inception"
    widths: ClassVar[dict[str, int]] = {"features": 4, "spatial": 3, "logits": 5}


class DINOv2(Fake):
    """Others of the levels, under DINOv2's name."""

    name, batch = "dinov2", 5
    widths: ClassVar[dict[str, int]] = {"features": 3}

    def look(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": images.flatten(1).float()[:, -3:] / 100}


NETWORKS: dict[str, Any] = {"inception": Inception, "dinov2": DINOv2}
