"""Who works on an unfinished run, and who waits for it: flock on two files in its folder.

* `lock`: held by the process that works on the run, alone; says which process that is
* `waiters`: held, shared, by each process that waits for it; whoever removes the folder holds it alone

The kernel frees a lock when its process ends, however it ends. Across machines this holds where flock does: on NFS 4,
on NFS 3 with its lock daemon, on Lustre mounted with `flock`. A folder that is removed is first moved away, so that
nobody finds it half-removed; hence whoever opens a lock looks whether it is still the one in the folder.
"""

import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from facm.runtime import files

LOCK, WAITERS = "lock", "waiters"
PROCESS = secrets.token_hex(8)  # of this process: in containers that share a folder, pids and hosts may be the same


@dataclass(frozen=True)
class Holder:
    """The process that took a run's lock last; `process` is what those of other machines and containers do not have."""

    ordinal: int = 0  # number of this run among its stage's: unlike a time, it does not depend on a clock
    pid: int | None = None
    host: str | None = None
    process: str | None = None
    experiment: str | None = None  # DVC's name of it
    steps: int | None = None  # that the run is to have in all
    began_s: float | None = None  # when it took the lock, seconds since 1970

    @classmethod
    def me(cls, ordinal: int, steps: int | None) -> "Holder":
        experiment = os.environ.get("DVC_EXP_NAME")
        return cls(ordinal, os.getpid(), socket.gethostname(), PROCESS, experiment, steps, time.time())

    @classmethod
    def of(cls, folder: Path) -> "Holder":
        """Whoever wrote itself into a folder's lock; empty where nobody did, or is just about to."""
        try:
            told = files.load_json(folder / LOCK, "")
            told = told if isinstance(told, dict) else {"ordinal": told}  # a bare number, of earlier versions
            files.refuse_other_form(asdict(cls()) | told, cls, str(folder / LOCK), "")
        except (FileNotFoundError, ValueError):
            return cls()
        return cls(**{field.name: told[field.name] for field in fields(cls) if field.name in told})

    def write(self, lock: IO[str]) -> None:
        """Write this into an open lock."""
        lock.truncate(0)
        lock.write(json.dumps(asdict(self)))
        lock.flush()

    @property
    def here(self) -> bool:
        return (self.pid, self.process) == (os.getpid(), PROCESS)

    def __str__(self) -> str:
        name = f", experiment {self.experiment}" if self.experiment else ""
        return f"pid {self.pid} on {self.host}{name}" if self.pid else "another process"


def take(folder: Path) -> IO[str] | None:
    """A folder's open lock, the folder made where it is missing; None where another process holds it.

    Raises PermissionError where the folder, or the one it lies in, is another user's; the message says what helps.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _locked(folder / LOCK, fcntl.LOCK_EX)
        except BlockingIOError:
            return None
        except PermissionError as error:
            raise PermissionError(
                f"{error.filename} is another user's: who share a .work need one group, `chmod g+rwxs` on it, and "
                "umask 002 (docs/sharing.md)"
            ) from None
        except FileNotFoundError:
            continue


def wait(folder: Path) -> IO[str] | None:
    """Join those who wait for a folder; None where it is just being removed."""
    try:
        return _locked(folder / WAITERS, fcntl.LOCK_SH)
    except (BlockingIOError, FileNotFoundError):
        return None


def in_use(folder: Path) -> bool:
    """Whether a process works on the run."""
    return _held(folder / LOCK, fcntl.LOCK_SH)


def awaited(folder: Path) -> bool:
    """Whether a process waits for it."""
    return _held(folder / WAITERS, fcntl.LOCK_EX)


def remove(folder: Path) -> bool:
    """Remove a folder whose lock the caller holds, unless a process waits for it; returns whether it is gone."""
    try:
        waiters = _locked(folder / WAITERS, fcntl.LOCK_EX)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    with waiters:
        away = folder.with_name(f".{folder.name}")
        shutil.rmtree(away, ignore_errors=True)
        os.replace(folder, away)
        shutil.rmtree(away, ignore_errors=True)
    return True


def remove_unused(folder: Path) -> bool:
    """Remove a folder unless a process works on the run or waits for it; returns whether it is gone."""
    try:
        lock = take(folder)
        if lock is None:
            return False
        with lock:
            return remove(folder)
    except PermissionError:  # another user's
        return False


def _locked(path: Path, kind: int) -> IO[str]:
    """The file, made where it is missing, open and locked.

    Raises BlockingIOError where another process holds it, FileNotFoundError where its folder is gone: the lock would
    guard nothing.
    """
    lock = path.open("a+")
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            raise FileNotFoundError(path)
    except OSError:
        lock.close()
        raise
    return lock


def _held(path: Path, kind: int) -> bool:
    """Whether the lock cannot be had, as one of another user's, or a folder, cannot; else it is had for a moment."""
    try:
        with path.open("r+") as lock:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError, IsADirectoryError):
        return True
    except FileNotFoundError:
        pass
    return False
