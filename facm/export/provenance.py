"""Where a checkpoint comes from, as far as dvc.lock proves it: its data, and the figures that were measured on it.

A file of metrics says nothing about which network it is of. dvc.lock does: the stage that trained gave this content,
the stage that sampled took it, the stage that scored took the samples and gave this file. A chain that is broken
anywhere gives no figures, but the reason.
"""

import hashlib
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from facm.data import codecs
from facm.networks.checkpoint import Config
from facm.runtime import files, params

LOCK = "dvc.lock"
STAGES = {"student": "distill", "teacher": "teacher"}
SCORED = {"student": "evaluate", "teacher": "baseline"}
EVALUATE, BASELINE, REFERENCE = "metrics/evaluate.json", "metrics/baseline.json", "metrics/reference.json"


class Entry(TypedDict):
    """A dependency or output in dvc.lock."""

    path: str
    md5: NotRequired[str]


class Ran(TypedDict):
    """A stage in dvc.lock."""

    deps: NotRequired[list[Entry]]
    outs: NotRequired[list[Entry]]
    params: NotRequired[dict[str, dict[str, Any]]]


class Locked(TypedDict):
    """dvc.lock."""

    stages: NotRequired[dict[str, Ran]]


@dataclass(frozen=True)
class Provenance:
    """What is known of a checkpoint beside its config.json.

    Attributes:
        data: the block `data` of params.yaml that it was trained on; empty where it is not known.
        figures: as metrics/evaluate.json has them, of the teacher only if it is the student's own; for a teacher with
            its own row alone; empty where there are none.
        drawn: how they were sampled: the block `baseline` without what had no effect, or what is known of `sample`.
        imported: of a student, the block `imported` of its teacher, where that one was imported; else empty.
    """

    commit: str | None = None  # of the repository, None where it is not known
    dirty: bool = False  # whether params.yaml, dvc.lock or the code differ from that commit
    data: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)
    imported: dict[str, Any] = field(default_factory=dict)
    ends: int | None = None  # samples of each end of the scale, held-out data apart; None where it is not known
    why: str = ""  # reason for which there are no figures


class Broken(ValueError):
    """A chain of dvc.lock that does not lead from the checkpoint to a file of metrics."""


def of(folder: Path, config: Config, sigma_rel: float | None = None) -> Provenance:
    """What is known of a checkpoint folder; of another EMA length (`sigma_rel`) nothing was measured."""
    root = next((parent for parent in folder.resolve().parents if (parent / LOCK).is_file()), None)
    if root is None:
        return Provenance(why=f"there is no {LOCK} above the checkpoint folder")
    commit, dirty = _commit(root)
    try:
        locked = params.raw(root / LOCK)
        files.refuse_other_form(locked, Locked, str(root / LOCK), "run `dvc repro`")
        lock = Lock(locked.get("stages", {}))
        trained = lock.made_by(STAGES[config.kind], f"{directory_md5(folder)}.dir", "the checkpoint")
    except Broken as error:
        return Provenance(commit, dirty, why=str(error))
    data = lock.params("latents").get("data", {}) if lock.leads("latents", STAGES[config.kind]) else {}
    imported = lock.params("teacher").get("imported") or {} if lock.leads("teacher", STAGES[config.kind]) else {}
    imported = imported if imported.get("source") else {}
    try:
        if sigma_rel is not None:
            raise Broken(f"the figures of the run are of the stored weights, not of sigma_rel {sigma_rel:g}")
        figures, drawn = (_student if config.kind == "student" else _teacher)(lock, trained, root)
        drawn = _effective(drawn, figures, config)
    except (Broken, ValueError, OSError) as error:
        return Provenance(commit, dirty, data, imported=imported, why=str(error))
    scored = lock.leads("reference", SCORED[config.kind])
    ends = lock.params("reference").get("reference", {}).get("num") if scored else None
    return Provenance(commit, dirty, data, figures, drawn, imported, ends)


