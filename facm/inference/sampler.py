"""The sampler of a network: what params.yaml or a caller says, and what the network is, made one."""

from typing import Any

from facm import samplers
from facm.runtime.params import Sample


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
        ValueError: as `facm.samplers.build`; guidance of a student, no length, an NFE that the sampler cannot have or
            that guidance makes ambiguous.
    """
    sampler = samplers.SAMPLERS.load(name)
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
    taken = samplers.field_names(name)
    of_network = {"conditioning": conditioning, "condition": condition}
    return samplers.build(name, **given, **{key: value for key, value in of_network.items() if key in taken})


def fields_for(sample: Sample, nfe: int) -> dict[str, Any]:
    """What the block `sample` says about the sampler of one NFE: a grid of that length, where there is one, else nfe.

    Raises:
        ValueError: an unknown sampler.
    """
    if samplers.length(sample.sampler)[0] == "t_grid":
        return {"nfe": nfe, "t_grid": {len(grid): grid for grid in sample.t_grid or ()}.get(nfe)}
    return {"nfe": nfe} | ({} if sample.sampler in ("anchored", "edm") else {"shift": sample.shift})
