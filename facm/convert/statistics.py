"""`latents_stats.pt` of LightningDiT and FACM: {'mean', 'std'}, each (1, C, 1, 1), with which latents are normalised.

z is trained on as (z - mean) / std. A network means nothing without them, so a checkpoint folder of ours holds them.
"""

from pathlib import Path

import torch

from facm.convert import pickles
from facm.convert.pickles import ForeignError
from facm.files import whole

NAMES = ("mean", "std")


def read(path: Path) -> tuple[list[float], list[float]]:
    """Mean and std per channel.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignError: it holds something else, or a std that is not above 0.
    """
    content = pickles.read(path)
    if not isinstance(content, dict) or not set(NAMES) <= set(content):
        raise ForeignError(f"{path} holds no 'mean' and 'std': it must be the latents_stats.pt of the checkpoint")
    mean, std = (torch.as_tensor(content[name]).double().flatten().tolist() for name in NAMES)
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise ForeignError(f"{path}: {len(mean)} means, {len(std)} stds, which must be as many and above 0")
    return mean, std


def write(path: Path, mean: list[float], std: list[float]) -> None:
    """The authors' file of these, float32 (1, C, 1, 1)."""
    stats = {name: torch.tensor(values).view(1, -1, 1, 1) for name, values in zip(NAMES, (mean, std), strict=True)}
    with whole(path) as file:
        torch.save(stats, file)
