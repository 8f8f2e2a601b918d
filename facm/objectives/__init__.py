"""Training objectives, one file each; a new one is a file, a line here and a block of params.

An objective is a frozen dataclass, a subclass of `facm.flow.Objective`, whose fields are its paper's constants: those
called as in SHARED come from `distill` in params.yaml, all others from `objectives.<name>`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from facm.flow.interface import Objective
from facm.runtime.names import hint, refuse_unknown

OBJECTIVES = {
    "cd": "CD",
    "ect": "ECT",
    "facm": "FACM",
    "fm": "FM",
    "ict": "ICT",
    "imeanflow": "IMeanFlow",
    "imm": "IMM",
    "meanflow": "MeanFlow",
    "scm": "SCM",
    "shortcut": "Shortcut",
    "tract": "TRACT",
}
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
    refuse_unknown([name], OBJECTIVES, "params.yaml, distill.objective")
    found = getattr(import_module(f"{__name__}.{name}"), OBJECTIVES[name])
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise TypeError(
            f"facm/objectives/{name}.py: {OBJECTIVES[name]} must be a subclass of Objective, which has the defaults of "
            f"all that an objective may leave out: from facm.flow import Objective; class {OBJECTIVES[name]}(Objective)"
        )
    return found


def field_names(name: str) -> list[str]:
    """The fields of an objective."""
    return [field.name for field in fields(load(name))]


def check_number(
    value: Any, place: str, low: float, high: float = float("inf"), *, open_low: bool = False, whole: bool = False
) -> None:
    """Raise ValueError unless `value` is a (`whole`) number in [low, high], or in (low, high] with `open_low`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(value, str) else ""
        raise ValueError(f"params.yaml, {place}: must be a number, got {value!r}{hint}")
    if not (low < value if open_low else low <= value) or not value <= high:
        rule = f"{'above' if open_low else 'at least'} {low:g}" + (
            "" if high == float("inf") else f", at most {high:g}"
        )
        raise ValueError(f"params.yaml, {place}: {value!r} must be {rule}")
    if whole and not isinstance(value, int):
        raise ValueError(f"params.yaml, {place}: {value!r} must be a whole number")


def check_choice(value: Any, place: str, known: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is one of `known`."""
    known = list(known)
    if not any(value is k or (isinstance(k, str) and value == k) for k in known):
        names = ", ".join(map(str, known))
        raise ValueError(f"params.yaml, {place}: {value!r} is not one of {names}{hint(value, known)}")
