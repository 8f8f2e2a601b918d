"""params.yaml: damaged as text, and of other values; written by presets and by DVC's `-S`, and read again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest
import yaml
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import edited, edits, plain, rewritings, rewritten

from facm import check, preset
from facm.runtime import params

pytestmark = pytest.mark.slow

WHOLE = (miniature.ROOT / "params.yaml").read_bytes()
SHORT = b"\n".join(line for line in WHOLE.splitlines()[:60])
ODD = [
    b"",
    b"\n",
    b"[]",
    b"a",
    b"a: b: c",
    b"? [a]\n: b",
    b"{[a]: b}",
    b"? {a: b}\n: c",
    b"&a [*a]",
    b"a: &a\n  b: *a",
    b"a: *b",
    b"!!python/object/apply:os.system ['true']",
    b"!!binary aGVsbG8=",
    b"!!set {a, b}",
    b"a: !!timestamp 2001-99-99",
    b"a: 2001-99-99",
    b"a: 0x",
    b"a: 0o9",
    b"a: 1_000",
    b"a: .nan",
    b"a: 1e999",
    b"a: 12:30:99",
    b"a: " + b"9" * 5000,
    b"a: ~\na: 1",
    b"<<: 1",
    b"<<: *a",
    b"<<: [1]",
    b"[" * 1000,
    b"{" * 1000,
    b"- " * 1000,
    b"a: \x00",
    b"\xff\xfea\x00:\x00",
    b"\xef\xbb\xbfa: 1",
    b"a: \x85b",
    b"\xe9: 1",
    b"%YAML 9.9\n---\na: 1",
    b"--- a\n--- b",
    b"a: 1\n...\nb",
    b"\tx: 1",
    b"a: |\n x",
    b'a: "\\ud800"',
    b"a: !x b",
    b"? \n: ",
    b"null: 1",
    b"1: 2",
    b"true: 1",
    b".nan: 1",
    b"a: &x [1,1]\nb: &y [*x,*x]\nc: &z [*y,*y]\nd: [*z,*z]",
    b"=: 1",
    b"a: =",
    b"a: !!float x",
    b"a: !!int x",
    b"a: !!bool x",
    b"a: !!float ''",
]
"""Texts that YAML readers stumble over."""


def read(path: Path) -> None:
    """Read and check; what is accepted gives the same again."""
    found = check.read(path)
    if params.parse(params.raw(path)) != found:
        raise Wrong("two readings differ")


def test_the_text_of_params_yaml(folder: Path) -> None:
    path = folder / "params.yaml"
    path.write_bytes(WHOLE)
    read(path)

    def trial(drawn: Any) -> Callable[[], Any]:
        path.write_bytes(edited(WHOLE, drawn))
        return lambda: read(path)

    campaign("params.yaml text", edits(len(WHOLE)), trial, 30, folder=folder, names=["params.yaml"])


def test_short_texts(folder: Path) -> None:
    """Of whatever YAML may be, mappings of plain values are read and the rest refused."""
    path = folder / "params.yaml"

    def trial(drawn: Any) -> Callable[[], Any]:
        before, odd, after = drawn
        path.write_bytes(before + odd + after)

        def read() -> None:
            if not isinstance(params.raw(path), dict):
                raise Wrong("no mapping")

        return read

    odd = st.sampled_from(ODD)
    piece = st.sampled_from([b"", b"", b"x: 1\n", b"\n", b" "])
    damaged = st.tuples(st.just(b""), edits(len(SHORT)).map(lambda changes: edited(SHORT, changes)), st.just(b""))
    campaign(
        "YAML texts", st.one_of(st.tuples(piece, odd, piece), damaged), trial, 120, folder=folder, names=["params.yaml"]
    )


def test_values_of_params_yaml(folder: Path) -> None:
    """Any value in any place, without the way through a file."""
    mapping = yaml.safe_load(WHOLE)

    def trial(changes: Any) -> Callable[[], Any]:
        value = rewritten(mapping, changes)
        return lambda: check.check(params.parse(value))

    campaign(
        "params.yaml values", st.one_of(rewritings(), rewritings(1)), trial, 280, folder=folder, names=["params.yaml"]
    )


def test_values_of_one_key(folder: Path) -> None:
    """Every key in turn is given any value."""
    mapping = yaml.safe_load(WHOLE)
    places = [tuple(place) for place in leaves(mapping, [])]

    def trial(drawn: Any) -> Callable[[], Any]:
        place, value = drawn
        changed = rewritten(mapping, [])
        holder = changed
        for part in place[:-1]:
            holder = holder[part]
        holder[place[-1]] = value
        return lambda: check.check(params.parse(changed))

    campaign(
        "params.yaml values",
        st.tuples(st.sampled_from(places), plain()),
        trial,
        550,
        folder=folder,
        names=["params.yaml"],
    )


def leaves(value: Any, way: list[Any]) -> list[list[Any]]:
    """Ways to the values that are no mappings, and to the blocks."""
    found = [way] if way else []
    for key, inner in value.items() if isinstance(value, dict) else ():
        found += leaves(inner, [*way, key])
    return found


SMALL = """\
# A small presets/base.yaml.
data:          # the data set
  name: folder
  root:        # its folder

