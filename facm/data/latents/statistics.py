"""By which mean and std latents are normalised, x1 = (z - mean)/std: `latents.normalise`.

| value | mean | std | for |
|---|---|---|---|
| channel | of each channel | of each channel | networks trained here |
| one | of each channel | one for all | preconds edm and ddpm, which know noise of one level |
| none | 0 | 1 | networks trained on the codec's output: SiT, DiT, REPA (SD-VAE), EDM (pixels) |
| given | those of latents.stats | likewise | networks that come with latents_stats.pt: LightningDiT, FACM |

A teacher and a student live in one space: with a published teacher (teacher.stage: import_teacher) it is the teacher's.
"""

from pathlib import Path

import torch
from torch import Tensor

from facm.runtime import files, foreign


def statistics(measured: dict[str, Tensor], how: str, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """`mean` and `std`, float32 (C,), by `how` (see above); ValueError for given ones of other channels."""
    mean, std = measured["mean"], measured["std"]
    if how == "none":
        return {"mean": torch.zeros_like(mean), "std": torch.ones_like(std)}
    if how == "one":
        return {"mean": mean, "std": std.double().square().mean().sqrt().float().expand_as(std).clone()}
    if how == "given" and given is not None:
        refuse_channels(given, len(mean))
        return given
    return measured


def refuse_channels(given: dict[str, Tensor], channels: int) -> None:
    """Raise ValueError where given statistics are of other channels than the latents."""
    if len(given["mean"]) != channels:
        raise ValueError(
            f"params.yaml, latents.stats: {len(given['mean'])} channels, the latents have {channels}: name the "
            "statistics that belong to latents.codec"
        )


def pinned(path: Path, expected: str | None) -> dict[str, Tensor]:
    """Statistics of a file whose content is pinned; raises as `read`, and ValueError for another content."""
    files.refuse_no_file(path, "params.yaml, latents.stats: ")
    files.pinned(path, expected or "", "params.yaml, latents.stats_sha256", "restore it, or pin this one")
    return read(path)


def read(path: Path) -> dict[str, Tensor]:
    """`mean` and `std`, float32 (C,), of a latents_stats.pt as LightningDiT and FACM write it: (1, C, 1, 1) each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: of another form, no real numbers, not finite, or a std that is not above 0.
    """
    found = foreign.read(path)
    if not isinstance(found, dict) or not all(isinstance(found.get(name), Tensor) for name in ("mean", "std")):
        raise ValueError(f"{path} must hold tensors 'mean' and 'std'")
    if any(found[name].is_complex() or found[name].dtype == torch.bool for name in ("mean", "std")):
        raise ValueError(f"{path} must hold real numbers, it has {found['mean'].dtype} and {found['std'].dtype}")
    values = {name: found[name].flatten().float().contiguous().clone() for name in ("mean", "std")}
    shapes = {tuple(found[name].shape) for name in values}
    if shapes != {(1, len(values["mean"]), 1, 1)} or not len(values["mean"]):
        raise ValueError(f"{path} must hold mean and std of one shape (1, C, 1, 1), it has {sorted(shapes)}")
    if not bool(torch.isfinite(values["mean"]).all() and torch.isfinite(values["std"]).all()):
        raise ValueError(f"{path}: statistics that are not finite")
    if float(values["std"].min()) <= 0:
        raise ValueError(f"{path}: a std of {float(values['std'].min())}, it must be above 0")
    return values
