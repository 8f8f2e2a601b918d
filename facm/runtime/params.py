"""params.yaml as frozen dataclasses: one per top-level key, every key required, every unknown key refused.

The file is the only configuration. What a key means, its unit and its place in the paper stand in presets/base.yaml;
here stand its type and range. Blocks of one method or network (`objectives.<name>`, `backbones.<name>`,
`preconds.<name>`) are kept as plain mappings: the class that they are for checks them, so that a new method needs no
line here.

YAML is read and written as DVC does (dvc/utils/serialize/_yaml.py: ruamel.yaml, YAML 1.2), so that both mean the same:
1e-05 is a number, `off` and `12:30` are text, 017 is 17 and 0o17 is 15.
"""

import copy
import datetime
import io
import re
import typing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from facm.runtime.names import refuse_unknown
from facm.runtime.ranges import (
    PATH,
    Count,
    Decay,
    Fraction,
    NonNegative,
    ParamsError,
    Positive,
    Range,
    Scale,
    Seed,
    Steps,
    checked,
)

if TYPE_CHECKING:
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError

UNSEEN = ("size", "nfiles")  # keys that are not in the key of DVC's run cache, wherever they stand (dvc/stage/cache.py)
PLAIN = int | float | bool | str | None
_SAVE = "save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`, or the editor's menu)"


Cosine = Literal["auto", "channel", "sample", "none"]


@dataclass(frozen=True)
class Data:
    name: str
    root: str | None
    fingerprint: str | None
    side: Count | None
    max_bad: Fraction


@dataclass(frozen=True)
class Reference:
    features: str
    also: tuple[str, ...] | None
    source: str
    sha256: str | None
    seed: Seed
    num: Count


@dataclass(frozen=True)
class Tokens:
    """Of an encoder, for backbone repa."""

    encoder: str | None
    weights: str | None
    sha256: str | None
    side: Count


@dataclass(frozen=True)
class Latents:
    codec: str
    vae: str | None
    vae_sha256: str | None
    posterior: Literal["sample", "mode"]
    seed: Seed
    normalise: Literal["channel", "one", "none", "given"]
    stats: str | None
    stats_sha256: str | None
    labels: bool
    flip: bool
    shard_size: Count
    batch_size: Count
    tokens: Tokens


@dataclass(frozen=True)
class Backbone:
    name: str
    precond: str


@dataclass(frozen=True)
class Time:
    sampler: str
    mean: float
    std: Positive


@dataclass(frozen=True)
class Optimizer:
    lr: Positive
    betas: tuple[Decay, Decay]
    weight_decay: NonNegative
    warmup: Annotated[int, Range(low=0)]
    schedule: Literal["constant", "cosine"]
    clip: Positive


@dataclass(frozen=True)
class Ema:
    sigma_rels: tuple[Annotated[float, Range(0.0, 0.28, exclusive_low=True)], ...]
    sigma_rel: Annotated[float, Range(0.0, 0.28, exclusive_low=True)]
    snapshots: Count


@dataclass(frozen=True)
class Training:
    """What teacher and distill have in common."""

    init: str | None
    init_sha256: str | None
    steps: Count
    batch_size: Count
    seed: Seed
    label_dropout: Fraction
    dropout: Annotated[float, Range(0.0, 0.99)]
    time: Time
    optimizer: Optimizer
    ema: Ema


@dataclass(frozen=True)
class Train:
    """How a training step is computed, see `facm.training.passes.Plan`."""

    precision: Literal["float32", "bfloat16"]
    compile: bool
    checkpoint: bool
    accumulate: Count
    lean: bool
    parallel: Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Teacher(Training):
    stage: str
    conditioning: Literal["plain", "expanded", "auxiliary"]
    fraction: Fraction
    cosine: Cosine
    cosine_eps: Positive


@dataclass(frozen=True)
class Imported:
    code: str
    source: str | None
    format: str | None
    sha256: str | None
    which: Literal["ema", "model"]
    profile: float
    stats: str | None
    trust_pickle: bool


@dataclass(frozen=True)
class Distill(Training):
    objective: str
    mode: Literal["distill", "scratch"]
    teacher: str
    conditioning: Literal["expanded", "auxiliary"]
    alpha: str
    beta: str
    p: Positive
    w: Scale
    t_low: Fraction
    t_high: Fraction
    teacher_condition: Literal["t", "fm"]
    scratch_form: Literal["paper", "code", "mixed"]
    scratch_condition: Literal["fm", "t"]
    scratch_source: Literal["online", "ema"]
    scratch_kappa: Annotated[float, Range(0.0, 0.999)]
    if_diverged: Literal["fail", "record"]
    derivative: Literal["dual", "func"]