class Lock:
    def __init__(self, stages: dict[str, Any]) -> None:
        self.stages = stages

    def hashes(self, stage: str, kind: str) -> dict[str, str]:
        """md5 of each dependency (`deps`) or output (`outs`) by path."""
        return {entry["path"]: entry.get("md5", "") for entry in self.stages.get(stage, {}).get(kind, [])}

    def params(self, stage: str) -> dict[str, Any]:
        """Params that a stage ran with: blocks, and single keys by dotted name."""
        found: dict[str, Any] = self.stages.get(stage, {}).get("params", {}).get(params.PATH, {})
        return found

    def made_by(self, stage: str, md5: str, what: str) -> str:
        """The hash of an output of a stage; raises Broken where no output has it."""
        if md5 not in self.hashes(stage, "outs").values():
            raise Broken(f"{LOCK} knows {what} as no output of its stage `{stage}`: it was made elsewhere, or changed")
        return md5

    def taken_by(self, stage: str, md5: str, what: str) -> None:
        """Raise Broken unless a stage took a content."""
        if md5 not in self.hashes(stage, "deps").values():
            raise Broken(f"{LOCK}: stage `{stage}` did not run on {what}: run `dvc repro`")

    def leads(self, first: str, then: str) -> bool:
        """Whether an output of one stage is a dependency of another."""
        return bool(set(self.hashes(first, "outs").values()) & set(self.hashes(then, "deps").values()))

    def metrics(self, stage: str, path: str, root: Path) -> dict[str, Any]:
        """A file of metrics, if it is the one that a stage wrote; raises Broken."""
        if not (root / path).is_file():
            raise Broken(f"{path} is missing: `dvc pull` or `dvc repro` brings it")
        if self.hashes(stage, "outs").get(path) != _md5(root / path):
            raise Broken(f"{path} is not what stage `{stage}` of {LOCK} wrote: run `dvc repro`")
        found: dict[str, Any] = files.load_record(root / path, dict[str, Any], "run `dvc repro`")
        return found


def directory_md5(folder: Path) -> str:
    """DVC's hash of a folder, without `.dir`: md5 of the sorted list of md5 and relative path as JSON."""
    paths = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    listed = [{"md5": _md5(path), "relpath": name} for name, path in paths]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def _student(lock: Lock, checkpoint: str, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lock.taken_by("sample", checkpoint, "this checkpoint")
    if not lock.leads("sample", "evaluate"):
        raise Broken(f"{LOCK}: stage `evaluate` did not run on what `sample` drew: run `dvc repro`")
    drawn = lock.params("sample").get("sample", {})
    if drawn.get("sigma_rel") is not None:
        raise Broken(f"the run's figures are of sample.sigma_rel {drawn['sigma_rel']}, not of the stored weights")
    figures = lock.metrics("evaluate", EVALUATE, root)
    links = (("teacher", "distill"), ("teacher", "baseline"), ("baseline", "evaluate"))
    if not all(lock.leads(*link) for link in links):
        figures = {name: value for name, value in figures.items() if name != "teacher"}  # another network's
    return figures, drawn


def _teacher(lock: Lock, checkpoint: str, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lock.taken_by("baseline", checkpoint, "this checkpoint")
    measured = lock.metrics("baseline", BASELINE, root)
    if not lock.leads("reference", "baseline"):
        raise Broken(f"{LOCK}: stage `baseline` did not run on this data/reference: run `dvc repro`")
    scale = lock.metrics("reference", REFERENCE, root)
    scale = scale.get("reference", scale)
    drawn = lock.params("baseline")
    rounding = {"rounding": drawn["sample.rounding"]} if "sample.rounding" in drawn else {}
    if not isinstance(measured.get("baseline"), dict) or not isinstance(scale, dict):
        raise Broken(f"{BASELINE} or {REFERENCE} is of another form: run `dvc repro`")
    return scale | {"teacher": measured["baseline"]}, drawn.get("baseline", {}) | rounding


def _effective(drawn: dict[str, Any], figures: dict[str, Any], config: Config) -> dict[str, Any]:
    """How images were sampled, with the w that the stage took, and without what a model has no use for."""
    if config.kind == "teacher":
        drawn = drawn | {"w": figures["teacher"].get("w", drawn.get("w", 1.0))}
    unused = {"rounding"} if config.codec in codecs.POINTS else set()
    if not config.num_classes:
        unused |= {"w", "t_low", "t_high"}
    return {name: value for name, value in drawn.items() if name not in unused}


def _commit(root: Path) -> tuple[str | None, bool]:
    """Commit of a repository and whether what makes results differs from it; (None, False) without git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
        if found.returncode:
            return None, False
        paths = [path for path in (LOCK, params.PATH, "dvc.yaml", "facm", "stages") if (root / path).exists()]
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *paths], cwd=root, capture_output=True)
    except OSError:
        return None, False
    return found.stdout.strip(), changed.returncode != 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
