"""A run as the report sees it: its files, read when they are needed; runs that differ by seed as one group."""

import functools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import torch

from facm.inference.samples import Stored, load_samples
from facm.networks.features import FeatureNetwork, network_class
from facm.runtime import dist
from facm.runtime.files import load_record, load_tensors
from facm.runtime.params import mapping_of, read_text

CURVES = {"teacher": "metrics/teacher", "student": "metrics/distill"}
BLOCKS = {"backbones": "backbone.name", "preconds": "backbone.precond", "objectives": "distill.objective"}
OF_TEACHER = ("teacher", "baseline")
TEACHER = "data/teacher"  # whose samples, scores and curves the pipeline has
REFERENCE_SEED = "reference.seed"  # of the feature network: distances under two networks do not average


class Meta(TypedDict):
    """What data/reference/meta.json says that the report uses."""

    features: str
    copies_threshold: float | None


class Origin(Protocol):
    """Where a run's files are, by the pipeline's names for them."""

    @property
    def facts(self) -> dict[str, str]:
        """What is known about it beside its files, such as its commit."""

    @property
    def code(self) -> dict[str, str]:
        """Hashes of the code that made it, by path; empty where they are not known."""

    def path(self, name: str) -> Path | None:
        """A file to read; None where it is not available."""

    def names(self, folder: str) -> list[str]:
        """Files below a folder, relative to it, sorted; none where it is not available."""

    def missing(self) -> list[str]:
        """What was read and is not available, though the run has made it."""


@dataclass(frozen=True)
class Workspace:
    """The files as they lie in a folder, the repository's root.

    The stage knows no facts: a page that named the commit it is made for would never be the same. It knows no code
    either: dvc.lock is written after the last stage. And it sees no more than its dependencies, so that nothing else
    can reach the page.

    Attributes:
        root: the folder.
        facts, code: see Origin.
        within: files and folders that are seen; None: all.
    """

    root: Path = Path()
    facts: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    within: tuple[str, ...] | None = None

    def path(self, name: str) -> Path | None:
        """See Origin."""
        return self.root / name if self._seen(name) and (self.root / name).is_file() else None

    def names(self, folder: str) -> list[str]:
        """See Origin."""
        below = self.root / folder
        if not self._seen(folder):
            return []
        return sorted(str(path.relative_to(below)) for path in below.rglob("*") if path.is_file())

    def missing(self) -> list[str]:
        """Nothing: DVC checks the stage's dependencies."""
        return []

    def _seen(self, name: str) -> bool:
        return self.within is None or any(Path(name).is_relative_to(path) for path in self.within)


