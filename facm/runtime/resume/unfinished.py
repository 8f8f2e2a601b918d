"""What can be seen of an unfinished run from outside: how far it is, how large, how old, and who has it."""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from facm.runtime.log import span
from facm.runtime.resume import handover, locks
from facm.runtime.resume.locks import Holder

SAVE = re.compile(r"state-([0-9]{1,18})\.safetensors")


@dataclass(frozen=True)
class Unfinished:
    """One folder of `.work`, looked at."""

    folder: Path  # its place; the name is <stage>-<key>
    holder: Holder  # who took it last
    step: int | None  # of the newest save; None where there is none
    shards: int  # finished ones, of latents
    size: int  # bytes of all its files
    age_s: float  # since something was last written
    in_use: bool  # in_use, awaited: a process works on it, or waits for it
    awaited: bool
    finished: bool  # it is done, and kept for those who wait

    @classmethod
    def of(cls, folder: Path) -> "Unfinished":
        """Look at a folder; a run may be writing into it meanwhile."""
        steps, shards, size, newest = [], 0, 0, 0.0
        for path in (Path(parent, name) for parent, _, names in os.walk(folder) for name in names):
            with suppress(FileNotFoundError):
                about = path.stat()
                size += about.st_size
                newest = max(newest, about.st_mtime if path.name not in (locks.LOCK, locks.WAITERS) else 0.0)
            if saved := SAVE.fullmatch(path.name):
                steps.append(int(saved[1]))
            shards += path.match("shard_*.json")
        holder = Holder.of(folder)
        age_s = max(0.0, time.time() - (newest or holder.began_s or time.time()))
        used, awaited = locks.in_use(folder), locks.awaited(folder)
        return cls(
            folder, holder, max(steps, default=None), shards, size, age_s, used, awaited, handover.offered(folder)
        )

    @property
    def free(self) -> bool:
        return not self.in_use and not self.awaited

    @property
    def reached(self) -> str:
        if self.finished:
            return "finished, kept for those who wait"
        if self.step is not None:
            return f"step {self.step}" + (f" of {self.holder.steps}" if self.holder.steps else "")
        return f"{self.shards} shards" if self.shards else "nothing saved yet"

    @property
    def used_by(self) -> str:
        """Who has it, or that nobody has."""
        waiting = "awaited" if self.awaited else ""
        return ", ".join(part for part in (str(self.holder) if self.in_use else "", waiting) if part) or "nobody"

    def __str__(self) -> str:
        """How far it is, and since when."""
        if self.step is None and not self.shards:
            return self.reached
        return f"{self.reached}, saved {span(self.age_s)} ago"


def look(work: Path) -> list[Unfinished]:
    """All unfinished runs in `.work`, by stage and age; whatever else lies there is left out."""
    found = [Unfinished.of(lock.parent) for lock in sorted(work.glob(f"[!.]*/{locks.LOCK}"))]
    return sorted(found, key=lambda run: (run.folder.name.rpartition("-")[0], run.age_s))
