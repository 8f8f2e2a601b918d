"""Training objectives, one file each; a new one is a file, a line here and a block of params.

An objective is a frozen dataclass, a subclass of `facm.flow.Objective`, whose fields are its paper's constants, with
their ranges as annotations (facm/runtime/ranges.py), which `check_fields` checks. Fields called as in SHARED come from
`distill` in params.yaml, all others from `objectives.<name>`.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from facm.flow.interface import Objective
from facm.runtime import ranges
from facm.runtime.names import refuse_unknown
from facm.runtime.registry import Registry

OBJECTIVES = Registry(
    __name__,
    "params.yaml, distill.objective",
    cd="CD",
    ect="ECT",
    facm="FACM",
    fm="FM",
    ict="ICT",
    imeanflow="IMeanFlow",
    imm="IMM",
    meanflow="MeanFlow",
    scm="SCM",
    shortcut="Shortcut",
    tract="TRACT",
)
SHARED = ("conditioning", "alpha", "beta", "p")


def build(name: str, constants: Mapping[str, Any], shared: Mapping[str, Any]) -> Objective:
    """Make the objective called `name`.

    Args:
        name: a key of OBJECTIVES.
        constants: the block `objectives.<name>`, complete.
        shared: `distill`'s conditioning, alpha, beta, p; an objective takes those that it has, see `ignored`.

    Raises:
        ValueError: unknown name, unknown or missing constant, or a value that breaks its rule.
        TypeError: see `load`.
    """
    place = f"params.yaml, objectives.{name}"
    mine = field_names(name)
    own = [field for field in mine if field not in SHARED]
    for key in constants:
        if key in SHARED:
            raise ValueError(f"{place}: '{key}' stands under distill, not here")
    refuse_unknown(constants, own, place)
    refuse_unknown(shared, SHARED, "params.yaml, distill")
    for key in own:
        if key not in constants:
            raise ValueError(f"{place}: '{key}' is missing; presets/base.yaml has its default")
    objective: Objective = load(name)(**constants, **{key: value for key, value in shared.items() if key in mine})
    return objective


def ignored(name: str) -> tuple[str, ...]:
    """The shared fields that this objective has no use for, such as alpha of one without relaxation."""
    mine = field_names(name)
    return tuple(key for key in SHARED if key not in mine)


def load(name: str) -> Any:
    """The objective's class, imported only now.

    Raises:
        ValueError: unknown name.
        TypeError: the class is no `Objective`.
    """
    found = OBJECTIVES.load(name)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise TypeError(
            f"facm/objectives/{name}.py: {OBJECTIVES[name]} must be a subclass of Objective, which has the defaults of "
            f"all that an objective may leave out: from facm.flow import Objective; class {OBJECTIVES[name]}(Objective)"
        )
    return found


def field_names(name: str) -> list[str]:
    """The fields of an objective."""
    return [field.name for field in fields(load(name))]


def check_fields(objective: Any) -> None:
    """Raise ValueError for the first field of an objective that its annotation forbids; for `__post_init__`."""
    name = type(objective).__module__.rpartition(".")[2]
    ranges.check_fields(objective, lambda field: f"{'distill' if field in SHARED else f'objectives.{name}'}.{field}")


def __getattr__(name: str) -> Any:
    if name in ("check_number", "check_choice"):  # what an objective of a user's own may still import
        raise ImportError(
            f"facm.objectives.{name} is gone: annotate the field (`gap: Fraction = 0.05`, facm/runtime/ranges.py) and "
            "call check_fields(self) in __post_init__, see docs/objective.md"
        )
    raise AttributeError(f"module 'facm.objectives' has no attribute '{name}'")
