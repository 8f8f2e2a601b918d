"""CIFAR-10 (Krizhevsky 2009) as torchvision has it: 50,000 images of 32x32 to train on, 10,000 held out."""

from pathlib import Path
from urllib.error import URLError

import torch

from facm.data.images.images import Images

CLASSES = 10


class Cifar10:
    """torchvision.datasets.CIFAR10; its archive is downloaded by torchvision where it is missing (170 MB)."""

    def __init__(self, root: Path | None = None):
        """In a folder that has, or is to have, `cifar-10-batches-py/`; ValueError where there is none."""
        if root is None:
            raise ValueError("params.yaml, data.root: 'cifar10' needs a folder for torchvision's files, got null")
        there = next((place for place in (root, *root.parents) if place.exists()), root)
        if there.exists() and not there.is_dir():
            raise ValueError(
                f"params.yaml, data.root: 'cifar10' needs a folder for torchvision's files, {there} is a file"
            )
        self.root = root

    def load(self, split: str) -> Images:
        """One split: images uint8 (N, 32, 32, 3), labels 0..9; held out is CIFAR-10's test set.

        Raises FileNotFoundError where the files are missing or damaged, and cannot be downloaded.
        """
        from torchvision.datasets import CIFAR10  # type: ignore[import-untyped]

        try:
            found = CIFAR10(self.root, train=split == "train", download=True)
        except (URLError, RuntimeError) as error:
            raise FileNotFoundError(
                f"CIFAR-10 is not whole in {self.root} (params.yaml, data.root) and could not be downloaded ({error}): "
                f"fetch {CIFAR10.url} where there is a network and unpack it there, as {CIFAR10.base_folder}/"
            ) from None
        return Images(torch.from_numpy(found.data).contiguous(), torch.tensor(found.targets), CLASSES)