sample:
  nfe:         # numbers of evaluations
  - 1
  - 2
  shift: 1e-05 # of the grid
backbones:
  dit: {depth: 2, heads: 2}
"""
KEYS = [("data", "name"), ("data", "root"), ("sample", "nfe"), ("sample", "shift"), ("backbones", "dit")]


def kept(value: Any) -> bool:
    """Whether a plain value is one that ruamel.yaml, with which DVC writes, keeps as it is.

    It has no surrogates, writes U+0085 bare (facm refuses it), and takes numbers with an exponent apart, so that the
    last of 15 digits or more may change when a file is written again.
    """
    if isinstance(value, dict):
        return all(kept(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(map(kept, value))
    if isinstance(value, float):
        return value != value or float(f"{value:.12g}") == value
    return not isinstance(value, str) or not any(c == "\x85" or "\ud800" <= c <= "\udfff" for c in value)


@pytest.mark.parametrize("way", ["written", "preset", "DVC"])
def test_what_is_written_is_what_was_meant(way: str, folder: Path) -> None:
    """Values of one key or two, by `params.written`, by an overlay of a preset, and by the writer of `dvc exp run -S`.

    Each comes back as it was, and lines of other keys stay as they were.
    """
    if way == "DVC":
        pytest.importorskip("dvc")
    path = folder / "params.yaml"
    (folder / preset.FOLDER).mkdir()
    (folder / preset.FOLDER / "base.yaml").write_text(SMALL)
    original = params.mapping_of(SMALL, "params.yaml")
    overlay = folder / preset.FOLDER / "own.yaml"

    def trial(drawn: dict[tuple[str, str], Any]) -> Callable[[], Any]:
        meant = {block: dict(inner) for block, inner in original.items()}
        some: dict[str, Any] = {}
        for (block, key), value in drawn.items():
            meant[block][key] = some.setdefault(block, {})[key] = value
        dit = some.get("backbones", {}).get("dit")
        if way == "preset" and isinstance(dit, dict):  # blocks are merged there, key by key
            meant["backbones"]["dit"] = original["backbones"]["dit"] | dit
        path.write_text(SMALL, encoding="utf-8")
        overlay.write_text(params.written(some), encoding="utf-8")
        if way == "DVC":
            from dvc.utils.serialize import modify_yaml

            with modify_yaml(path) as document:
                for (block, key), value in drawn.items():
                    document[block][key] = value

        def read() -> None:
            text = path.read_text(encoding="utf-8") if way == "DVC" else params.written(meant)
            if way == "preset":
                text = preset.render(["own"], folder / preset.FOLDER)
            found = params.mapping_of(text, "params.yaml")
            if repr(found) != repr(meant):
                raise Wrong(f"{found} of {meant}")
            if way == "written" and params.written(found) != text:
                raise Wrong("another text when it is written again")

        return read

    drawn = st.dictionaries(st.sampled_from(KEYS), plain().filter(kept), min_size=1, max_size=2)
    campaign("params.yaml written", drawn, trial, 120, folder=folder, names=["params.yaml", "own.yaml"])
