"""A small residual network that tells the classes of small coloured images; its 96 pooled features span the space of
the distances on images for which no published network is at hand.

It is trained in the pipeline, ten epochs: about a minute on one core for five thousand images, seconds on a GPU for
CIFAR-10. Its Fréchet distance is called `fd`, and two of them, with different seeds, have different scales. Models
without classes are measured by it as well: it needs a dataset whose images have labels.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from facm.data.images.images import Images
from facm.data.images.levels import from_levels
from facm.networks import precision
from facm.runtime import dist
from facm.runtime.files import load_tensors, save_tensors
from facm.runtime.log import progress

EPOCHS, BATCH_SIZE, LR, WEIGHT_DECAY = 10, 128, 4e-3, 5e-2
WARMUP, SMOOTHING = 0.1, 0.1  # share of the steps; of the labels
WIDTHS = (24, 48, 96)  # channels of the levels; each level but the first halves the sides
GRID = 16  # positions per side behind the first convolution, about
SHIFT = 8  # an image is shifted by up to a SHIFT-th of its side
SIDES = (8, 256)
BYTES = 2**30  # of images, at most: they are held in memory


class Block(nn.Module):
    """x + two convolutions of it, each behind a norm; (B, C, H, W) -> (B, C', H/stride, W/stride)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.norm0, self.norm1 = nn.BatchNorm2d(channels), nn.BatchNorm2d(width)
        self.conv0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(channels, width, 1, stride, bias=False) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv0(functional.gelu(self.norm0(x)))
        h = self.conv1(functional.gelu(self.norm1(h)))
        added: Tensor = self.skip(x) + h
        return added


class PicturesCNN(nn.Module):
    """Three residual blocks and a linear layer, 0.2 M parameters; `stride` is that of the first convolution."""

    name: ClassVar[str] = "pictures_cnn"
    seeded: ClassVar[bool] = True
    batch: ClassVar[int] = 500
    widths: ClassVar[dict[str, int]] = {"features": WIDTHS[-1]}
    exact: ClassVar[None] = None

    def __init__(self, classes: int, stride: int) -> None:
        super().__init__()
        first, *_ = WIDTHS
        self.stem = nn.Conv2d(3, first, 2 * stride + 1, stride, stride, bias=False)
        channels = (first, *WIDTHS[:-1])
        strides = (1, *[2] * (len(WIDTHS) - 1))
        self.blocks = nn.Sequential(*map(Block, channels, WIDTHS, strides))
        self.norm, self.head = nn.BatchNorm2d(WIDTHS[-1]), nn.Linear(WIDTHS[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> means over the positions of the last activations, (B, 96)."""
        return functional.gelu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> logits (B, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits

    @classmethod
    def create(cls, train: Images | None, seed: int) -> "PicturesCNN":
        """Train on a train split, where this rank computes; on the CPU with one thread, so that a seed gives the same
        bits.

        Raises ValueError for no labels, or images that are not RGB, too small or too many.
        """
        images, labels, classes = _checked(train)
        device = dist.device()
        x, y = images.to(device), labels.to(device)
        with dist.one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls(classes, max(1, round(min(images.shape[1:3]) / GRID))).to(device).train()
            optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
            batches = list(_batches(len(x)))
            for step, rows in enumerate(progress(batches, len(batches), f"training {cls.name}, seed {seed}")):
                for group in optimizer.param_groups:
                    group["lr"] = LR * _rate(step / len(batches))
                chosen = rows.to(device)
                logits = network(augment(from_levels(x[chosen])))
                loss = functional.cross_entropy(logits, y[chosen], label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> "PicturesCNN":
        """From a safetensors file; FileNotFoundError, ValueError (damaged), RuntimeError (other weights)."""
        weights = load_tensors(path, f"remove {path.parent} and run `dvc repro`")
        network = cls(len(weights["head.bias"]), weights["stem.weight"].shape[-1] // 2)
        network.load_state_dict(weights)
        return network.eval().requires_grad_(False)

    def save(self, path: Path) -> dict[str, Any]:
        return save_tensors(path, self.state_dict())

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Images uint8 (N, H, W, 3) -> features float32 (N, 96), on the CPU."""
        device = self.head.weight.device
        with precision.full():
            return torch.cat([self.features(from_levels(chunk.to(device))).cpu() for chunk in images.split(self.batch)])

    def look(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.extract(images)}

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Features (N, 96) -> logits (N, classes) on the CPU."""
        logits: Tensor = self.head(features.to(self.head.weight.device)).cpu()
        return logits


def augment(x: Tensor) -> Tensor:
    """Mirror half of the images (B, 3, H, W) and shift each, its rim repeated; uses torch's generator of the CPU."""
    num, _, height, width = x.shape
    places = []
    for side in (height, width):
        shift = side // SHIFT
        moved = torch.arange(side) + torch.randint(-shift, shift + 1, (num, 1))
        places.append(moved.clamp(0, side - 1).to(x.device))
    rows, columns = places
    mirrored = (torch.rand(num, 1) < 0.5).to(x.device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    picture = torch.arange(num, device=x.device)[:, None, None]
    return x[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _checked(train: Images | None) -> tuple[Tensor, Tensor, int]:
    """Images, labels and number of classes of a train split that the network can be trained on."""
    place = "params.yaml, reference.features: 'pictures_cnn'"
    if train is None or train.labels is None:
        raise ValueError(
            f"{place} is trained to tell classes, and these pictures have none: put them into class folders, or set "
            "it to inception"
        )
    if train.num_classes < 2:
        raise ValueError(
            f"{place} is trained to tell classes, and these pictures are all of one: put them into two class folders "
            "or more, or set it to inception"
        )
    num, *shape = train.images.shape
    if train.kind != "pictures" or shape[-1] != 3 or not all(SIDES[0] <= side <= SIDES[1] for side in shape[:2]):
        raise ValueError(
            f"{place} needs pictures with sides of {SIDES[0]} to {SIDES[1]} and 3 channels, these are {tuple(shape)}: "
            "set it to digits_cnn (8, 8, 1), or inception"
        )
    if (size := math.prod(train.images.shape)) > BYTES:
        raise ValueError(
            f"{place} holds its pictures in memory, {BYTES / 2**30:g} GiB at most, and {num} of {tuple(shape)} are "
            f"{size / 2**30:.1f} GiB: set it to inception, or data.side to less"
        )
    return train.images[:], train.labels, train.num_classes


def _rate(done: float) -> float:
    """Of the peak learning rate: linear warm-up, then a cosine to zero."""
    return min(done / WARMUP, (1 + math.cos(math.pi * done)) / 2)


def _batches(num: int) -> Iterator[Tensor]:
    """Indices of each step's images: whole batches of a fresh permutation per epoch, or all of them as one."""
    size = min(BATCH_SIZE, num)
    for _ in range(EPOCHS):
        yield from torch.randperm(num)[: num // size * size].split(size)
