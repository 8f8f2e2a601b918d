"""A revision or experiment as it is in git and in DVC's cache; the workspace is not touched, and nothing is fetched."""

import subprocess
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facm.report.run import Workspace
from facm.runtime.files import load_record
from facm.runtime.params import mapping_of, read_text

LOCK, OWN = "dvc.lock", "report"
CODE = ("facm", "stages")  # folders of code; elsewhere it is files that end in .py
SUBJECT = 60  # characters of a commit's subject


@dataclass
class Revision:
    """See `facm.report.run.Origin`.

    Attributes:
        commit: its full hash.
        root: of the project, which is the git repository or a folder in it.
        cache: DVC's local cache.
        blobs: an empty folder for files out of git, which is the caller's to remove.
        outs: hash of each output, `.dir` at the end of a folder's, by path.
    """

    commit: str
    root: Path
    cache: Path
    blobs: Path
    outs: dict[str, str]
    facts: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    _missing: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, name: str, blobs: Path) -> "Revision":
        """Find a revision by branch, tag, hash or an experiment's name.

        Raises:
            ValueError: there is none, or it has no dvc.lock, or this is no repository of git and DVC.
        """
        from dvc.exceptions import DvcException, NotDvcRepoError
        from dvc.repo import Repo
        from dvc.scm import resolve_rev
        from scmrepo.exceptions import SCMError

        try:
            with Repo() as repo:
                commit, root, cache = resolve_rev(repo.scm, name), Path(repo.root_dir), Path(repo.cache.local.path)
        except NotDvcRepoError:
            raise ValueError("this is no DVC repository: run it at the root of a clone") from None
        except (DvcException, SCMError) as error:
            raise ValueError(f"there is no revision or experiment '{name}' ({error})") from None
        blobs.mkdir(parents=True, exist_ok=True)
        revision = cls(commit, root, cache, blobs, {})
        lock = revision._show(LOCK)
        if lock is None:
            raise ValueError(f"{name} has no {LOCK}: was `dvc repro` run before it was committed?")
        stages = stages_of(lock.decode(), f"{name}: {LOCK}")
        revision.outs = {out["path"]: out["md5"] for s in stages.values() for out in s.get("outs", ()) if "md5" in out}
        revision.code = code_of(stages)
        revision.facts = revision._facts()
        return revision

    def path(self, name: str) -> Path | None:
        """See Origin: a file of the cache, or one out of git."""
        out = self._out(name)
        content = None if out is not None and out != name else self._show(name)
        if content is not None:  # an output that is not cached lies in git
            path = self.blobs / name.replace("/", "--")
            path.write_bytes(content)
            return path
        return None if out is None else self._cached(name, out)

    def names(self, folder: str) -> list[str]:
        """See Origin."""
        md5 = self.outs.get(folder)
        if md5 is None:
            listed = self._git("ls-tree", "-r", "--name-only", "-z", self.commit, "--", f"{folder}/")
            return sorted(name.removeprefix(f"{folder}/") for name in (listed or b"").decode().split("\0") if name)
        entries = self._entries(md5)
        if entries is None:
            self._missing.add(folder)
        return sorted(entries or ())

    def missing(self) -> list[str]:
        """See Origin."""
        return sorted(self._missing)

    def _out(self, name: str) -> str | None:
        """The output that a path is, or lies in."""
        return next((str(p) for p in (Path(name), *Path(name).parents) if str(p) in self.outs), None)

    def _cached(self, name: str, out: str) -> Path | None:
        """A file that is an output or lies in one; noted as missing where the cache lacks it."""
        md5: str | None = self.outs[out]
        if out != name:
            entries = self._entries(self.outs[out])
            md5 = None if entries is None else entries.get(str(Path(name).relative_to(out)))
            if entries is not None and md5 is None:
                return None  # the run has made no such file
        path = None if md5 is None else self._object(md5)
        if path is None or not path.is_file():
            self._missing.add(out)
            return None
        return path

    def _entries(self, md5: str) -> dict[str, str] | None:
        """Hashes of a folder's files by their relative paths; None where the folder is not in the cache."""
        path = self._object(md5)
        if not md5.endswith(".dir") or not path.is_file():
            return None
        listed = load_record(path, list[dict[str, str]], "remove it, and run `dvc pull`")
        return {entry.get("relpath", ""): entry.get("md5", "") for entry in listed}

    def _object(self, md5: str) -> Path:
        return self.cache / md5[:2] / md5[2:]

    def _show(self, name: str) -> bytes | None:
        """A file of the project out of git; None where it is not in there."""
        return self._git("show", f"{self.commit}:./{name}")  # ./: from root, which may be a folder in the repository

    def _git(self, *arguments: str) -> bytes | None:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def _facts(self) -> dict[str, str]:
        told = self._git("log", "-1", "--format=%cs%n%s", self.commit) or b""
        date, _, subject = told.decode(errors="replace").strip().partition("\n")
        return {"commit": self.commit[:12], "date": date, "subject": textwrap.shorten(subject, SUBJECT)}


def workspace(root: Path) -> Workspace:
    """The workspace, with the code that its dvc.lock names."""
    path = root / LOCK
    stages = stages_of(read_text(path), LOCK) if path.is_file() else {}
    return Workspace(root, {"commit": "workspace, not committed"}, code_of(stages))


def stages_of(lock: str, where: str) -> dict[str, dict[str, Any]]:
    """The stages of a dvc.lock, except the report itself."""
    stages: dict[str, dict[str, Any]] = mapping_of(lock, where).get("stages") or {}
    return {name: stage for name, stage in stages.items() if name != OWN}


def code_of(stages: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Hashes of the code that stages depended on, files and folders, by path."""
    deps = [dep for stage in stages.values() for dep in stage.get("deps", ())]
    code = [dep for dep in deps if dep["path"].endswith(".py") or Path(dep["path"]).parts[0] in CODE]
    return {dep["path"]: dep.get("md5", "") for dep in code}
