"""`latents_stats.pt` of LightningDiT and FACM: {'mean', 'std'}, each (1, C, 1, 1), with which latents are normalised.

z is trained on as (z - mean) / std. A network means nothing without them, so a checkpoint folder of ours holds them.
"""

from pathlib import Path
from typing import Any

import torch

from facm.convert import pickles
from facm.convert.pickles import ForeignError
from facm.runtime.files import atomic_write

NAMES = ("mean", "std")


def read(path: Path) -> tuple[list[float], list[float]]:
    """Mean and std per channel.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignError: it holds something else, values that are not finite, or a std that is not above 0.
    """
    content = pickles.read(path)
    if not isinstance(content, dict) or not set(NAMES) <= set(content):
        raise ForeignError(f"{path} holds no 'mean' and 'std': it must be the latents_stats.pt of the checkpoint")
    mean, std = (_numbers(content[name], name, path) for name in NAMES)
    if len(mean) != len(std) or not mean or not all(torch.tensor(std) > 0):
        raise ForeignError(f"{path}: {len(mean)} means, {len(std)} stds, which must be as many and above 0")
    return mean, std


def _numbers(value: Any, name: str, path: Path) -> list[float]:
    """A flat list; raises ForeignError unless it is one number per channel, all of them finite, also in float32."""
    try:
        given = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ForeignError(f"{path}: '{name}' is a {type(value).__name__}, not numbers: fetch it again") from None
    if given.is_complex() or given.dtype == torch.bool or given.numel() != max(given.shape, default=1):
        raise ForeignError(
            f"{path}: '{name}' is {given.dtype} {tuple(given.shape)}, it must be a real number per channel: fetch it "
            "again"
        )
    numbers = given.double().flatten()
    if not numbers.float().isfinite().all():
        raise ForeignError(f"{path}: '{name}' is not finite, {numbers.tolist()[:4]}: compute it again")
    return [float(number) for number in numbers]


def write(path: Path, mean: list[float], std: list[float]) -> None:
    """The authors' file of these, float32 (1, C, 1, 1)."""
    stats = {name: torch.tensor(values).view(1, -1, 1, 1) for name, values in zip(NAMES, (mean, std), strict=True)}
    with atomic_write(path) as file:
        torch.save(stats, file)
