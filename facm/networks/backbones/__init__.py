"""Networks F(x, t, y, r=None) -> like x, one file each; a new one is a file, a line here and a block of params.

A backbone is a plain nn.Module whose keyword arguments are the constants of its block `backbones.<name>`, with their
ranges as annotations (facm/runtime/ranges.py), and `shape`, `num_classes`, `auxiliary`, `dropout`. It uses plain
operations (see transformer.py), so that it runs on dual numbers. Its class may have `SIZES`, what `variant` in its
block stands for, and `STUDENT`, constants that a student has besides.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from facm.runtime.names import refuse_unknown
from facm.runtime.ranges import checked
from facm.runtime.registry import Registry

BACKBONES = Registry(
    __name__,
    "params.yaml, backbone.name",
    ddpmpp="DDPMpp",
    dit="DiT",
    lightningdit="LightningDiT",
    mlp="MLP",
    repa="REPA",
    sit="SiT",
)
POINTS = ("mlp",)  # which of them take points (B, D)
GIVEN = ("self", "shape", "num_classes", "auxiliary", "dropout")
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
    network: type[nn.Module] = BACKBONES.load(name)
    given = {"shape": tuple(shape), "num_classes": num_classes, "auxiliary": auxiliary, "dropout": dropout}
    return network(**refuse_constants(name, constants), **given)


def refuse_constants(name: str, constants: Mapping[str, Any]) -> dict[str, Any]:
    """What can be told of constants before there is a shape; returns them as `resolve` does.

    Args:
        name, constants: see `build`.

    Raises:
        ValueError: unknown name, variant or constant, missing constant, or one of a wrong type; it names the place.
    """
    place, network = f"params.yaml, backbones.{name}", BACKBONES.load(name)
    constants = resolve(name, constants)
    parameters = {k: p for k, p in inspect.signature(network, eval_str=True).parameters.items() if k not in GIVEN}
    refuse_unknown(constants, parameters, place)
    for key, parameter in parameters.items():
        if key in constants:
            checked(constants[key], parameter.annotation, f"backbones.{name}.{key}")
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
    sizes, place = getattr(BACKBONES.load(name), "SIZES", None), f"params.yaml, backbones.{name}"
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
    return {**constants, **getattr(BACKBONES.load(name), "STUDENT", {})}