@dataclass(frozen=True)
class Curve:
    """One metric of a training over its steps."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: what the user calls it.
        origin: where its files are.
        params: its params.yaml.
        result: its metrics/evaluate.json, of `Run.of` without a teacher that is not the student's.
    """

    name: str
    origin: Origin
    params: dict[str, Any]
    result: dict[str, Any]

    @classmethod
    def of(cls, name: str, origin: Origin) -> "Run":
        """Read what every report needs.

        Raises:
            ValueError: there are no scores, or they or the params are damaged.
        """
        texts = {}
        for file in ("params.yaml", "metrics/evaluate.json"):
            path = origin.path(file)
            if path is None:
                raise ValueError(f"{name} has no {file}: was `dvc repro` run, and the result committed?")
            texts[file] = read_text(path)
        try:
            result = json.loads(texts["metrics/evaluate.json"])
            if not [int(nfe.removeprefix("nfe")) for nfe in result["student"]]:
                raise ValueError("no student's scores")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name}: metrics/evaluate.json is damaged ({error}): run `dvc repro`") from None
        run = cls(name, origin, mapping_of(texts["params.yaml"], f"{name}: params.yaml"), result)
        if run.apart:
            result.pop("teacher", None)
        return run

    @functools.cached_property
    def used(self) -> dict[str, str]:
        """Params that its result depends on, by dotted names."""
        return flat(used(self.params))

    @property
    def key(self) -> tuple[Any, ...]:
        """What runs have in common that differ by seeds only."""
        return tuple(sorted(seedless(self.used).items())), tuple(sorted(self.origin.code.items()))

    @property
    def scratch(self) -> bool:
        """Whether it has no teacher."""
        return bool(self.params["distill"]["mode"] == "scratch")

    @property
    def teacher(self) -> str:
        """The checkpoint that the student was distilled from."""
        return str(self.params["distill"].get("teacher", TEACHER))

    @property
    def apart(self) -> str:
        """A sentence where the student was distilled from another network than the pipeline's teacher, else nothing."""
        if self.scratch or self.teacher == TEACHER:
            return ""
        return f"Distilled from {self.teacher}: {TEACHER}, another network, is left out."

    @property
    def nfes(self) -> list[int]:
        """Numbers of function evaluations at which the student was scored, ascending."""
        return sorted(int(name.removeprefix("nfe")) for name in self.result["student"])

    def samples(self, nfe: int | None) -> tuple[Stored, np.ndarray | None] | None:
        """The student's samples at an NFE, or the teacher's (None), with labels; None where they are not available."""
        name = "data/baseline/teacher.npz" if nfe is None else f"data/samples/nfe{nfe}.npz"
        path = None if nfe is None and (self.scratch or self.apart) else self.origin.path(name)
        return None if path is None else load_samples(path)

    def json(self, name: str, form: Any = dict[str, Any]) -> Any:
        """A JSON file of a form (`files.refuse_other_form`); None where it is not available."""
        path = self.origin.path(name)
        return None if path is None else load_record(path, form, "run `dvc repro`")

    @property
    def meta(self) -> Meta | None:
        """data/reference/meta.json; None where it is not available."""
        found: Meta | None = self.json("data/reference/meta.json", Meta)
        return found

    def curves(self) -> dict[str, dict[str, Curve]]:
        """Of each training, by metric."""
        found: dict[str, dict[str, Curve]] = {}
        for who, folder in CURVES.items():
            if who == "teacher" and (self.scratch or self.apart):
                continue
            files = [name for name in self.origin.names(folder) if name.endswith(".tsv")]
            paths = {Path(name).stem: self.origin.path(f"{folder}/{name}") for name in files}
            found[who] = {name: curve(path) for name, path in paths.items() if path is not None}
        return found

    @functools.cached_property
    def network(self) -> FeatureNetwork | None:
        """The feature network of the scores; None where it is not available."""
        path, meta = self.origin.path("data/reference/network.safetensors"), self.meta
        if path is None or meta is None:
            return None
        network: FeatureNetwork = network_class(meta["features"]).load(path).to(dist.device())
        return network

    def train_images(self) -> tuple[torch.Tensor, float] | None:
        """Training images uint8 (M, H, W, C), and the distance within which a sample counts as a copy."""
        meta = self.meta
        if meta is None or meta["copies_threshold"] is None:
            return None
        path = self.origin.path("data/reference/pictures.safetensors")
        found = {} if path is None else load_tensors(path, "run `dvc repro`")
        if path is not None and "pictures" not in found:
            raise ValueError(f"{path} lacks 'pictures': run `dvc repro`")
        return None if path is None else (found["pictures"], meta["copies_threshold"])


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seeds only.

    Attributes:
        name: of all of them.
        runs: at least one; images are shown of the first that has them.
    """

    name: str
    runs: tuple[Run, ...]

    def first(self, has: Callable[[Run], Any]) -> Run:
        """The first run for which `has` holds, else the first."""
        return next((run for run in self.runs if has(run) is not None), self.runs[0])

    def values(self, *path: str) -> list[Any]:
        """A number of evaluate.json in each run, None where it is missing; of the teacher, in each teacher.

        Runs that differ by the student's seed only have one teacher, which is no sample of two.
        """
        found = []
        known = [run.result.get("teacher") for run in self.runs]
        for number, run in enumerate(self.runs):
            if path[0] == "teacher" and known[number] in known[:number]:
                continue
            value: Any = run.result
            for part in path:
                value = value.get(part) if isinstance(value, dict) else None
            found.append(value)
        return found


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs in the order of the first of each group."""
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(run.key, []).append(run)
    return [Group(", ".join(run.name for run in some), tuple(some)) for some in found.values()]


