"""params.yaml: damaged as text, and of other values; presets of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest
import yaml
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import edited, edits, plain, rewritings, rewritten

from facm import check
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

    campaign("params.yaml text", edits(len(WHOLE)), trial, 200, folder=folder, names=["params.yaml"])


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
        "YAML texts", st.one_of(st.tuples(piece, odd, piece), damaged), trial, 300, folder=folder, names=["params.yaml"]
    )


def test_values_of_params_yaml(folder: Path) -> None:
    """Any value in any place, without the way through a file."""
    mapping = yaml.safe_load(WHOLE)

    def trial(changes: Any) -> Callable[[], Any]:
        value = rewritten(mapping, changes)
        return lambda: check.check(params.parse(value))

    campaign(
        "params.yaml values", st.one_of(rewritings(), rewritings(1)), trial, 1500, folder=folder, names=["params.yaml"]
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
        2500,
        folder=folder,
        names=["params.yaml"],
    )


def leaves(value: Any, way: list[Any]) -> list[list[Any]]:
    """Ways to the values that are no mappings, and to the blocks."""
    found = [way] if way else []
    for key, inner in value.items() if isinstance(value, dict) else ():
        found += leaves(inner, [*way, key])
    return found
