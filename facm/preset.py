"""`python -m facm.preset NAME [OVERLAY ...]`: write params.yaml = presets/base.yaml + overlays.

    python -m facm.preset digits
    python -m facm.preset digits scratch
    python -m facm.preset --list

Comments are kept, what changes is shown, and hand edits are not overwritten without --force.
"""

import argparse
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from facm.names import hint, printable
from facm.params import PATH

FOLDER = "presets"
BASE = "base"
HEADER = "# Written by `python -m facm.preset {names}` from presets/base.yaml and the overlay; edit freely.\n"


class PresetError(ValueError):
    """An unknown preset, an overlay that does not fit, or hand edits that would be lost."""


def available(folder: str | Path = FOLDER) -> list[str]:
    """Names of the overlays."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml") if path.stem != BASE)


def render(names: list[str], folder: str | Path = FOLDER) -> str:
    """Text of params.yaml for a preset and further overlays.

    Raises:
        PresetError: unknown preset, an overlay on another preset than it is meant for, or its key that base.yaml does
            not have.
    """
    known = available(folder)
    if not known:
        raise PresetError(f"there are no presets in {Path(folder).absolute()}: run this at the repository's root")
    for name in names:
        if name not in known:
            raise PresetError(f"unknown preset '{name}'{hint(name, known)}; {folder}/ has: {', '.join(known)}")
    _fit(names, folder)
    document = _yaml().load((Path(folder) / f"{BASE}.yaml").read_text())
    for name in names:
        overlay = _yaml().load((Path(folder) / f"{name}.yaml").read_text())
        _overlay(document, overlay, f"{folder}/{name}.yaml", "")
    text = io.StringIO()
    _yaml().dump(document, text)
    return HEADER.format(names=" ".join(names)) + text.getvalue()


def _fit(names: list[str], folder: str | Path) -> None:
    """Refuse presets that do not go together.

    An overlay needs what its first line asks, `# Overlay on imagenet256 sd_vae` or `on another preset`; what calls
    itself `# Preset` there stands first; and two overlays do not both choose a network.
    """
    networks: list[str] = []
    for number, name in enumerate(names):
        text = (Path(folder) / f"{name}.yaml").read_text()
        match = re.match(r"# Overlay on ([\w ]+)", text.partition("\n")[0])
        if text.startswith("# Preset") and number:
            raise PresetError(f"'{name}' is a preset of its own, not an overlay on {names[0]}: write one of the two")
        if number and "name" in (_yaml("safe").load(text) or {}).get("backbone", {}):
            networks.append(name)
        if len(networks) > 1:
            raise PresetError(f"{' and '.join(networks)} are two networks: write one of the two")
        if match is None:
            continue
        needed = [] if match[1].strip() == "another preset" else match[1].split()
        missing = [other for other in needed if other not in names[:number]]
        if missing or not number:
            before = " ".join(needed) or "digits"
            raise PresetError(
                f"'{name}' is an overlay on {match[1].strip()}: write `python -m facm.preset {before} {name}`"
            )


def changes(before: str, after: str) -> list[str]:
    """Lines `key: old -> new` of two YAML texts, by value."""
    old, new = (dict(_leaves(_yaml("safe").load(text) or {})) for text in (before, after))
    keys = [*new, *(key for key in old if key not in new)]
    return [
        f"{key}: {old.get(key, '(none)')} -> {new.get(key, '(none)')}" for key in keys if old.get(key) != new.get(key)
    ]


def hand_edits(text: str, folder: str | Path = FOLDER) -> list[str]:
    """Lines `key: here -> preset` of what a params.yaml holds beyond the preset that its first line names."""
    match = re.match(re.escape(HEADER).replace(r"\{names\}", "(.+?)"), text)
    if match is None:
        return ["(the first line does not name a preset)"]
    try:
        lost = changes(text, render(match[1].split(), folder))
        return [line for line in lost if ": (none) -> " not in line]  # keys that are newer than the file
    except (PresetError, YAMLError) as error:
        return [f"({error})"]


def write(names: list[str], path: str | Path = PATH, *, folder: str | Path = FOLDER, force: bool = False) -> list[str]:
    """Write params.yaml; returns the lines of what changed.

    Raises:
        PresetError: unknown preset, or hand edits and not `force`.
    """
    path, text = Path(path), render(names, folder)
    before = path.read_text() if path.exists() else ""
    if before and not force:
        edits = [edit for edit in hand_edits(before, folder) if before != text]
        if edits:
            raise PresetError(
                f"{path} has hand edits that would be lost (--force overwrites them):\n  " + "\n  ".join(edits)
            )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
    return changes(before if _readable(before) else (Path(folder) / f"{BASE}.yaml").read_text(), text)


def _readable(text: str) -> bool:
    """Whether a text is YAML that holds something."""
    try:
        return bool(_yaml("safe").load(text))
    except YAMLError:
        return False


def _yaml(kind: str = "rt") -> YAML:
    yaml = YAML(typ=kind, pure=True)
    if kind == "rt":
        yaml.indent(mapping=2, sequence=4, offset=2)
        yaml.width = 4096
        yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def _overlay(base: CommentedMap, overlay: CommentedMap, source: str, where: str) -> None:
    """Set the overlay's leaves in `base`, in place; comments stay."""
    for key, value in overlay.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in base:
            told = f"{source}: unknown '{place}'{hint(key, base)}"
            raise PresetError(f"{told}; {FOLDER}/{BASE}.yaml must have every key")
        if isinstance(value, CommentedMap) and isinstance(base[key], CommentedMap):
            _overlay(base[key], value, source, place)
        elif isinstance(value, CommentedSeq) and isinstance(base[key], CommentedSeq):
            base[key][:] = list(value)
        else:
            base[key] = value


def _leaves(mapping: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        place = f"{where}.{key}" if where else str(key)
        if isinstance(value, dict):
            yield from _leaves(value, place)
        else:
            yield place, value


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m facm.preset", description="Write params.yaml from a preset.")
    parser.add_argument("names", nargs="*", help="preset, then further overlays")
    parser.add_argument("--force", action="store_true", help="overwrite hand edits")
    parser.add_argument("--list", action="store_true", help="list the presets")
    arguments = parser.parse_args()
    if arguments.list or not arguments.names:
        print(printable(f"presets: {', '.join(available())}"))
        return
    try:
        lines = write(arguments.names, force=arguments.force)
    except PresetError as error:
        raise SystemExit(f"error: {error}") from None
    title = f"{PATH}: {' '.join(arguments.names)}, {len(lines)} values changed"
    print(printable("\n  ".join([title, *lines])))


if __name__ == "__main__":
    main()
