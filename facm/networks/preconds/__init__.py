"""Preconditionings: what stands between a network G and the velocity F, one file each.

A new one is a file, a line here and a block `preconds.<name>` of params. Each makes of a backbone G a network
F(x, t, y, r, key) -> velocity like x, by the equations in its file; `none` is the backbone itself. Else its weights
bear the prefix `model.`, as EDMPrecond's do, so that the state dict of a published EDM loads strictly.

Physical time and condition are two things: coefficients depend on where x lies, t or, in the FM format, 2 - t; the
condition c_noise alone tells the formats apart. Both are functions of the time argument in [0, 2], and the tangent goes
through both. r, where there is one, is handed on as it is: no published network has one.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from facm.runtime.names import refuse_unknown
from facm.runtime.ranges import checked
from facm.runtime.registry import Registry

PRECONDS = Registry(
    __name__, "params.yaml, backbone.precond", none="plain", simple_edm="SimpleEDM", edm="EDM", ddpm="DDPM"
)
GIVEN = ("model", "mean", "std")


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
    precond = PRECONDS.load(name)
    statistics = {"mean": mean, "std": std}
    taken = inspect.signature(precond).parameters
    network: nn.Module = precond(model, **constants, **{k: v for k, v in statistics.items() if k in taken})
    return network


def check(name: str, constants: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the place, for an unknown name or constant, or a value that its annotation forbids."""
    refuse_unknown(constants, kinds(name), f"params.yaml, preconds.{name}")
    for key, value in constants.items():
        checked(value, kinds(name)[key], f"preconds.{name}.{key}")


def kinds(name: str) -> dict[str, Any]:
    """The constants of a preconditioning and what they may be."""
    return {key: parameter.annotation for key, parameter in _parameters(name).items()}


def defaults(name: str) -> dict[str, Any]:
    """The constants of a preconditioning and their defaults."""
    return {key: parameter.default for key, parameter in _parameters(name).items()}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(PRECONDS.load(name), eval_str=True).parameters
    return {key: parameter for key, parameter in parameters.items() if key not in GIVEN}
