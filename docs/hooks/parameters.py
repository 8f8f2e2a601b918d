"""The reference of params.yaml as a page: key, default, rule, meaning, presets and stages, each read from its source.

Meaning and default are presets/base.yaml's, rules the types of facm/runtime/params.py and of the classes, names the
registries', stages dvc.yaml's. Nothing is written down twice.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from facm import objectives, samplers
from facm.convert import FORMATS
from facm.data import codecs, datasets
from facm.flow.time import TIME_SAMPLERS, WEIGHTINGS
from facm.networks import backbones, features, preconds
from facm.runtime import params
from facm.runtime.ranges import OneOf

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*?)(?:\s+# (?P<comment>.*))?$")
CHOICES: dict[str, typing.Iterable[str]] = {
    "backbone.name": backbones.BACKBONES,
    "backbone.precond": preconds.PRECONDS,
    "data.name": datasets.DATASETS,
    "distill.alpha": WEIGHTINGS,
    "distill.beta": WEIGHTINGS,
    "distill.objective": objectives.OBJECTIVES,
    "distill.time.sampler": TIME_SAMPLERS,
    "imported.format": FORMATS,
    "latents.codec": codecs.CODECS,
    "reference.also": features.FEATURES,
    "reference.features": features.FEATURES,
    "sample.sampler": samplers.SAMPLERS,
    "teacher.time.sampler": TIME_SAMPLERS,
}
KINDS = {int: "whole number", float: "number", bool: "true | false", str: "text"}


@dataclass(frozen=True)
class Key:
    """A key of params.yaml.

    Attributes:
        name: with dots.
        comment: behind it in the file; empty where there is none.
        value: its default; a mapping for a block of keys.
    """

    name: str
    comment: str
    value: Any

    @property
    def block(self) -> bool:
        """Whether it holds further keys."""
        return isinstance(self.value, dict) and bool(self.value)


def read(path: str | Path = ROOT / "presets/base.yaml") -> list[Key]:
    """The keys of a file like params.yaml, in order.

    Raises:
        ValueError: a line that is neither key, list entry nor comment.
    """
    text = Path(path).read_text()
    values, keys, above = yaml.safe_load(text), [], list[tuple[int, str]]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(("#", "- ")):
            continue
        match = LINE.match(line)
        if match is None:
            raise ValueError(f"{path}, line {number}: is no key with a value and a comment: {line}")
        indent = len(match["indent"])
        above = [(depth, name) for depth, name in above if depth < indent] + [(indent, match["key"])]
        places = [name for _, name in above]
        keys.append(Key(".".join(places), match["comment"] or "", look_up(values, places)))
    return keys


def look_up(mapping: Any, places: list[str]) -> Any:
    """The value at a place."""
    for place in places:
        mapping = mapping[place]
    return mapping


def leaves(mapping: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots and their values."""
    for name, value in mapping.items():
        place = f"{where}.{name}" if where else name
        if isinstance(value, dict) and value:
            yield from leaves(value, place)
        else:
            yield place, value


def rule(name: str) -> str:
    """What a key takes, such as `whole number, [1, inf)`, in words."""
    if name in CHOICES:
        names = " | ".join(sorted(CHOICES[name]))
        return f"list of {names}, or null" if name == "reference.also" else names
    block, _, rest = name.partition(".")
    if block in ("backbones", "objectives", "preconds"):
        owner, _, constant = rest.partition(".")
        return _constant(block, owner, constant) if constant else ""
    kind: Any = params.Params
    for place in name.split("."):
        kind = typing.get_type_hints(kind, include_extras=True)[place]
    return words(kind)


def _constant(block: str, owner: str, constant: str) -> str:
    if block == "backbones" and constant == "variant":
        return " | ".join(backbones.BACKBONES.load(owner).SIZES) + ", or null"  # type: ignore[arg-type]
    if block == "objectives":
        hints = typing.get_type_hints(objectives.OBJECTIVES.load(owner), include_extras=True)
    elif block == "backbones":
        hints = typing.get_type_hints(backbones.BACKBONES.load(owner).__init__, include_extras=True)
    else:
        hints = preconds.kinds(owner)
    kind = words(hints[constant]) if constant in hints else ""
    sized = block == "backbones" and hasattr(backbones.BACKBONES.load(owner), "SIZES")
    return f"{kind}, or null" if sized and constant in backbones.BY_SIZE else kind


