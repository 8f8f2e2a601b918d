"""A small classifier of 8x8 digits; its 32 penultimate features span the space of the distances on digits.

It is trained in the pipeline (some 500 steps, seconds on one core) and has no published counterpart: its Fréchet
distance is called `fd`, and two of them, with different seeds, have different scales.
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
from facm.runtime import dist
from facm.runtime.files import load_tensors, save_tensors
from facm.runtime.log import progress

EPOCHS, BATCH_SIZE, LR, WEIGHT_DECAY = 25, 64, 2e-3, 1e-2
SMOOTHING, NOISE = 0.1, 0.2  # of the labels; std of the noise on pixels in [-1, 1]
SIDE, CLASSES, WIDTH, FEATURES = 8, 10, 24, 32


class DigitsCNN(nn.Module):
    """Three convolutions and two linear layers, 42 k parameters."""

    name: ClassVar[str] = "digits_cnn"
    seeded: ClassVar[bool] = True
    batch: ClassVar[int] = 500
    widths: ClassVar[dict[str, int]] = {"features": FEATURES}
    exact: ClassVar[None] = None

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * WIDTH * (SIDE // 2) ** 2, FEATURES),
            nn.GELU(),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, 1, 8, 8) in [-1, 1] -> logits (B, 10)."""
        logits: Tensor = self.head(self.body(x))
        return logits

    @classmethod
    def create(cls, train: Images, seed: int) -> "DigitsCNN":
        """Train on one CPU thread: the same seed gives the same weights. ValueError unless images are 8x8x1 in 10
        classes.
        """
        if train.images.shape[1:] != (SIDE, SIDE, 1) or train.labels is None or train.num_classes != CLASSES:
            raise ValueError(
                f"params.yaml, reference.features: 'digits_cnn' needs pictures (8, 8, 1) in 10 classes, but these are "
                f"{tuple(train.images.shape[1:])} in {train.num_classes}; set it to inception"
            )
        x, y = from_levels(train.images[:]), train.labels
        with dist.one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls().train()
            optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
            steps = EPOCHS * (len(x) // BATCH_SIZE)
            batches = progress(_batches(len(x)), steps, f"training {cls.name}, seed {seed}")
            for step, rows in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = LR * (1 + math.cos(math.pi * step / steps)) / 2
                loss = functional.cross_entropy(network(augment(x[rows])), y[rows], label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> "DigitsCNN":
        """From a safetensors file; FileNotFoundError, ValueError (damaged), RuntimeError (other weights)."""
        network = cls()
        network.load_state_dict(load_tensors(path, f"remove {path.parent} and run `dvc repro`"))
        return network.eval().requires_grad_(False)

    def save(self, path: Path) -> dict[str, Any]:
        return save_tensors(path, self.state_dict())

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Images uint8 (N, 8, 8, 1) -> features after the GELU, float32 (N, 32), on the CPU."""
        device = self.head.weight.device
        return torch.cat([self.body(from_levels(chunk.to(device))).cpu() for chunk in images.split(self.batch)])

    def look(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.extract(images)}

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Features (N, 32) -> logits (N, 10) on the CPU."""
        logits: Tensor = self.head(features.to(self.head.weight.device)).cpu()
        return logits


def augment(x: Tensor) -> Tensor:
    """Shift each image (B, 1, 8, 8) by up to a pixel in both directions and add noise; uses torch's generator."""
    rows, columns = torch.randint(0, 3, (2, len(x), 1)) + torch.arange(SIDE)
    padded = functional.pad(x, (1, 1, 1, 1), value=-1.0)
    picture = torch.arange(len(x))[:, None, None]
    shifted = padded[picture, 0, rows[:, :, None], columns[:, None, :]][:, None]
    return shifted + NOISE * torch.randn_like(x)


def _batches(num: int) -> Iterator[Tensor]:
    """Indices of each step's images: whole batches of a fresh permutation per epoch."""
    for _ in range(EPOCHS):
        yield from torch.randperm(num)[: num // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE)
