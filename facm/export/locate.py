"""Where a checkpoint is: a folder, a path in a DVC repository at a revision, or a repository on Hugging Face's hub.

What is fetched from a DVC repository stays in $FACM_CACHE (else $XDG_CACHE_HOME/facm, ~/.cache/facm), under the commit
that the revision stands for; huggingface_hub keeps its own. A revision is looked up each time, except a whole commit
id: what was fetched under that is found again without a network.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HUB = "hf://"
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://.+|[\w.-]+@[\w.-]+:.+|.+\.git/?")  # addresses that git takes
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
PATH = "data/student"
WANTED = ["*.json", "*.safetensors"]  # of a repository on the hub


class FetchError(ValueError):
    """A checkpoint that could not be fetched; the message says what was tried."""


def find(where: str | Path, path: str | None = None, rev: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched where it is not here.

    Args:
        where: a folder; or a git repository with DVC (an address; what ends in .git; with `path` or `rev`, a folder);
            or hf://OWNER/NAME.
        path: of the checkpoint in the repository, from the project's root where `where` is the folder of one; None:
            data/student, on the hub its top.
        rev: branch, tag or commit; None: the default branch's head.

    Raises:
        FetchError: a repository, revision or path that is not there, or cannot be reached.
    """
    text = str(where)
    if text.startswith(HUB):
        return _from_hub(text.removeprefix(HUB), path, rev)
    folder = Path(where).is_dir()
    if REMOTE.fullmatch(text) or (folder and (path is not None or rev is not None)):
        return _from_dvc(str(Path(where).resolve()) if folder else text, path or PATH, rev)
    if path is not None or rev is not None:
        raise FetchError(
            f"{where} is no folder and no address, and path {path!r} at rev {rev!r} is asked for: give the git "
            "repository's folder or address (https://..., ssh://..., git@host:...), or hf://OWNER/NAME"
        )
    if Path(where).is_file():
        raise FetchError(f"{where} is a file, not a checkpoint folder; a published file is converted by facm.convert")
    return Path(where)


def hint(where: str | Path) -> str:
    """What else a name that is no folder might have meant; empty where nothing is near."""
    return f"; a repository on the hub is {HUB}{where}" if HUB_NAME.fullmatch(str(where)) else ""


def cache() -> Path:
    """The folder of what was fetched by DVC."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FACM_CACHE") or Path(base) / "facm")


def _from_dvc(url: str, path: str, rev: str | None) -> Path:
    """A path of a DVC repository, as `dvc get` brings it."""
    if rev is not None and COMMIT.fullmatch(rev) and (kept := _place(url, path, rev)).is_dir():
        return kept
    from dvc.exceptions import DvcException
    from dvc.fs import download
    from dvc_data.index.index import DataIndexError

    told = f"{url}, revision {rev or 'default branch'}"
    with ExitStack() as stack:
        try:
            repository = stack.enter_context(_repository(url, rev or "HEAD"))
            commit = repository.get_rev()
        except (DvcException, OSError) as error:
            raise FetchError(f"{told}: {_cause(error)}: check the address, the revision and your access") from None
        kept = _place(url, path, commit)
        if kept.is_dir():
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=kept.parent))) / kept.name
        try:
            download(repository.dvcfs, repository.dvcfs.from_os_path(path), str(out))
        except (DvcException, DataIndexError, OSError) as error:
            raise FetchError(
                f"{told} (commit {commit[:7]}): '{path}' cannot be fetched ({_cause(error)}): is it an output there, "
                "was it pushed (`dvc push`) to the repository's default remote, and can you reach that remote? Of a "
                f"project in a subfolder of the repository, path begins with that: SUBFOLDER/{PATH}"
            ) from None
        if not out.is_dir():
            raise FetchError(f"{told}: '{path}' is a file, not a checkpoint folder: set path, such as {PATH}")
        try:
            os.replace(out, kept)
        except OSError:  # another process was faster
            if not kept.is_dir():
                raise
    return kept


@contextmanager
def _repository(url: str, rev: str) -> Iterator[Any]:
    """A DVC repository at a revision. Paths in it are relative to the project where `url` is a project's folder."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        project = Repo(url, subrepos=True) if Path(url).is_dir() else None
    except NotDvcRepoError:
        project = None
    if project is None:
        with Repo.open(url, rev=rev, subrepos=True, uninitialized=True) as repository:
            yield repository
        return
    with project, project.switch(rev):  # Repo.open would take the whole git repository for the project
        yield project


def _from_hub(name: str, path: str | None, rev: str | None) -> Path:
    """A repository on the hub, in huggingface_hub's cache; with HF_HUB_OFFLINE=1 only what is there."""
    if not HUB_NAME.fullmatch(name):
        raise FetchError(f"{HUB}{name}: write {HUB}OWNER/NAME")
    from huggingface_hub import snapshot_download

    patterns = [f"{path}/{pattern}" for pattern in WANTED] if path else WANTED
    try:
        folder = Path(snapshot_download(name, revision=rev, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise FetchError(
            f"{HUB}{name}, revision {rev or 'main'}: neither in huggingface_hub's cache nor to be fetched "
            f"({type(error).__name__}: {_cause(error)}): check the name, the revision, HF_HUB_OFFLINE and HF_TOKEN"
        ) from None
    if path and not (folder / path).is_dir():
        raise FetchError(f"{HUB}{name}, revision {rev or 'main'}: there is no folder {path}")
    return folder / path if path else folder


def _place(url: str, path: str, commit: str) -> Path:
    """Where the cache keeps a path of a commit."""
    repository = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache() / repository / commit / path.strip("/").replace("/", "--")


def _cause(error: BaseException) -> str:
    """The innermost message of an error, its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
