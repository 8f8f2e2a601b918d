"""The harness itself: it finds each fault that is planted in a reader, and nothing in a reader without one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judge
import pytest
from hypothesis import strategies as st
from judge import Tally, Wrong, campaign
from mutations import as_json, edited, edits, rewritings, rewritten

from facm.runtime.files import load_record

pytestmark = pytest.mark.slow

VALUE: dict[str, Any] = {"num": 3, "name": "x", "shape": [1, 2], "inner": {"a": 0.5}}


def tried(folder: Path, read: Callable[[Path], Any], num: int = 300) -> Tally:
    """A campaign of JSON files."""
    path = folder / "meta.json"

    def trial(drawn: Any) -> Callable[[], Any]:
        path.write_bytes(
            edited(as_json(VALUE), drawn[1]) if drawn[0] == "bytes" else as_json(rewritten(VALUE, drawn[1]))
        )
        return lambda: read(path)

    inputs = st.tuples(st.just("bytes"), edits(60)) | st.tuples(st.just("values"), rewritings())
    return campaign("planted", inputs, trial, num, folder=folder, names=["meta.json"])


def careful(path: Path) -> Any:
    """A reader of the package's own."""
    return load_record(path, dict[str, Any], "make it again")


def careless(path: Path) -> Any:
    """Knows nothing of damage."""
    return json.loads(path.read_text())["num"] + 1


def slow(path: Path) -> Any:
    """Believes what a file says of its size."""
    value = careful(path)
    if value.get("num") != 3:
        time.sleep(60)


def meddling(path: Path) -> Any:
    """Mends what it reads."""
    value = careful(path)
    path.write_text(json.dumps(value))


def wrong(path: Path) -> Any:
    """Takes what is there for what is meant."""
    if careful(path).get("num") != 3:
        raise Wrong("another number than the one that was written")


def test_a_careful_reader_has_no_fault_and_both_reads_and_refuses(folder: Path) -> None:
    tally = tried(folder, careful)
    assert tally.read > 20 and tally.refused > 20 and tally.inputs >= 300


@pytest.mark.parametrize(
    ("reader", "signatures"),
    [
        (careless, ["KeyError", "TypeError", "UnicodeDecodeError", "JSONDecodeError"]),
        (slow, ["hang in"]),
        (meddling, ["touched"]),
        (wrong, ["misread: another number"]),
    ],
)
def test_a_planted_fault_is_found(
    reader: Callable[[Path], Any], signatures: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "LIMIT_S", 0.1 if reader is slow else judge.LIMIT_S)
    with pytest.raises(AssertionError, match="planted: [0-9]+ faults among") as found:
        tried(folder, reader, 60 if reader is slow else 300)
    assert all(signature in str(found.value) for signature in signatures)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("data/meta.json is damaged (Expecting value: line 1): remove it", ""),
        ("data/meta.json: 'int' object has no attribute 'get' at all", "Python's own words"),
        ("the file is damaged: remove it and begin again", "names no file"),
        ("meta.json is bad", "says no rule"),
    ],
)
def test_a_message_must_name_the_file_and_a_rule_in_our_words(text: str, why: str) -> None:
    def refuse(path: Path, *rest: Any) -> Any:
        raise ValueError(text)

    code = compile(f"def fail():\n    raise ValueError({text!r})\n", judge.PACKAGE + "planted.py", "exec")
    space: dict[str, Any] = {}
    exec(code, space)
    with pytest.raises(ValueError) as error:
        space["fail"]()
    assert judge.not_ours(error.value, ["meta.json"]) == why
    with pytest.raises(ValueError) as error:
        refuse(Path())
    assert judge.not_ours(error.value, ["meta.json"]) == "raised elsewhere"


def test_the_same_inputs_come_again_in_every_run(folder: Path) -> None:
    seen: list[list[str]] = [[], []]
    for some in seen:
        campaign(
            "planted", edits(50), lambda drawn, some=some: some.append(repr(drawn)) or dict, 50, folder=folder, names=[]
        )
    assert seen[0] == seen[1] and len(set(seen[0])) > 40
