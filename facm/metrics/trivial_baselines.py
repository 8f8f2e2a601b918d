"""The ends of the scale: class means, without any diversity, and noise, without any likeness.

The train split is read once, in parts that the ranks share; the images are made when they are asked for: neither is
held in memory. Sums of levels are whole numbers, so that neither the parts nor the ranks can move them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.data.images.images import Images
from facm.flow.noise import noise
from facm.runtime import dist

BLOCK = 16  # images whose noise is drawn at once; torch draws normals in blocks of 16, so that parts make up a whole
VALUES = 2**24  # levels of the train split that are read at once


@dataclass(frozen=True)
class Cycled:
    """`num` images (or points) that repeat some, (M, ...), uint8 or float32."""

    some: Tensor
    num: int

    @property
    def shape(self) -> Sequence[int]:
        return (self.num, *self.some.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.some.dtype

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, rows: slice) -> Tensor:
        return self.some[torch.arange(*rows.indices(self.num)) % len(self.some)]


class Noise:
    """`num` images of normal noise with mean and std per channel (float64 (C,) or (D,)), in the form of `like`.

    Of points it is the identity map, of the noise that samplers start from.
    """

    def __init__(self, mean: Tensor, std: Tensor, like: Images, num: int, seed: int):
        self.mean, self.std, self.like, self.num, self.seed = mean, std, like, num, seed
        self.shape: Sequence[int] = (num, *like.images.shape[1:])
        self.dtype = like.images.dtype
        self._start()

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, rows: slice) -> Tensor:
        first, end, _ = rows.indices(self.num)
        if self.like.kind == "points":
            (normals,) = noise(self.seed, range(first, end), 1, self.shape[1:])
        else:
            normals = self._normals(first, end)
        return _as_data(self.mean + self.std * normals, self.like)

    def _start(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.block, self.drawn = torch.empty(0), 0  # the last BLOCK images, which end before number `drawn`

    def _normals(self, first: int, end: int) -> Tensor:
        """Images `first` .. `end` - 1 of one stream, float64, which starts again from its beginning where it must."""
        if first < self.drawn - len(self.block):
            self._start()
        parts = []
        while True:
            start = self.drawn - len(self.block)
            parts.append(self.block[max(0, first - start) : max(0, end - start)])
            if self.drawn >= end:
                return torch.cat([part for part in parts if len(part)]).view(end - first, *self.shape[1:])
            size = min(BLOCK, self.num - self.drawn)
            self.block = torch.randn((size, *self.shape[1:]), generator=self.generator, dtype=torch.float64)
            self.drawn += size


@dataclass(frozen=True)
class Ends:
    """What the ends of the scale take of a train split."""

    train: Images
    means: Tensor  # mean image of each class (of all, without classes), uint8 (classes, H, W, C); points likewise
    mean: Tensor  # mean, std: of each channel, float64 (C,); of points of each coordinate
    std: Tensor

    @classmethod
    def of(cls, train: Images) -> "Ends":
        """Read a train split; all ranks must call it."""
        classes = max(train.num_classes, 1)
        groups = torch.zeros(len(train), dtype=torch.int64) if train.labels is None else train.labels
        if train.kind == "points":
            values = train.images[:].double()
            means = torch.stack([values[groups == c].mean(0) for c in range(classes)])
            return cls(train, _as_data(means, train), values.mean(0), values.std(0))
        sums, squares = _totals(train, groups, classes)
        counts = groups.bincount(minlength=classes).tolist()
        means = torch.stack([_as_data(some.double() / n, train) for some, n in zip(sums, counts, strict=True)])
        n, channels = math.prod(train.images.shape[:-1]), sums.flatten(0, -2).sum(0, dtype=torch.int64)
        std = [_std(n, total, square) for total, square in zip(channels.tolist(), squares.tolist(), strict=True)]
        return cls(train, means, channels.double() / n, torch.tensor(std, dtype=torch.float64))

    def mean_pictures(self, num: int) -> Cycled:
        """The mean image of class i mod classes, `num` times, in the form of the train split.

        Recognised perfectly and without any diversity: what accuracy alone would call the best of generators.
        """
        return Cycled(self.means, num)

    def noise_pictures(self, num: int, seed: int) -> Noise:
        return Noise(self.mean, self.std, self.train, num, seed)


def _totals(train: Images, groups: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums of the levels per class, int32 (classes, H, W, C), and of their squares per channel, int64 (C,)."""
    shape = train.images.shape[1:]
    sums = torch.zeros(classes, *shape, dtype=torch.int32)
    squares = torch.zeros(shape[-1], dtype=torch.int64)
    parts = dist.batches(len(train), max(1, VALUES // math.prod(shape)))
    for number in dist.share(len(parts)):
        rows = slice(parts[number].start, parts[number].stop)
        levels = train.images[rows].int()
        sums.index_add_(0, groups[rows], levels)
        squares += levels.flatten(0, -2).square().sum(0, dtype=torch.int64)
    return dist.sum_(sums), dist.sum_(squares)


def _std(n: int, total: int, squares: int) -> float:
    """Standard deviation of n whole numbers by their sum and that of their squares, exact up to the last division."""
    return math.sqrt((n * squares - total**2) / (n * (n - 1)))


def _as_data(values: Tensor, train: Any) -> Tensor:
    """Values as the train split has them: uint8 levels, rounded half up and clamped, or float32."""
    return values.float() if train.kind == "points" else values.add(0.5).floor().clamp(0, 255).to(torch.uint8)
