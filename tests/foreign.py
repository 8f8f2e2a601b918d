"""Files of exactly the published layouts, small, with random weights; nothing in them starts at zero."""

import argparse
from pathlib import Path
from typing import Any

import torch
from miniature import randomised
from oracle import golden
from torch import Tensor, nn

from facm import backbones


def training_file(path: Path, case: str = "expanded", prefix: str = "module.") -> Path:
    """FACM's training checkpoint: raw weights under DDP's prefix, two averages, settings as a Namespace."""
    averages = {0: golden(f"{case}/teacher/"), 1: golden(f"{case}/student/")}
    emas: dict[str, Tensor] = {}
    for number, weights in averages.items():
        emas |= {f"ema_models.{number}.initted": torch.tensor(True), f"ema_models.{number}.step": torch.tensor(7)}
        emas |= {f"ema_models.{number}.ema_model.{name}": tensor for name, tensor in weights.items()}
    model = {prefix + name: tensor + 1 for name, tensor in averages[1].items()}
    settings = {"opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4), "epoch": 3, "step": 7, "scheduler": {}}
    torch.save({"model": model, "emas": emas, **settings}, path)
    return path


def release_file(path: Path, weights: dict[str, Tensor]) -> Path:
    """FACM's released checkpoint."""
    torch.save({"ema": weights, "_extracted_from": "PostHocEMA"}, path)
    return path


def stats_file(path: Path, channels: int = 4) -> Path:
    """latents_stats.pt."""
    mean, std = torch.linspace(-0.3, 0.4, channels), torch.linspace(0.5, 2.0, channels)
    torch.save({"mean": mean.view(1, -1, 1, 1), "std": std.view(1, -1, 1, 1)}, path)
    return path


def network(name: str, seed: int = 0, **constants: Any) -> nn.Module:
    """A small network of ours with the authors' names and random weights, in eval mode."""
    sizes = {"patch_size": 2, "hidden": 32, "depth": 2, "heads": 2} | constants
    made = randomised(backbones.build(name, sizes, shape=(4, 8, 8), num_classes=5), seed)
    return made.eval().requires_grad_(False)


def inputs(seed: int = 3, size: tuple[int, ...] = (4, 8, 8), classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x_t (6, C, H, W), times strictly inside (0, 1), labels among which is the null label."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, *size, generator=generator)
    return x, torch.tensor([0.03, 0.2, 0.4, 0.6, 0.8, 0.97]), torch.tensor([0, 1, 2, 3, 4, classes])
