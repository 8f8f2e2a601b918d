"""Fenced blocks of a Markdown file, marked by a comment `<!-- test: ... -->` before them, and how they are run."""

import re
import runpy
import shlex
import sys
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    marker: str
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command, without comments."""
        lines = (shlex.split(part, comments=True) for line in self.text.splitlines() for part in line.split(" && "))
        return [words for words in lines if words]


def fenced(text: str) -> list[Block]:
    """The fenced blocks of a document, in order; those in a list are indented."""
    fence = re.compile(r"^(?:<!-- test: ([^\n]*) -->\n)?( *)```(\w*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
    return [Block(m[1] or "", m[3], re.sub(f"^{m[2]}", "", m[4], flags=re.M)) for m in fence.finditer(text)]


def among(blocks: list[Block], marker: str) -> list[Block]:
    """The blocks whose marker begins so."""
    return [block for block in blocks if block.marker.startswith(marker)]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `python -m MODULE ...` in this process, in the current folder."""
    assert words[:2] == ["python", "-m"], f"only `python -m` is run here, not {shlex.join(words)}"
    monkeypatch.setattr(sys, "argv", words[2:])
    runpy.run_module(words[2], run_name="__main__")