@dataclass(frozen=True)
class Baseline:
    sampler: Literal["euler", "heun", "dpmpp", "edm"]
    steps: Steps
    w: Scale
    t_low: Fraction
    t_high: Fraction
    shift: NonNegative
    num: Count
    seed: Seed
    batch_size: Count


@dataclass(frozen=True)
class Sample:
    num: Count
    nfe: tuple[Steps, ...]
    sampler: str
    t_grid: tuple[tuple[Fraction, ...], ...] | None
    shift: NonNegative
    seed: Seed
    sigma_rel: Annotated[float, Range(0.0, 0.28, exclusive_low=True)] | None
    rounding: Literal["round", "floor"]
    batch_size: Count


@dataclass(frozen=True)
class Evaluate:
    baseline: Literal["metrics/baseline.json", "metrics/reference.json"]
    copies: bool
    kid_subsets: Count


@dataclass(frozen=True)
class Report:
    """What a run has of a teacher: paths, so that they can be dependencies in dvc.yaml."""

    pictures: Literal["data/baseline", "data/samples"]
    curves: Literal["metrics/teacher", "metrics/distill"]


@dataclass(frozen=True)
class Runtime:
    threads: Count
    save_every: Count
    log_every: Count


@dataclass(frozen=True)
class Params:
    data: Data
    reference: Reference
    latents: Latents
    backbone: Backbone
    backbones: dict[str, dict[str, Any]]
    preconds: dict[str, dict[str, Any]]
    train: Train
    teacher: Teacher
    imported: Imported
    baseline: Baseline
    distill: Distill
    objectives: dict[str, dict[str, Any]]
    sample: Sample
    evaluate: Evaluate
    report: Report
    runtime: Runtime


def read(path: str | Path = PATH) -> Params:
    """Read and check types, ranges and keys of a params.yaml.

    Raises:
        ParamsError: missing file, no YAML, or a key or value that breaks its rule; the message names the place.
    """
    return parse(raw(path))


def raw(path: str | Path = PATH) -> dict[str, Any]:
    """The file's plain mappings, as recorded in checkpoints."""
    try:
        return mapping_of(read_text(path), str(path))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing: write it with `python -m facm.preset digits`") from None


