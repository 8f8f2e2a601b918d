"""Copies of training images among samples, by nearest neighbours in pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.runtime import dist

PERCENTILE = 1.0
CHUNK = 1000
VALUES = 2**24  # pixel values of train images that are held in float64 at once: 128 MiB
LEVELS_PER_UNIT = 127.5  # levels 0..255 span [-1, 1]


@dataclass(frozen=True)
class Copies:
    """A copy lies nearer to a train image than nearly all train images lie to each other."""

    pictures: Tensor  # the train split, uint8 (N, H, W, C)
    threshold: float  # L2 distance of pixels in [-1, 1]; samples within it count as copies

    @classmethod
    def of(cls, pictures: Tensor) -> "Copies":
        """Take the 1st percentile of the distances from each train image to its nearest other one as threshold."""
        return cls(pictures, dist.from_main(lambda: float(nearest(pictures).quantile(PERCENTILE / 100))))

    def nearest(self, images: Tensor) -> Tensor:
        """Distance, float64 (N,), from each image, uint8 (N, H, W, C), to the nearest train image."""
        return nearest(images, self.pictures)

    def rate(self, distances: Tensor) -> float:
        """Fraction of images that are copies, by their `nearest`; held-out images set the rate to expect."""
        return float((distances <= self.threshold).double().mean())


def nearest(images: Tensor, pictures: Tensor | None = None) -> Tensor:
    """Pixel L2 distance, [-1, 1], float64 (N,) on the CPU, from each image uint8 (N, H, W, C) to the nearest of
    `pictures` (M, H, W, C), or of the other ones of `images`.

    Levels are whole numbers and their squared distances exact in float64, so neither the order of sums nor the number
    of threads, nor the device, can move the result.
    """
    others = images if pictures is None else pictures
    size = max(1, VALUES // images[0].numel())
    least = torch.full((len(images),), torch.inf, dtype=torch.float64)
    for first in range(0, len(others), size):
        b = _levels(others[first : first + size])
        squares = b.square().sum(1)
        for start in range(0, len(images), CHUNK):
            a = _levels(images[start : start + CHUNK])
            squared = a.square().sum(1, keepdim=True) + squares - 2 * a @ b.T
            if pictures is None:
                squared.diagonal(start - first).fill_(torch.inf)
            rows = least[start : start + CHUNK]
            torch.minimum(rows, squared.amin(1).cpu(), out=rows)
    return least.sqrt() / LEVELS_PER_UNIT


def _levels(images: Tensor) -> Tensor:
    """Images (N, H, W, C) -> levels float64 (N, H W C) where this rank computes."""
    return images.to(dist.device()).flatten(1).double()
