"""Ranges as annotations: what is taken, and the one form in which everything else is refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from facm.runtime.ranges import Count, Fraction, OneOf, ParamsError, Positive, Range, check_fields, checked

PASSED = [
    (3, Count, 3),
    (1, Positive, 1.0),
    (None, Positive | None, None),
    ([1, 2], tuple[Count, ...], (1, 2)),
    ([], Sequence[Count], ()),
    ([0, 1], Fraction | Sequence[Fraction], (0.0, 1.0)),
    ("cos", Annotated[str, OneOf({"one": 1, "cos": 2})], "cos"),
]
REFUSED = [
    (0, Count, "a.b: 0 is outside [1, inf)"),
    (0.0, Positive | None, "a.b: 0.0 is outside (0, inf) or null"),
    (1.5, Fraction, "a.b: 1.5 is outside [0, 1]"),
    (float("nan"), Fraction, "a.b: must be a finite number, got nan"),
    (True, Count, "a.b: must be a whole number, got True"),
    (2.0, Count, "a.b: must be a whole number, got 2.0 (write 2)"),
    ("9", Count | None, "a.b: must be a whole number or null, got '9' (in quotes it is text: leave them out)"),
    ([1, 0], Sequence[Count], "a.b[1]: 0 is outside [1, inf)"),
    ([], tuple[Count, ...], "a.b: must be a list with at least one entry, got []"),
    ([1], tuple[Count, Count], "a.b: must have 2 entries, got [1]"),
    ("big", Fraction | Sequence[Fraction], "a.b: must be a number or a list, got 'big'"),
    ("coz", Annotated[str, OneOf(("one", "cos"))], "a.b: 'coz' is not one of one, cos (did you mean 'cos'?)"),
    (1, Literal["euler", "heun"], "a.b: 1 is not one of euler, heun"),
]


@pytest.mark.parametrize(("value", "kind", "converted"), PASSED, ids=str)
def test_what_fits_is_taken_as_its_type(value: Any, kind: Any, converted: Any) -> None:
    found = checked(value, kind, "a.b")
    assert found == converted and type(found) is type(converted)


@pytest.mark.parametrize(("value", "kind", "message"), REFUSED, ids=str)
def test_what_does_not_fit_is_refused_with_place_value_and_rule(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(ParamsError) as refused:
        checked(value, kind, "a.b")
    assert str(refused.value) == f"params.yaml, {message}"


def test_a_dataclass_checks_its_fields_and_keeps_them_as_they_are() -> None:
    @dataclass(frozen=True)
    class Constants:
        q: Annotated[float, Range(low=1, exclusive_low=True)] = 2

        def __post_init__(self) -> None:
            check_fields(self, "objectives.mine.{}".format)

    assert type(Constants().q) is int
    with pytest.raises(ParamsError, match=r"params.yaml, objectives.mine.q: 1 is outside \(1, inf\)"):
        Constants(q=1)
