"""Whether foreign weights are those of a network, name by name and shape by shape; every difference is told."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from facm import backbones
from facm.checkpoint import Config
from facm.convert.pickles import ForeignError

RECOMPUTABLE = ("pos_embed", "feat_rope.", "model.pos_embed")
"""Buffers that follow from the sizes, and that a file may lack; `model.` is the network within a preconditioning."""


def fit(weights: Mapping[str, Tensor], config: Config, path: Path) -> dict[str, Tensor]:
    """The weights as the network of `config` has them: float32, with buffers that the file lacks made anew.

    Raises:
        ForeignError: as `compare`, or names with values that are not finite.
    """
    expected, lacking = compare(weights, config, path)
    whole = {name: weights[name].to(torch.float32) for name in expected if name not in lacking}
    broken = [name for name, tensor in whole.items() if not tensor.isfinite().all()]
    if broken:
        raise ForeignError(f"{path} has values that are not finite in {', '.join(broken)}: fetch it again")
    return whole | ({name: tensor for name, tensor in _buffers(config).items() if name in lacking} if lacking else {})


def compare(weights: Mapping[str, Tensor], config: Config, path: Path) -> tuple[list[str], list[str]]:
    """Names that the network of `config` has, and those of them that may be and are missing.

    Raises:
        ForeignError: every missing, unexpected and mis-shaped name.
    """
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in config.build().state_dict().items()}
    lacking = [name for name in expected if name not in weights and name.startswith(RECOMPUTABLE)]
    missing = [name for name in expected if name not in weights and name not in lacking]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name}: {tuple(weights[name].shape)}, needed {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(found.values()):
        told = "".join(f"\n  {what}: {name}" for what, names in found.items() for name in names)
        raise ForeignError(
            f"{path} does not fit {config.backbone} with {config.constants}, shape {tuple(config.shape)}, "
            f"{config.num_classes} classes; set what differs with --set NAME=VALUE (in params.yaml: "
            f"backbones.{config.backbone}), or choose another --from:{told}"
        )
    return list(expected), lacking


def _buffers(config: Config) -> dict[str, Tensor]:
    """The network's buffers; they do not depend on its depth, so that it is made with one block."""
    constants = backbones.resolve(config.backbone, config.constants)
    shallow = {name: 1 for name in ("depth", "encoder_depth") if name in constants}
    network: nn.Module = replace(config, constants=constants | shallow).build()
    return dict(network.named_buffers())
