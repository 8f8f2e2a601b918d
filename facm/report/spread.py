"""Runs that differ by their seeds only, as one: means and standard deviations."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

YARDSTICK = "reference.seed"  # of the network whose features are compared: figures of two do not average


@dataclass(frozen=True)
class Spread:
    """One figure over several runs.

    Attributes:
        mean: of those that have it.
        sd: sample standard deviation; None with one run.
        n: how many have it.
    """

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread | None":
        """Over the finite values; None where there are none."""
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        if not finite:
            return None
        return cls(statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else None, len(finite))

    def __str__(self) -> str:
        """`0.042 ± 0.003`, or the plain figure of one run."""
        return number(self.mean) if self.sd is None else f"{number(self.mean)} ± {number(self.sd)}"

    def ties(self, best: "Spread") -> bool:
        """Whether it differs from the best by no more than their pooled standard deviation; never so with one run."""
        if self.sd is None or best.sd is None:
            return False
        degrees = (self.n - 1, best.n - 1)
        pooled = math.sqrt((degrees[0] * self.sd**2 + degrees[1] * best.sd**2) / sum(degrees))
        return abs(self.mean - best.mean) <= pooled


def number(value: float) -> str:
    """Four significant digits, four decimals at most, without exponents where people write none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 5e-5 <= abs(value) < 1e6:
        return f"{value:.2g}"
    power = math.floor(math.log10(float(f"{abs(value):.3e}")))
    return f"{value:.{max(0, min(4, 3 - power))}f}"


def seedless(flat: dict[str, str]) -> dict[str, str]:
    """Params, by dotted names, without the seeds, but with that of the yardstick."""
    return {name: value for name, value in flat.items() if name == YARDSTICK or name.rsplit(".", 1)[-1] != "seed"}


def differing(runs: Sequence[dict[str, str]]) -> list[str]:
    """Names of the params that are not alike in all runs, or that one lacks; sorted."""
    names = {name for flat in runs for name in flat}
    return sorted(name for name in names if len({flat.get(name) for flat in runs}) > 1)


def flat(mapping: dict[str, Any], where: str = "") -> dict[str, str]:
    """Nested params by dotted names, values as YAML would show them."""
    found: dict[str, str] = {}
    for key, value in mapping.items():
        place = f"{where}.{key}" if where else str(key)
        found |= flat(value, place) if isinstance(value, dict) else {place: told(value)}
    return found


def told(value: Any) -> str:
    """A plain value as params.yaml has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(told, value))}]"
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
