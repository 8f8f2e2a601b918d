"""Unfinished work that survives a kill: `.work/<stage>-<key>/` under the repository's root.

DVC deletes a stage's outputs before it runs, so state is kept here until the stage succeeds. The key is a hash of
everything that may change the result: the stage's params, the content of its inputs and of the code that is loaded.
Another run with the same key (a second shell, a queue worker) is refused: the folder is locked.
"""

import fcntl
import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import IO, Any

import torch

from facm import dist

# Modules that may not change a number: editing them does not discard unfinished work.
NEUTRAL = ("check", "checkpoint", "dist", "files", "launch", "log", "names", "params", "table", "work")
KEEP = 3  # unfinished runs kept per stage beside the present one


class Busy(RuntimeError):
    """Another process works on the same unfinished run."""


class Work:
    """The folder of one unfinished run, locked by rank 0 while open."""

    def __init__(self, stage: str, key: str, root: Path | None = None):
        """
        Raises:
            Busy: another process holds the lock.
        """
        parent = (root or repository_root()) / ".work"
        self.folder = parent / f"{stage}-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = (self.folder / "lock").open("w")
        if not dist.is_main():
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"another process is training this very run ({self.folder}): wait for it, or end it "
                "(it may have outlived a killed `dvc repro`)"
            ) from None
        _prune_older(parent, stage, self.folder)

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write the state under a temporary name, then move it into place."""
        temporary = self.state_path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.state_path)

    def load(self) -> dict[str, Any] | None:
        """The last saved state (tensors and plain values only), or None.

        Raises:
            ValueError: a damaged file.
        """
        if not self.state_path.exists():
            return None
        try:
            return torch.load(self.state_path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            cure = f"remove {self.folder}, the run then starts afresh"
            raise ValueError(f"{self.state_path} is damaged ({error}): {cure}") from None

    def finish(self) -> None:
        """The stage has succeeded: remove the folder."""
        shutil.rmtree(self.folder)
        self._lock.close()

    def close(self) -> None:
        """Release the lock and keep the folder."""
        self._lock.close()


def repository_root() -> Path:
    """`$DVC_ROOT` (the main checkout, also in queue workers), else the current folder."""
    return Path(os.environ.get("DVC_ROOT", "."))


def key(params: dict[str, Any], inputs: list[Path], script: str) -> str:
    """Hash of params, of the inputs' self-descriptions and of the loaded code, 16 hex digits.

    Args:
        params: the plain mappings that the stage depends on.
        inputs: `meta.json` or `config.json` of each input; they hold the sha256 of what they describe.
        script: path of the stage's script.
    """
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
    for path in [*sorted(inputs), Path(script), *loaded_code()]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def loaded_code() -> list[Path]:
    """Files of the `facm` modules that this process has imported, less the neutral ones."""
    files = []
    for name, module in sorted(sys.modules.items()):
        parts = name.split(".")
        path = getattr(module, "__file__", None)
        if parts[0] == "facm" and path and Path(path).name != "__init__.py" and parts[-1] not in NEUTRAL:
            files.append(Path(path))
    return files


def _prune_older(parent: Path, stage: str, present: Path) -> None:
    """Keep the newest unfinished runs of a stage; never one that is locked."""
    others = [p for p in parent.glob(f"{stage}-*") if p != present]
    others.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    for folder in others[KEEP:]:
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder)
