"""docs/using.md is true: its commands and its Python run as they stand, on a small student and teacher."""

import os
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documents import Block, fenced, run
from miniature import ROOT, write_checkpoint, write_latents

from facm.export import __main__, locate

PAGE = (ROOT / "docs/using.md").read_text()


def marked(marker: str) -> list[Block]:
    return [block for block in fenced(PAGE) if block.marker == marker]


def execute(block: Block) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block.text, "docs/using.md", "exec"), names)
    return names


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with data/student and data/teacher of random weights, for digits."""
    data = write_latents(tmp_path / "data/latents", num=20, classes=10, side=8)
    write_checkpoint(tmp_path / "data/student", data, kind="student")
    write_checkpoint(tmp_path / "data/teacher", data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_marked_blocks_run_in_order(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, drawn = [], []
    for block in marked("tiny"):
        if block.language == "python":
            drawn.append(execute(block))
        for words in block.commands if block.language == "bash" else []:
            run(words, monkeypatch)
            made += [tiny / out for flag, out in pairwise(words) if flag == "--out"]
    assert len(made) == 9 and all(path.exists() for path in made)
    ours, theirs = drawn
    assert ours["images"].shape == (3, 8, 8, 1) and ours["images"].dtype == "uint8"
    assert all((ours["images"][i, ..., 0] == theirs["images"][i]).all() for i in range(3)), "as the page says"
    assert theirs["levels"].shape == (3, 8, 8, 1) and len(theirs["guided"]) == 3


def test_the_places_that_are_not_here_are_what_the_page_says(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def found(*place: Any) -> Path:
        asked.append(place)
        return tiny / "data/student"

    monkeypatch.setattr(locate, "_from_dvc", found)
    monkeypatch.setattr(locate, "_from_hub", found)
    (block,) = marked("remote")
    execute(block)
    assert asked == [
        ("https://host/team/repository.git", "data/student", "student@v1.0.0"),
        ("git@host:team/repository.git", "data/teacher", "main"),
        ("team/digits-student", None, None),
    ]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxruntime") is None and not os.environ.get("CI"), reason="the extra onnx is missing")
def test_the_graph_is_used_as_the_page_says(tiny: Path) -> None:
    __main__.export(Path("data/student"), Path("digits-student"), onnx=True)
    (block,) = marked("onnx")
    images = execute(block)["images"]
    assert images.shape == (3, 1, 8, 8) and images.dtype == np.uint8 and len(np.unique(images)) > 20


def test_every_block_is_marked_or_is_the_one_of_the_extra() -> None:
    (left,) = (block for block in fenced(PAGE) if not block.marker)
    assert left.commands == [
        ["python", "-m", "facm.export", "data/student", "--out", "digits-student", "--onnx"],
    ]


def test_every_flag_that_the_page_names_exists() -> None:
    from facm import generate

    known = generate._parser().format_help() + (ROOT / "facm/export/__main__.py").read_text()
    for flag in set(re.findall(r"`(--[a-z-]+)`", PAGE)):
        assert f"{flag}" in known, flag