def words(kind: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated and isinstance(arguments[1], OneOf):
        return " | ".join(arguments[1].known)
    if origin is Annotated:
        return f"{words(arguments[0])} in {arguments[1]}"
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (types.UnionType, typing.Union):
        kinds = [words(a) for a in arguments if a is not type(None)]
        return " | ".join(kinds) + (", or null" if type(None) in arguments else "")
    if origin in (tuple, list) or "Sequence" in str(origin):
        inner = [a for a in arguments if a is not Ellipsis]
        if origin is tuple and Ellipsis not in arguments and len(inner) > 1:
            return f"list of {len(inner)}: {words(inner[0])}"
        return f"list of {words(inner[0])}"
    if kind in KINDS:
        return KINDS[kind]
    return "" if dataclasses.is_dataclass(kind) or origin is dict else getattr(kind, "__name__", str(kind))


def stages() -> dict[str, list[str]]:
    """Per stage of dvc.yaml, in order, the keys and blocks that it depends on; `*` for a name that params give."""
    read = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: [re.sub(r"\$\{[^}]*\}", "*", key) for key in stage.get("params", [])] for name, stage in read.items()}


def tracked(name: str, by: Mapping[str, list[str]]) -> list[str]:
    """The stages whose result depends on a key: not `report`, which lists the params themselves."""

    def covers(key: str) -> bool:
        ours, its = name.split("."), key.split(".")
        return len(its) <= len(ours) and all(b in ("*", a) for a, b in zip(ours, its, strict=False))

    return [stage for stage, keys in by.items() if stage != "report" and any(covers(key) for key in keys)]


def presets() -> dict[str, dict[str, Any]]:
    """Values that each overlay sets, by key."""
    paths = sorted(path for path in (ROOT / "presets").glob("*.yaml") if path.stem != "base")
    return {path.stem: dict(leaves(yaml.safe_load(path.read_text()))) for path in paths}


def shown(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) and 0 < abs(value) < 1e-3 else str(value)


def page() -> str:
    """The page, Markdown with a table of HTML per block."""
    keys, by, overlays = read(), stages(), presets()
    names = {key.name for key in keys}
    digits = overlays["digits"]
    parts = [INTRODUCTION]
    for key in (key for key in keys if key.block):
        parts.append(f"{'##' if '.' not in key.name else '###'} {key.name} {{ #{key.name} }}\n")
        if key.comment:
            parts.append(_meaning(key.comment, names) + "\n")
        rows = [k for k in keys if not k.block and k.name.rpartition(".")[0] == key.name]
        if not rows:
            continue
        reruns = {k.name: tracked(k.name, by) for k in rows}
        common = reruns[rows[0].name] if len({tuple(stage) for stage in reruns.values()}) == 1 else None
        if common is not None:
            parts.append(f"{_stages(common)}\n")
        parts.append(
            '<table class="params"><thead><tr><th>key</th><th>default</th><th>meaning</th></tr></thead><tbody>'
        )
        for k in rows:
            lines = [_meaning(k.comment, names)]
            if r := rule(k.name):
                lines.append(f"<small>{escape(r)}</small>")
            others = [f"{o}: {shown(v[k.name])}" for o, v in overlays.items() if k.name in v and o != "digits"]
            if others:
                lines.append(f"<small>presets: {escape('; '.join(others))}</small>")
            if common is None:
                lines.append(f"<small>{_stages(reruns[k.name])}</small>")
            default = f"<code>{escape(shown(k.value))}</code>"
            if k.name in digits:
                default += f"<br><small>digits: <code>{escape(shown(digits[k.name]))}</code></small>"
            last = k.name.rpartition(".")[2]
            parts.append(
                f'<tr id="{k.name}"><td><a href="#{k.name}"><code>{last}</code></a></td><td>{default}</td>'
                f"<td>{'<br>'.join(lines)}</td></tr>"
            )
        parts.append("</tbody></table>\n")
    return "\n".join(parts)


def _stages(names: list[str]) -> str:
    if not names:
        return "A change reruns no stage by itself."
    return f"A change reruns {names[0]}{' and ' + ', '.join(names[1:]) if names[1:] else ''}, and what depends on it."


def _meaning(comment: str, names: set[str]) -> str:
    """A comment as HTML, with a link for each key that it names."""
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(comment, quote=False))
    return re.sub(
        r"(?<![\w./#])\w+(?:\.\w+)+",
        lambda match: f'<a href="#{match[0]}">{match[0]}</a>' if match[0] in names else match[0],
        text,
    )


INTRODUCTION = """\
# Parameters

Every key of params.yaml, from the comments of [presets/base.yaml](presets.md): default, meaning, what it takes. The
defaults are the paper's for ImageNet 256 where it gives one; what the preset `digits` sets is below them, the
other presets' values behind the meaning. A number's range is closed where its bracket is square.

`-S KEY=VALUE` sets one for a run (`dvc exp run -S distill.alpha=cos`), an edit of params.yaml for good. A value that
breaks its rule is refused by every stage before it works; `python -m facm.check` does the same. Numbers and text
are as DVC reads them, YAML 1.2: `1e-5` is a number, `off` and `12:30` are text, `017` is 17.
"""
