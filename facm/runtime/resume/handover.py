"""What a finished run leaves to those who waited for it: copies of its outputs, so that nobody trains it again.

* outputs/: the files that dvc.yaml says the stage makes, each under its own path
* outputs.json: their sha256 by path; written last, without it there is nothing to take
"""

import os
import shutil
from pathlib import Path

from facm.runtime import files
from facm.runtime.resume import locks

OUTPUTS, INDEX = "outputs", "outputs.json"


def offer(folder: Path, outputs: list[str]) -> bool:
    """Copy a stage's outputs into the folder of its run; returns whether they are all there."""
    paths = [Path(path) for path in outputs]
    if not paths or not all(path.exists() for path in paths):
        return False
    index = {str(file): _copy(file, folder / OUTPUTS / file) for path in paths for file in _files(path)}
    files.save_json(folder / INDEX, index)
    return True


def offered(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def take(folder: Path, outputs: list[str]) -> bool:
    """Put copies of what was offered in place; False, and nothing is touched, where it is damaged."""
    try:
        index: dict[str, str] = files.load_record(folder / INDEX, dict[str, str], f"remove {folder}")
    except ValueError:
        return False
    kept = {str(file.relative_to(folder / OUTPUTS)) for file in _files(folder / OUTPUTS) if file.is_file()}
    if kept != index.keys() or any(not _whole(folder / OUTPUTS / file, digest) for file, digest in index.items()):
        return False
    temporaries = {output: output.with_name(output.name + ".tmp") for output in map(Path, outputs)}
    for output, temporary in temporaries.items():
        _clear(temporary)
        its = [Path(file) for file in index if Path(file).is_relative_to(output)]
        for file in its:
            _copy(folder / OUTPUTS / file, temporary / file.relative_to(output) if file != output else temporary)
        if not its:  # an empty folder: a file names itself
            temporary.mkdir(parents=True)
    for output, temporary in temporaries.items():
        _clear(output)
        os.replace(temporary, output)
        files.fsync_dir(output.parent)
    return True


def withdraw(folder: Path) -> None:
    """Offer nothing any more."""
    _clear(folder / INDEX)
    _clear(folder / OUTPUTS)


def keep_nothing_else(folder: Path) -> None:
    """Remove from the folder what the outputs were made from: saves, snapshots, shards."""
    for path in folder.iterdir():
        if path.name not in (OUTPUTS, INDEX, locks.LOCK, locks.WAITERS):
            _clear(path)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _copy(source: Path, target: Path) -> str:
    """Copy a file, whole or not at all; returns its sha256."""
    with source.open("rb") as read, files.atomic_write(target) as written:
        shutil.copyfileobj(read, written)
    return files.sha256(target)


def _whole(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256(path) == digest


def _clear(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
