"""Samplers, one file each: from noise x0 at t = 0 to data x1 at t = 1.

A sampler is a frozen dataclass whose fields are its settings. `draws` says how many noises a picture needs, and
`sampler(F, noise, y, null) -> (x1, nfe)` makes it, with a float64 state around a network that is asked in float32.
A new one is a file and a line here.
"""

from dataclasses import fields as dataclass_fields
from typing import Any

from facm.flow.noise import noise
from facm.runtime.names import refuse_unknown
from facm.runtime.registry import Registry

__all__ = ["SAMPLERS", "build", "for_network", "length", "length_for", "noise"]

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
    sampler = SAMPLERS.load(name)
    refuse_unknown(fields, _field_names(sampler), f"sampler {name}")
    return sampler(**fields)


def for_network(name: str, conditioning: str, condition: str, *, nfe: int | None = None, **fields: Any) -> Any:
    """Make a sampler for a network, of a length given as an NFE.

    Args:
        name: a key of SAMPLERS.
        conditioning: the network's, one of `facm.flow.path.CONDITIONINGS`.
        condition: t | fm, how it is asked for its velocity, see `Euler`; `consistency` asks for none. fm is a
            student's, whose guidance is in its weights.
        nfe: function evaluations per picture; not read where `t_grid` or `steps`, the length itself, is given.
        fields: of the sampler; None stands for the default.

    Raises:
        ValueError: as `build`; guidance of a student, no length, an NFE that the sampler cannot have or that guidance
            makes ambiguous.
    """
    sampler = SAMPLERS.load(name)
    given = {key: value for key, value in fields.items() if value is not None}
    if condition == "fm" and given.get("w", 1) > 1:
        raise ValueError(
            f"sampler {name}: w {given['w']} asks for guidance, but a student's is in its weights (distill.w): "
            "leave w out, or draw from the teacher"
        )
    if sampler.length not in given:
        if nfe is None:
            raise ValueError(f"sampler {name}: needs nfe or {sampler.length}")
        if given.get("w", 1) > 1:
            raise ValueError(
                f"sampler {name}: a guided evaluation (w > 1) counts two, set {sampler.length} and not nfe"
            )
        given[sampler.length] = sampler.length_for(nfe)
    of_network = {"conditioning": conditioning, "condition": condition}
    return build(name, **given, **{key: of_network[key] for key in of_network if key in _field_names(sampler)})


def length(name: str) -> tuple[str, Any]:
    """The field that a sampler's length is given by, t_grid | nfe | steps, and its default.

    Raises:
        ValueError: unknown name.
    """
    sampler = SAMPLERS.load(name)
    return sampler.length, next(field.default for field in dataclass_fields(sampler) if field.name == sampler.length)


def length_for(name: str, nfe: int) -> Any:
    """The length of a sampler that takes `nfe` unguided evaluations.

    Raises:
        ValueError: unknown name, or an NFE that the sampler cannot have.
    """
    return SAMPLERS.load(name).length_for(nfe)


def _field_names(sampler: Any) -> list[str]:
    return [field.name for field in dataclass_fields(sampler)]
