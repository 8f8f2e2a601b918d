"""Networks F(x, t, y, r=None) -> like x, one file each; a new one is a file, a line here and a block of params.

A backbone is a plain nn.Module whose keyword arguments are the constants of its block `backbones.<name>` and `shape`,
`num_classes`, `auxiliary`, `dropout`. It uses plain operations (see lightningdit.py), so that it runs on dual numbers.
"""

import inspect
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from facm.names import refuse_unknown

BACKBONES = {"lightningdit": "LightningDiT", "mlp": "MLP", "ddpmpp": "DDPMpp"}
POINTS = ("mlp",)  # which of them take points (B, D)
GIVEN = ("self", "shape", "num_classes", "auxiliary", "dropout")


def build(
    name: str,
    constants: Mapping[str, Any],
    *,
    shape: Sequence[int],
    num_classes: int,
    auxiliary: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """Make a network with fresh weights.

    Args:
        name: a key of BACKBONES.
        constants: the block `backbones.<name>`; a constant that is left out has the class's default.
        shape: of one sample, (C, H, W) or (D,).
        num_classes: number of classes, the null label comes on top; 0: unconditional.
        auxiliary: the network takes a second time r.
        dropout: probability of feature dropout.

    Raises:
        ValueError: unknown name or constant, missing constant, wrong type, sizes that do not fit; it names the place.
    """
    refuse_unknown([name], BACKBONES, "params.yaml, backbone.name")
    place = f"params.yaml, backbones.{name}"
    network: type[nn.Module] = getattr(import_module(f"{__name__}.{name}"), BACKBONES[name])
    parameters = {k: p for k, p in inspect.signature(network).parameters.items() if k not in GIVEN}
    refuse_unknown(constants, parameters, place)
    types = typing.get_type_hints(network.__init__)
    for key, parameter in parameters.items():
        if key in constants:
            refuse_type(constants[key], types[key], f"{place}.{key}")
        elif parameter.default is parameter.empty:
            raise ValueError(f"{place}: '{key}' is missing; presets/base.yaml has its default")
    return network(**constants, shape=tuple(shape), num_classes=num_classes, auxiliary=auxiliary, dropout=dropout)


def refuse_type(value: Any, kind: Any, place: str) -> None:
    """Raise ValueError unless a constant is of its declared type; whole numbers are counts, from 1 on."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{place}: must be true or false, got {value!r}")
    if kind is int and not (number and isinstance(value, int) and value >= 1):
        raise ValueError(f"{place}: must be a whole number of at least 1, got {value!r}")
    if kind is float and not number:
        raise ValueError(f"{place}: must be a number, got {value!r}")
