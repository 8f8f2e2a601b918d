"""A team in a temporary folder: a bare git repository, a DVC remote, clones; our pipeline with stubs for stages."""

import re
import shutil
from pathlib import Path

from clone import SOURCE, Clone, make, own_cache
from documents import among, fenced

PAGE = (SOURCE / "docs/sharing.md").read_text()


def commands(marker: str, values: dict[str, str]) -> list[list[str]]:
    """Arguments of the `dvc` commands in a marked block of docs/sharing.md, with the example's values replaced."""
    (block,) = among(fenced(PAGE), marker)
    assert all(example in block.text for example in values), f"docs/sharing.md, {marker}: lacks one of {[*values]}"
    return [[_replaced(word, values) for word in words[1:]] for words in block.commands]


def _replaced(word: str, values: dict[str, str]) -> str:
    for example, value in values.items():
        word = word.replace(example, value)
    return word


class Team:
    """A bare git repository and the clones of it; `first` is at an experiment, `cos`."""

    def __init__(self, folder: Path):
        self.folder, self.git = folder, folder / "origin.git"
        (folder / "first").mkdir()
        self.first = make(folder / "first")
        shutil.copy(SOURCE / "tests/stub.py", self.first.root)
        text = (self.first.root / "dvc.yaml").read_text()
        text = re.sub(r"cmd: python -m facm\.launch stages\.(\w+)", r"cmd: python stub.py \1", text)
        text = text.replace("python -m facm.launch stages.${teacher.stage}", "python stub.py teacher")
        assert text.count("stub.py") == 8
        (self.first.root / "dvc.yaml").write_text(text)
        self.first.run("git", "init", "-q", "--bare", str(self.git))
        self.first.git("remote", "add", "origin", str(self.git))
        for words in commands("folder", {"/mnt/team/facm": str(folder / "remote")}):
            self.first.dvc(*words)
        self.first.commit()

    def clone(self, name: str) -> Clone:
        """A further clone, in which nothing lies and nothing is in the cache."""
        self.first.run("git", "clone", "-q", str(self.git), str(self.folder / name))
        clone = Clone(self.folder / name)
        own_cache(clone)
        return clone
