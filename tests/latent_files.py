"""Shards of ready-made latents, as LightningDiT and FACM extract them."""

from pathlib import Path

import torch
from safetensors.torch import save_file


def shard(path: Path, num: int, first: int = 0, channels: int = 3, **changes: torch.Tensor | None) -> None:
    """One shard; a change of None leaves a tensor out."""
    generator = torch.Generator().manual_seed(first)
    tensors: dict[str, torch.Tensor | None] = {
        "latents": torch.randn(num, channels, 2, 2, generator=generator),
        "latents_flip": torch.randn(num, channels, 2, 2, generator=generator),
        "labels": torch.arange(first, first + num) % 7,
    }
    kept = {name: value for name, value in (tensors | changes).items() if value is not None}
    sizes = {"total_size": str(num), "dtype": "torch.float32", "device": "cpu"}
    save_file(kept, path, metadata=sizes)
