"""A checkpoint folder of ours as a file that the authors' code loads: {'ema': state dict, '_extracted_from': text}.

That is the format of their released files, which test.py and train.py of ali-vilab/FACM read: tensors and plain values
only, buffers (`pos_embed`, `feat_rope.*`) among them, bit for bit what the folder holds.
"""

from pathlib import Path
from typing import Any

import torch

from facm.convert import statistics
from facm.convert.pickles import ForeignError
from facm.networks import checkpoint
from facm.networks.checkpoint import Config
from facm.runtime.files import atomic_write

TARGETS = ("facm",)


def export(folder: Path, out: Path, *, sigma_rel: float | None = None, stats: Path | None = None) -> dict[str, Any]:
    """Write the file, and beside it, where asked, latents_stats.pt.

    Args:
        folder: checkpoint folder of a LightningDiT.
        out: the .pt file.
        sigma_rel: post-hoc EMA length instead of the stored weights.
        stats: where to write the statistics that their code reads as cache/latents_stats.pt.

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
        statistics.write(stats, config.mean, config.std)
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
