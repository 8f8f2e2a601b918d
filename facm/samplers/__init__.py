"""Samplers, one file each: from noise x0 at t = 0 to data x1 at t = 1.

A sampler is a frozen dataclass whose fields are its settings. `draws` says how many noises a picture needs, and
`sampler(F, noise, y, null) -> (x1, nfe)` makes it, with a float64 state around a network that is asked in float32.
A new one is a file and a line here.
"""

from dataclasses import fields as fields_of
from typing import Any

from facm.flow.noise import noise
from facm.runtime.names import refuse_unknown
from facm.runtime.registry import Registry

__all__ = ["SAMPLERS", "build", "field_names", "length", "length_for", "noise"]

SAMPLERS = Registry(
    __name__,
    "params.yaml, sample.sampler or baseline.sampler",
    anchored="Anchored",
    consistency="Consistency",
    dpmpp="DPMpp",
    edm="EDM",
    euler="Euler",
    heun="Heun",
    jumps="Jumps",
)


def build(name: str, **fields: Any) -> Any:
    """Make a sampler from its fields.

    Raises:
        ValueError: unknown name or field, or a value that breaks its rule; the message names the place.
    """
    refuse_unknown(fields, field_names(name), f"sampler {name}")
    return SAMPLERS.load(name)(**fields)


def field_names(name: str) -> list[str]:
    """The fields of a sampler; raises ValueError for an unknown name."""
    return [field.name for field in fields_of(SAMPLERS.load(name))]


def length(name: str) -> tuple[str, Any]:
    """The field that a sampler's length is given by, t_grid | nfe | steps, and its default.

    Raises:
        ValueError: unknown name.
    """
    sampler = SAMPLERS.load(name)
    return sampler.length, next(field.default for field in fields_of(sampler) if field.name == sampler.length)


def length_for(name: str, nfe: int) -> Any:
    """The length of a sampler that takes `nfe` unguided evaluations.

    Raises:
        ValueError: unknown name, or an NFE that the sampler cannot have.
    """
    return SAMPLERS.load(name).length_for(nfe)
