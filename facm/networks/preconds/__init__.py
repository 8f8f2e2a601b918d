"""Preconditionings: what stands between a network G and the velocity F, one file each.

A new one is a file, a line here and a block `preconds.<name>` of params. Each makes of a backbone G a network
F(x, t, y, r, key) -> velocity like x, by the equations in its file; `none` is the backbone itself. Else its weights
bear the prefix `model.`, as EDMPrecond's do, so that the state dict of a published EDM loads strictly.

Physical time and condition are two things: coefficients depend on where x lies, t or, in the FM format, 2 - t; the
condition c_noise alone tells the formats apart. Both are functions of the time argument in [0, 2], and the tangent goes
through both. r, where there is one, is handed on as it is: no published network has one.
"""

import inspect
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from facm.runtime.names import refuse_unknown

PRECONDS = {"none": "plain", "simple_edm": "SimpleEDM", "edm": "EDM", "ddpm": "DDPM"}
GIVEN = ("self", "model", "mean", "std")


def build(
    name: str, constants: Mapping[str, Any], model: nn.Module, *, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """Make a velocity network of a backbone.

    Args:
        name: a key of PRECONDS.
        constants: the block `preconds.<name>`; a constant that is left out has its default.
        model: the backbone G.
        mean: per channel, of the latents before they were normalised.
        std: likewise.

    Raises:
        ValueError: unknown name or constant, a value out of range, statistics that do not fit; it names the place.
    """
    check(name, constants)
    precond = _of(name)
    statistics = {"mean": mean, "std": std}
    taken = inspect.signature(precond).parameters
    network: nn.Module = precond(model, **constants, **{k: v for k, v in statistics.items() if k in taken})
    return network


def check(name: str, constants: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the place, for an unknown name or constant, or a constant that is no number above 0."""
    refuse_unknown([name], PRECONDS, "params.yaml, backbone.precond")
    place = f"params.yaml, preconds.{name}"
    refuse_unknown(constants, defaults(name), place)
    for key, value in constants.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not value > 0:
            raise ValueError(f"{place}.{key}: must be a number above 0, got {value!r}")
        if isinstance(defaults(name)[key], int) and not isinstance(value, int):
            raise ValueError(f"{place}.{key}: must be a whole number, got {value!r}")


def defaults(name: str) -> dict[str, Any]:
    """The constants of a preconditioning and their defaults."""
    parameters = inspect.signature(_of(name)).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in GIVEN}


def _of(name: str) -> typing.Any:
    return getattr(import_module(f"{__name__}.{name}"), PRECONDS[name])
