"""Whether foreign weights are those of a network, name by name and shape by shape; every difference is told."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from facm.convert.pickles import ForeignError
from facm.networks import backbones
from facm.networks.checkpoint import Config

RECOMPUTABLE = ("pos_embed", "feat_rope.", "model.pos_embed")
"""Buffers that follow from the sizes, and that a file may lack; `model.` is the network within a preconditioning."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what weights are published in

Layout = tuple[str, ...]  # a word per axis, such as ("hidden", "channels", "patch", "patch")


def refuse_misshapen(weights: Mapping[str, Tensor], layouts: Mapping[str, Layout], path: Path) -> None:
    """Raise ForeignError where a weight from which sizes are read has other axes, or none of some length.

    Args:
        weights: of the file; what it lacks is not looked at.
        layouts: by name.
        path: for messages.
    """
    wrong = [
        f"\n  {name}: {tuple(weights[name].shape)}, needed ({', '.join(layout)}), each at least 1"
        for name, layout in layouts.items()
        if name in weights and (weights[name].ndim != len(layout) or 0 in weights[name].shape)
    ]
    if wrong:
        raise ForeignError(
            f"{path} has weights of another shape, from which sizes would be read: fetch it again, or choose another "
            f"--from (in params.yaml: imported.format):{''.join(wrong)}"
        )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and of FLOATS."""
    return tensor.dtype in FLOATS and tensor.layout == torch.strided


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
        ForeignError: every missing, unexpected and mis-shaped name, and what is not dense or not of FLOATS; or no
            network has such constants.
    """
    try:
        with torch.device("meta"):
            network = config.build()
    except ValueError as error:
        raise ForeignError(f"{path} is of no network that can be built: {error}") from None
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    follows = [name for name, _ in network.named_buffers() if name.startswith(RECOMPUTABLE)]
    lacking = [name for name in expected if name not in weights and name in follows]
    missing = [name for name in expected if name not in weights and name not in lacking]
    unexpected = [name for name in weights if name not in expected]
    shapes = [
        f"{name}: {tuple(weights[name].shape)}, needed {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    kinds = [f"{name}: {_kind(weights[name])}" for name in expected if name in weights and not _usable(weights[name])]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another kind": kinds}
    if any(found.values()):
        told = "".join(f"\n  {what}: {name}" for what, names in found.items() for name in names)
        raise ForeignError(
            f"{path} does not fit {config.backbone} with {config.constants}, shape {tuple(config.shape)}, "
            f"{config.num_classes} classes; set what differs with --set NAME=VALUE (in params.yaml: "
            f"backbones.{config.backbone}), or choose another --from:{told}"
        )
    return list(expected), lacking


def _usable(tensor: Tensor) -> bool:
    return is_plain(tensor) and not tensor.is_meta


def _kind(tensor: Tensor) -> str:
    """What a tensor is that cannot be a weight, and what it should be."""
    is_, names = f"{tensor.dtype}, {tensor.layout}".replace("torch.", ""), (str(d).split(".")[1] for d in FLOATS)
    empty = ", without values" if tensor.is_meta else ""
    return f"{is_}{empty}; needed one of {', '.join(names)}, strided (dense)"


def _buffers(config: Config) -> dict[str, Tensor]:
    """The network's buffers; they do not depend on its depth, so that it is made with one block."""
    constants = backbones.resolve(config.backbone, config.constants)
    shallow = {name: 1 for name in ("depth", "encoder_depth") if name in constants}
    network: nn.Module = replace(config, constants=constants | shallow).build()
    return dict(network.named_buffers())
