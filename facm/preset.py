"""`python -m facm.preset NAME [OVERLAY ...]`: write params.yaml = presets/base.yaml + overlays.

    python -m facm.preset digits
    python -m facm.preset digits scratch
    python -m facm.preset --list

Comments are kept, what changes is shown, and hand edits are not overwritten without --force. The text has the form that
`dvc exp run -S` keeps (nothing for null, lists in block style): an experiment changes the lines of its own keys only.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from facm.runtime.names import hint, printable
from facm.runtime.params import PATH, ParamsError, mapping_of, read_text, written

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
        ParamsError: a file of presets/ that is no YAML.
    """
    known = available(folder)
    if not known:
        raise PresetError(f"there are no presets in {Path(folder).absolute()}: run this at the repository's root")
    for name in names:
        if name not in known:
            raise PresetError(f"unknown preset '{name}'{hint(name, known)}; {folder}/ has: {', '.join(known)}")
    _fit(names, folder)
    document = _read(folder, BASE)
    for name in names:
        _overlay(document, _read(folder, name), f"{folder}/{name}.yaml", "")
    return HEADER.format(names=" ".join(names)) + written(document)


def _read(folder: str | Path, name: str) -> CommentedMap:
    """A file of presets/ with its comments and the spelling of its numbers."""
    path = Path(folder) / f"{name}.yaml"
    text = read_text(path)
    mapping_of(text, str(path))
    return YAML().load(text)


def _fit(names: list[str], folder: str | Path) -> None:
    """Refuse presets that do not go together.

    An overlay needs what its first line asks, `# Overlay on imagenet256 sd_vae` or `on another preset`; what calls
    itself `# Preset` there stands first; and two overlays do not both choose a network.
    """
    networks: list[str] = []
    for number, name in enumerate(names):
        text = read_text(Path(folder) / f"{name}.yaml")
        match = re.match(r"# Overlay on ([\w ]+)", text.partition("\n")[0])
        if text.startswith("# Preset") and number:
            raise PresetError(f"'{name}' is a preset of its own, not an overlay on {names[0]}: write one of the two")
        if number and "name" in _read(folder, name).get("backbone", {}):
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
    old, new = (dict(_leaves(mapping_of(text, PATH))) for text in (before, after))
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
    except (PresetError, ParamsError) as error:
        return [f"({error})"]


def write(names: list[str], path: str | Path = PATH, *, folder: str | Path = FOLDER, force: bool = False) -> list[str]:
    """Write params.yaml; returns the lines of what changed.

    Raises:
        PresetError: unknown preset, or hand edits and not `force`.
        ParamsError: a file of presets/ that is no YAML, or what is there is no UTF-8 and not `force`.
    """
    path, text = Path(path), render(names, folder)
    try:
        before = read_text(path) if path.exists() else ""
    except ParamsError:
        if not force:
            raise
        before = ""
    if before and not force:
        edits = [edit for edit in hand_edits(before, folder) if before != text]
        if edits:
            raise PresetError(
                f"{path} has hand edits that would be lost (--force overwrites them):\n  " + "\n  ".join(edits)
            )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    try:
        return changes(before, text)
    except ParamsError:  # no YAML
        return changes(read_text(Path(folder) / f"{BASE}.yaml"), text)


def _overlay(base: CommentedMap, overlay: CommentedMap, source: str, where: str) -> None:
    """Set the overlay's leaves in `base`, in place; comments stay."""
    for key, value in overlay.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in base:
            told = f"{source}: unknown '{place}'{hint(key, base)}"
            raise PresetError(f"{told}; {FOLDER}/{BASE}.yaml must have every key")
        if isinstance(value, CommentedMap) and isinstance(base[key], CommentedMap):
            _overlay(base[key], value, source, place)
        else:
            base[key] = _plain(value)


def _plain(value: Any) -> Any:
    """Lists without the overlay's comments, as DVC sets them."""
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


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
    except (PresetError, ParamsError) as error:
        raise SystemExit(f"error: {error}") from None
    title = f"{PATH}: {' '.join(arguments.names)}, {len(lines)} values changed"
    print(printable("\n  ".join([title, *lines])))


if __name__ == "__main__":
    main()
