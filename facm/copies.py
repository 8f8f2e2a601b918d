"""Copies of training pictures among samples, by nearest neighbours in pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

PERCENTILE = 1.0
CHUNK = 1000
LEVELS_PER_UNIT = 127.5  # levels 0..255 span [-1, 1]


@dataclass(frozen=True)
class Copies:
    """A copy lies nearer to a train picture than nearly all train pictures lie to each other.

    Attributes:
        pictures: the train split, uint8 (N, H, W, C).
        threshold: L2 distance of pixels in [-1, 1]; samples within it count as copies.
    """

    pictures: Tensor
    threshold: float

    @classmethod
    def of(cls, pictures: Tensor) -> "Copies":
        """Take the 1st percentile of the distances from each train picture to its nearest other one as threshold."""
        return cls(pictures, float(nearest(pictures).quantile(PERCENTILE / 100)))

    def rate(self, images: Tensor) -> float:
        """Fraction of pictures, uint8 (N, H, W, C), that are copies; held-out pictures set the rate to expect."""
        return float((nearest(images, self.pictures) <= self.threshold).double().mean())


def nearest(images: Tensor, pictures: Tensor | None = None) -> Tensor:
    """Pixel L2 distance, [-1, 1], from each picture to the nearest of others.

    Levels are whole numbers and their squared distances exact in float64, so neither the order of sums nor the number
    of threads can move the result.

    Args:
        images: uint8 (N, H, W, C).
        pictures: uint8 (M, H, W, C); None: the other ones of `images`.

    Returns:
        float64 (N,).
    """
    others = (images if pictures is None else pictures).flatten(1).double()
    squares = others.square().sum(1)
    distances = []
    for start in range(0, len(images), CHUNK):
        a = images[start : start + CHUNK].flatten(1).double()
        squared = a.square().sum(1, keepdim=True) + squares - 2 * a @ others.T
        if pictures is None:
            squared.diagonal(start).fill_(torch.inf)
        distances.append(squared.amin(1).sqrt() / LEVELS_PER_UNIT)
    return torch.cat(distances)
