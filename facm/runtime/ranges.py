"""What a value may be: types and ranges as annotations, and the one function that checks values against them.

Blocks of params.yaml, objectives, samplers, backbones and preconditionings all state their rules so:

    norm_q: Fraction = 0.5          ->   params.yaml, objectives.facm.norm_q: 1.5 is outside [0, 1]

Our own rather than pydantic, which a machine that only trains may lack.
"""

import math
import re
import types
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal

from facm.runtime.names import hint

PATH = "params.yaml"
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class ParamsError(ValueError):
    """A value in params.yaml that cannot be run; the message names value, rule and place."""


@dataclass(frozen=True)
class Range:
    """Closed interval; `exclusive_low` leaves the lower end out, `exclusive_high` the upper one."""

    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False
    exclusive_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.exclusive_low else value >= self.low)
        below = self.high is None or (value < self.high if self.exclusive_high else value <= self.high)
        return above and below

    def __str__(self) -> str:
        low = "-inf" if self.low is None else _number(self.low)
        high = "inf" if self.high is None else _number(self.high)
        opening = "(" if self.exclusive_low or self.low is None else "["
        return f"{opening}{low}, {high}{')' if self.exclusive_high or self.high is None else ']'}"


def _number(value: float) -> str:
    """A bound as it is read: whole numbers with all their digits."""
    return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class OneOf:
    """A name out of a table that is known when the module is loaded, where `Literal` cannot be written."""

    known: Collection[str]


Count = Annotated[int, Range(low=1)]
Steps = Annotated[int, Range(low=1, high=10_000)]  # of a sampler, or its evaluations: their grid is held in memory
Seed = Annotated[int, Range(low=0, high=2**63 - 1)]  # what numpy's Philox and torch's generators all take
Fraction = Annotated[float, Range(0.0, 1.0)]
Decay = Annotated[float, Range(0.0, 1.0, exclusive_high=True)]
Positive = Annotated[float, Range(low=0.0, exclusive_low=True)]
NonNegative = Annotated[float, Range(low=0.0)]
Scale = Annotated[float, Range(low=1.0)]
Conditioning = Annotated[str, OneOf(("plain", "expanded", "auxiliary"))]


def check_fields(owner: Any, place: Callable[[str], str]) -> None:
    """Raise ParamsError for the first field of a dataclass that is not what its annotation says.

    Args:
        owner: the instance, in its `__post_init__`.
        place: of a field in params.yaml, by its name.
    """
    hints = _hints(owner.__class__)
    for field in fields(owner):
        checked(getattr(owner, field.name), hints[field.name], place(field.name))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def checked(value: Any, kind: Any, where: str, *, null: str = "") -> Any:
    """A value as its declared type: a whole number where a float is meant becomes one, a list a tuple.

    Args:
        value: as YAML has it.
        kind: bool, int, float, str, Literal, tuple, Sequence, a union of them, or `Annotated` with Range or OneOf.
        where: its place in params.yaml.
        null: " or null" where that was possible, too, for the message.

    Raises:
        ParamsError: another type, or outside of the range; the message names value, rule and place.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated and isinstance(arguments[1], Range):
        converted = checked(value, arguments[0], where, null=null)
        if converted not in arguments[1]:
            raise ParamsError(f"{PATH}, {where}: {value!r} is outside {arguments[1]}{null}")
        return converted
    if origin is Literal or origin is Annotated:
        known = arguments if origin is Literal else tuple(arguments[1].known)
        if not isinstance(value, str) or value not in known:
            raise ParamsError(f"{PATH}, {where}: {value!r} is not one of {', '.join(known)}{hint(value, known)}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _of_several(value, arguments, where)
    if origin in (tuple, Sequence):
        return _list(value, arguments, where, null, empty=origin is Sequence)
    return _scalar(value, kind, where, null)


def _of_several(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """One of several types: null, or a list, or else the first that is no list."""
    if value is None and types.NoneType in kinds:
        return None
    null = " or null" if types.NoneType in kinds else ""
    lists = [kind for kind in kinds if typing.get_origin(kind) in (tuple, Sequence)]
    others = [kind for kind in kinds if kind not in (*lists, types.NoneType)]
    null += " or a list" if lists and others else ""
    fitting = lists if isinstance(value, list | tuple) else others
    return checked(value, (fitting or lists or others)[0], where, null=null)


def _list(value: Any, arguments: tuple[Any, ...], where: str, null: str, *, empty: bool) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not (value or empty):
        least = "" if empty else " with at least one entry"
        raise ParamsError(f"{PATH}, {where}: must be a list{least}{null}, got {value!r}")
    if empty or arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ParamsError(f"{PATH}, {where}: must have {len(arguments)} entries, got {value!r}")
    return tuple(checked(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))


def _scalar(value: Any, kind: type, where: str, null: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ParamsError(f"{PATH}, {where}: must be {KINDS[kind]}{null}, got {value!r}{_cure(value, kind)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParamsError(f"{PATH}, {where}: must be a finite number{null}, got {value}")
    return value


def _cure(value: Any, kind: type) -> str:
    """What to write in place of a value of another type, in brackets, where that can be told."""
    if kind is str and isinstance(value, bool | int | float):
        return " (write it in quotes)"
    if kind is int and isinstance(value, float) and value.is_integer():
        return f" (write {int(value)})"
    if kind in (int, float) and isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value.lower()):
        return " (in quotes it is text: leave them out)"
    return ""
