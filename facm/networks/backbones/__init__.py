"""Networks F(x, t, y, r=None) -> like x, one file each; a new one is a file, a line here and a block of params.

A backbone is a plain nn.Module whose keyword arguments are the constants of its block `backbones.<name>` and `shape`,
`num_classes`, `auxiliary`, `dropout`. It uses plain operations (see transformer.py), so that it runs on dual numbers.
Its class may have `SIZES`, what `variant` in its block stands for, and `STUDENT`, constants that a student has besides.
"""

import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from facm.runtime.names import refuse_unknown

BACKBONES = {
    "ddpmpp": "DDPMpp",
    "dit": "DiT",
    "lightningdit": "LightningDiT",
    "mlp": "MLP",
    "repa": "REPA",
    "sit": "SiT",
}
POINTS = ("mlp",)  # which of them take points (B, D)
GIVEN = ("self", "shape", "num_classes", "auxiliary", "dropout")
NAMED = {  # types of constants: one, several
    bool: ("true or false", "true or false"),
    int: ("a whole number of at least 1", "whole numbers of at least 1"),
    float: ("a number", "numbers"),
    types.NoneType: ("null", "nulls"),
}
BY_SIZE = ("patch_size", "hidden", "depth", "heads")


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
        constants: the block `backbones.<name>`, see `resolve`; a constant that is left out has the class's default.
        shape: of one sample, (C, H, W) or (D,).
        num_classes: number of classes, the null label comes on top; 0: unconditional.
        auxiliary: the network takes a second time r.
        dropout: probability of feature dropout.

    Raises:
        ValueError: unknown name or constant, missing constant, wrong type, sizes that do not fit; it names the place.
    """
    network, constants = load_class(name), refuse_constants(name, constants)
    return network(**constants, shape=tuple(shape), num_classes=num_classes, auxiliary=auxiliary, dropout=dropout)


def refuse_constants(name: str, constants: Mapping[str, Any]) -> dict[str, Any]:
    """What can be told of constants before there is a shape; returns them as `resolve` does.

    Args:
        name, constants: see `build`.

    Raises:
        ValueError: unknown name, variant or constant, missing constant, or one of a wrong type; it names the place.
    """
    place, network = f"params.yaml, backbones.{name}", load_class(name)
    constants = resolve(name, constants)
    parameters = {k: p for k, p in inspect.signature(network).parameters.items() if k not in GIVEN}
    refuse_unknown(constants, parameters, place)
    hints = typing.get_type_hints(network.__init__)
    for key, parameter in parameters.items():
        if key in constants:
            refuse_type(constants[key], hints[key], f"{place}.{key}")
        elif parameter.default is parameter.empty:
            raise ValueError(f"{place}: '{key}' is missing; presets/base.yaml has its default")
    return constants


def resolve(name: str, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Constants with the numbers that `variant` stands for in its place, and without nulls there.

    Args:
        name: a key of BACKBONES.
        constants: the block `backbones.<name>`; `variant` and BY_SIZE may be null.

    Raises:
        ValueError: unknown name or variant, or a number that contradicts the variant.
    """
    sizes, place = getattr(load_class(name), "SIZES", None), f"params.yaml, backbones.{name}"
    if sizes is None:
        return dict(constants)
    variant = constants.get("variant")
    given = {k: v for k, v in constants.items() if k != "variant" and not (k in BY_SIZE and v is None)}
    if variant is None:
        return given
    refuse_unknown([variant], sizes, f"{place}.variant")
    for key, value in sizes[variant].items():
        if given.get(key, value) != value:
            raise ValueError(
                f"{place}: variant {variant} has {key} {value}, but {key} is {given[key]!r}: set {key} to null, or "
                f"variant to null and {', '.join(BY_SIZE)} to numbers"
            )
    return sizes[variant] | given


def of_student(name: str, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Constants of the same network where it is no longer pretrained; raises ValueError for an unknown name."""
    return {**constants, **getattr(load_class(name), "STUDENT", {})}


def load_class(name: str) -> type[nn.Module]:
    """The class of a network; raises ValueError for an unknown name."""
    refuse_unknown([name], BACKBONES, "params.yaml, backbone.name")
    network: type[nn.Module] = getattr(import_module(f"{__name__}.{name}"), BACKBONES[name])
    return network


def refuse_type(value: Any, kind: Any, place: str) -> None:
    """Raise ValueError unless a constant is of its declared type; whole numbers are counts, from 1 on."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if not any(_is(value, one) for one in kinds):
        raise ValueError(f"{place}: must be {', or '.join(map(_described, kinds))}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: must be finite, got {value!r}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of one of the types that constants have."""
    if typing.get_origin(kind) is Sequence:
        return isinstance(value, list | tuple) and all(_is(entry, typing.get_args(kind)[0]) for entry in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    """What such a type is called."""
    if typing.get_origin(kind) is Sequence:
        return f"a list of {NAMED[typing.get_args(kind)[0]][1]}"
    return NAMED[kind][0]