def teachers(groups: Sequence[Group]) -> list[list[int]]:
    """Numbers of the groups that have a teacher, those with the same ones together, in order of the first."""
    found: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        scores = [str(run.result["teacher"]) for run in group.runs if run.result.get("teacher")]
        if scores:
            found.setdefault(str(sorted(set(scores))), []).append(number)
    return list(found.values())


def used(params: dict[str, Any]) -> dict[str, Any]:
    """Blocks and keys on which some stage's result depends, as dvc.yaml lists them; without a teacher less of them.

    Older revisions lack blocks and keys that came later: those are left out.
    """
    kept = {name: block for name, block in params.items() if name not in (*BLOCKS, "report", "train", "runtime")}
    for blocks, place in BLOCKS.items():
        block, key = place.split(".")
        name = params.get(block, {}).get(key)
        if name is not None and blocks in params:
            kept[blocks] = {name: params[blocks].get(name, {})}
    for block, key in (("train", "precision"), ("runtime", "threads")):
        if key in params.get(block, {}):
            kept[block] = {key: params[block][key]}
    scratch = params["distill"]["mode"] == "scratch"
    imported = not scratch and params["teacher"].get("stage") == "import_teacher"
    dropped = (*(OF_TEACHER if scratch else ()), *(() if imported else ("imported",)))
    return {name: block for name, block in kept.items() if name not in dropped}


def curve(path: Path) -> Curve:
    """Read a TSV with the columns step and value.

    Raises:
        ValueError: it has others.
    """
    try:
        pairs = [tuple(map(float, row.split("\t"))) for row in path.read_text(encoding="utf-8").splitlines()[1:]]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): run `dvc repro`") from None
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} has not two columns: run `dvc repro`")
    return Curve(tuple(step for step, _ in pairs), tuple(value for _, value in pairs))


# Seeds and params


@dataclass(frozen=True)
class Spread:
    """One number over several runs.

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
        """`0.042 ± 0.003`, or the plain number of one run."""
        return number(self.mean) if self.sd is None else f"{number(self.mean)} ± {number(self.sd)}"

    def ties(self, best: "Spread") -> bool:
        """Whether it differs from the best by no more than their pooled standard deviation; never so with one run."""
        if self.sd is None or best.sd is None:
            return False
        degrees = (self.n - 1, best.n - 1)
        pooled = math.sqrt((degrees[0] * self.sd**2 + degrees[1] * best.sd**2) / sum(degrees))
        return abs(self.mean - best.mean) <= pooled


def number(value: float) -> str:
    """Four significant digits, four decimals at most, without an exponent where people write none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 5e-5 <= abs(value) < 1e6:
        return f"{value:.2g}"
    power = math.floor(math.log10(float(f"{abs(value):.3e}")))
    return f"{value:.{max(0, min(4, 3 - power))}f}"


def seedless(flat: dict[str, str]) -> dict[str, str]:
    """Params, by dotted names, without the seeds, but with the seed of the feature network."""
    return {name: value for name, value in flat.items() if name == REFERENCE_SEED or name.rsplit(".", 1)[-1] != "seed"}


def differing(runs: Sequence[dict[str, str]]) -> list[str]:
    """Names of the params that are not alike in all runs, or that one lacks; sorted."""
    names = {name for flat in runs for name in flat}
    return sorted(name for name in names if len({flat.get(name) for flat in runs}) > 1)


def flat(mapping: dict[str, Any], where: str = "") -> dict[str, str]:
    """Nested params by dotted names, values as YAML writes them."""
    found: dict[str, str] = {}
    for key, value in mapping.items():
        place = f"{where}.{key}" if where else str(key)
        found |= flat(value, place) if isinstance(value, dict) else {place: as_yaml(value)}
    return found


def as_yaml(value: Any) -> str:
    """A plain value as params.yaml writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
