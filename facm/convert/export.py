"""A checkpoint folder of ours as a file that the authors' code loads: {'ema': state dict, '_extracted_from': text}.

That is the format of their released files, which test.py and train.py of ali-vilab/FACM read: tensors and plain values
only, buffers (`pos_embed`, `feat_rope.*`) among them, bit for bit what the folder holds.
"""

from pathlib import Path
from typing import Any

import torch

from facm.networks import checkpoint
from facm.networks.checkpoint import Config
from facm.runtime import foreign
from facm.runtime.files import atomic_write
from facm.runtime.foreign import ForeignError

TARGETS = ("facm",)
STATISTICS = ("mean", "std")


def export(folder: Path, out: Path, *, sigma_rel: float | None = None, stats: Path | None = None) -> dict[str, Any]:
    """Write the file and, where asked, the latents_stats.pt that their code reads as cache/latents_stats.pt.

    Args:
        folder: checkpoint folder of a LightningDiT.
        sigma_rel: post-hoc EMA length instead of the stored weights.

    Returns:
        What their ldit/lightningdit.yaml must say, under `lightningdit`.

    Raises:
        facm.networks.checkpoint.CheckpointError: missing or damaged files.
        ForeignError: a network that their code does not have.
    """
    config = checkpoint.read_config(folder)
    _refuse_other(config, folder)
    network, _ = checkpoint.load(folder, sigma_rel)
    length = config.sigma_rel if sigma_rel is None else sigma_rel
    told = f"{config.kind} by {config.objective}, step {config.step}, sigma_rel {length}, sha256 {config.sha256}"
    with atomic_write(out) as file:
        torch.save({"ema": {k: v.contiguous() for k, v in network.state_dict().items()}, "_extracted_from": told}, file)
    if stats is not None:
        write_statistics(stats, config.mean, config.std)
    return settings(config)


def settings(config: Config) -> dict[str, Any]:
    """Their yaml's switches for the network of a description."""
    c = config.constants
    switches = {"use_qknorm": "qk_norm", "use_swiglu": "swiglu", "use_rope": "rope", "use_rmsnorm": "rms_norm"}
    return {
        "input_size": config.shape[1],
        "in_channels": config.shape[0],
        "num_classes": config.num_classes,
        "hidden_size, depth, num_heads, patch_size": [c["hidden"], c["depth"], c["heads"], c["patch_size"]],
        "mlp_ratio": c.get("mlp_ratio", 4.0),
        **{theirs: c.get(ours, True) for theirs, ours in switches.items()},
        "wo_shift": not c.get("shift", True),
        "learn_sigma": c.get("learn_sigma", False),
        "auxiliary_time_cond": config.auxiliary,
    }


def _refuse_other(config: Config, folder: Path) -> None:
    """Raise ForeignError for a network that the authors' LightningDiT is not."""
    c = config.constants
    rules = {
        f"backbone is {config.backbone}, not lightningdit": config.backbone != "lightningdit",
        f"precond is {config.precond}, not none": config.precond != "none",
        "it has no classes": config.num_classes == 0,
        "it has no null label, which theirs always has": not config.null_label,
        "it has no pos_embed, which theirs always adds": not c.get("pos_embed", True),
        "it has pixel_norm, which theirs has only after an edit": c.get("pixel_norm", False),
        f"latents of {config.shape[1]} x {config.shape[2]} are not square": config.shape[1] != config.shape[2],
    }
    broken = [rule for rule, holds in rules.items() if holds]
    if broken:
        raise ForeignError(f"{folder} cannot be given to the authors' code: {'; '.join(broken)}")


def read_statistics(path: Path) -> tuple[list[float], list[float]]:
    """Mean and std per channel of a `latents_stats.pt` of LightningDiT and FACM: {'mean', 'std'}, each (1, C, 1, 1).

    They train on (z - mean) / std; the network means nothing without them. Raises FileNotFoundError, or ForeignError
    where it holds something else, values that are not finite, or a std that is not above 0.
    """
    content = foreign.read(path)
    if not isinstance(content, dict) or not set(STATISTICS) <= set(content):
        raise ForeignError(f"{path} holds no 'mean' and 'std': it must be the latents_stats.pt of the checkpoint")
    mean, std = (_numbers(content[name], name, path) for name in STATISTICS)
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


def write_statistics(path: Path, mean: list[float], std: list[float]) -> None:
    """The authors' file of these, float32 (1, C, 1, 1)."""
    stats = {name: torch.tensor(values).view(1, -1, 1, 1) for name, values in zip(STATISTICS, (mean, std), strict=True)}
    with atomic_write(path) as file:
        torch.save(stats, file)