def read_text(path: str | Path) -> str:
    """A file's text, whatever the locale says; raises ParamsError, which names it, unless it is UTF-8 (BOM or not)."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): {_SAVE}") from None
    if "\0" in text:
        raise ParamsError(f"{path} is not UTF-8 (it has zero bytes, as UTF-16 has): {_SAVE}")
    return text


def mapping_of(text: str, path: str) -> dict[str, Any]:
    """The plain mappings of a YAML text.

    Raises:
        ParamsError: names `path`; the text is no YAML or no mapping, or a block has a key twice.
    """
    from ruamel.yaml import YAML  # here: a machine that only trains may lack it
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    _refuse_next_line(text, path)
    try:
        loaded = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise ParamsError(f"{path}{_line(error)}: {_repeated(error)}: remove one") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is no valid YAML: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # of a date, a tag
        raise ParamsError(f"{path} is no valid YAML: a value that is not what its form or tag says ({error})") from None
    if not isinstance(loaded, dict):
        raise ParamsError(f"{path} must hold a mapping, it holds {type(loaded).__name__}")
    return loaded


def written(mapping: dict[str, Any]) -> str:
    """The YAML text of mappings, in the form that `dvc exp run -S` keeps; of a document with comments, them too.

    Raises:
        ParamsError: a character that would not come back.
    """
    from ruamel.yaml import YAML

    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = False
    yaml.dump(mapping, text)
    _refuse_next_line(text.getvalue(), PATH)
    return text.getvalue()


def _refuse_next_line(text: str, path: str) -> None:
    """Raise ParamsError for the one character that ruamel.yaml, and with it DVC, writes bare and reads as a space."""
    if "\x85" in text:
        raise ParamsError(f"{path} holds the character U+0085 (next line), which YAML does not keep: remove it")


def _line(error: "MarkedYAMLError") -> str:
    return "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"


def _repeated(error: "DuplicateKeyError") -> str:
    """`key 'lr' is repeated`, from the sentence in which ruamel.yaml names it."""
    key = re.match(r'found duplicate key "(.*?)" with value', error.problem or "", re.DOTALL)
    return f"key '{key[1]}' is repeated in its block" if key else "a key is repeated in its block"


def outputs(stage: str | None, path: str | Path = "dvc.yaml") -> list[str]:
    """Files and folders that a stage makes (None: all stages), as dvc.yaml says; none where it has no such stage."""
    stages = raw(path).get("stages", {}) if Path(path).is_file() else {}
    asked = list(stages.values()) if stage is None else [stages.get(stage, {})]
    entries = [entry for made in asked for kind in ("outs", "metrics", "plots") for entry in made.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def at(mapping: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    found: Any = mapping
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def tracked(mapping: dict[str, Any], stage: str) -> dict[str, Any]:
    """What may change a training's result, as dvc.yaml lists it: of all blocks those that `stage` uses.

    Args:
        mapping: as `raw` gives it.
        stage: teacher | distill.
    """
    used = {name: mapping[name] for name in ("backbone", stage)}
    for blocks, name in (("backbones", mapping["backbone"]["name"]), ("preconds", mapping["backbone"]["precond"])):
        used[blocks] = {name: mapping[blocks][name]}
    used |= {
        "train": {"precision": mapping["train"]["precision"]},
        "runtime": {"threads": mapping["runtime"]["threads"]},
    }
    if stage == "teacher":
        used["imported"] = mapping["imported"]
    if stage == "distill":
        used["objectives"] = {mapping[stage]["objective"]: mapping["objectives"][mapping[stage]["objective"]]}
    return copy.deepcopy(used)


def parse(mapping: dict[str, Any]) -> Params:
    """Plain mappings -> Params; raises ParamsError as `read` does."""
    _refuse_strange(mapping, "", set())
    return typing.cast(Params, _block(mapping, Params, ""))


def _refuse_strange(value: Any, where: str, blocks: set[int]) -> None:
    """Raise ParamsError for what YAML has and config.json or DVC's `-S` cannot keep, at any depth.

    Args:
        value: of `where`.
        blocks: ids of the lists and mappings met so far.
    """
    place = f"{PATH}, {where or 'top level'}"
    if id(value) in blocks:  # an empty one too: YAML makes a new one each time
        raise ParamsError(f"{place}: is an alias of another block, and -S would set both: write it out")
    if isinstance(value, datetime.date):
        raise ParamsError(f"{place}: {value} is read as a date: write it in quotes")
    if not isinstance(value, dict | list | tuple | PLAIN):
        raise ParamsError(f"{place}: must be a number, text, true, false, null, a list or a block, got {value!r}")
    if isinstance(value, dict | list | tuple):
        blocks |= {id(value)} if isinstance(value, dict | list) else set()
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(key, str):
                raise ParamsError(f"{place}: key {key} must be text: write it in quotes")
            _refuse_strange(inner, f"{where}.{key}" if where else str(key), blocks)


def _block(value: Any, kind: type, where: str) -> Any:
    """One block of keys as its dataclass, or a ParamsError that names `where`."""
    if not isinstance(value, dict):
        raise ParamsError(f"{PATH}, {where}: must be a block of keys, got {value!r}")
    place = f"{PATH}, {where or 'top level'}"
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    try:
        refuse_unknown(value, names, place)
    except ValueError as error:
        raise ParamsError(str(error)) from None
    for name in names:
        if name not in value:
            raise ParamsError(f"{place}: '{name}' is missing; presets/base.yaml has its default")
    return kind(**{name: _value(value[name], hints[name], f"{where}.{name}" if where else name) for name in names})


def _value(value: Any, kind: Any, where: str) -> Any:
    """A block, the constants of several methods or networks by name, or a value."""
    if is_dataclass(kind):
        return _block(value, typing.cast(type, kind), where)
    if typing.get_origin(kind) is not dict:
        return checked(value, kind, where)
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise ParamsError(f"{PATH}, {where}: must hold one block of constants per name, got {value!r}")
    for name, block in value.items():
        _refuse_unseen(block, f"{where}.{name}")
    return value


def _refuse_unseen(value: Any, where: str) -> None:
    """Raise ParamsError for a key that DVC does not see, at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key in UNSEEN:
            raise ParamsError(
                f"{PATH}, {where}.{key}: no key may be called {key}. DVC leaves such keys out when it looks for a "
                "run of the same params, and would give back what another value has made: choose another name"
            )
        _refuse_unseen(inner, f"{where}.{key}")
