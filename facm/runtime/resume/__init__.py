"""Unfinished work that survives a kill: `.work/<stage>-<key>/` under the repository's root.

DVC deletes a stage's outputs before it runs, so state is kept here until the stage succeeds. The key is a hash of
everything that may change the result: the stage's params, the content of its inputs and of the code that is loaded.
Another run with the same key (a second shell, a queue worker, a clone that shares the folder) waits for the first
(`facm.runtime.resume.locks`): it is given copies of its outputs, or goes on from its last save where it ends without
any.

A save is copied at once and written by a thread while training goes on. The two newest are kept,
`state-<step>.safetensors`, each with a checksum: where the newest is damaged, the one before it is taken.

`python -m facm.work` lists what is unfinished, and removes it.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor

from facm.runtime import dist, files
from facm.runtime.log import say, span
from facm.runtime.params import PATH, outputs, raw
from facm.runtime.paths import repository_root
from facm.runtime.resume import handover, locks
from facm.runtime.resume.locks import Holder
from facm.runtime.resume.unfinished import Unfinished
from facm.runtime.resume.waiting import Waiting

# What may not change a number: editing it does not discard unfinished work.
NEUTRAL = ("facm.runtime.", "facm.check.", "facm.launch", "facm.networks.checkpoint")
PLAIN = "plain values"  # name of the tensor with their JSON
KEEP = 3  # unfinished runs kept per stage beside the present one, however old
KEEP_S = 14 * 86400.0  # others go that were not written to for so long
POLL_S = 0.5  # between two looks of a waiting process
HELD, SERVED, ORPHANED = "held", "served", "orphaned"  # what such a look finds


class Busy(RuntimeError):
    """This very process works on the same unfinished run already: it would wait for itself."""


class Served(SystemExit):
    """Another process has finished this very run while this one waited; its outputs are in place: success."""

    def __init__(self) -> None:
        super().__init__(0)


class Damaged(ValueError):
    """A save that is not what was written."""


class Step(TypedDict):
    """What every state has."""

    step: int


class Saved(TypedDict):
    """What a save holds."""

    state: Step
    beside: dict[str, int]  # sizes of the snapshots in the folder


class Work:
    """The folder of one unfinished run, locked by rank 0 while open. Rank 0 writes, all ranks read."""

    def __init__(self, stage: str, key: str, root: Path | None = None, keep: int = KEEP):
        """Take the lock of a run of a stage; `key` is that of what may change its result.

        Of unfinished runs with other keys the newest `keep` stay, however old they are. Where another process is at
        work on this run, wait until it has ended.

        Raises:
            Served: it has finished, and what it made now lies here, too; there is nothing left to do.
            SystemExit: a signal, or the death of DVC, while waiting.
            Busy: that process is this one.
        """
        self.stage = stage
        parent = (root or repository_root()) / ".work"
        self.folder = parent / f"{stage}-{key}"
        self._starter = _starter()
        self._lock: IO[str] | None = None
        self._writer = ThreadPoolExecutor(1, "save")
        self._writing: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}  # taken anew by each save: to allocate them is slower than to copy
        self._newest: Path | None = None  # the newest save that is whole
        self._waiting: Waiting | None = None
        self._enter()
        if dist.is_main() and self._lock is not None:
            others = [Holder.of(other).ordinal for other in parent.glob(f"{stage}-*")]
            Holder.me(1 + max(others), _steps(stage)).write(self._lock)
            _prune_older(parent, stage, self.folder, keep)

    @property
    def orphaned(self) -> bool:
        """DVC, which started this run, has died: nobody takes down what comes out of it."""
        return "DVC_STAGE" in os.environ and _starter() != self._starter

    def save(self, state: dict[str, Any], *, wait: bool = False) -> None:
        """Copy the state now and write it behind training (`wait`: at once), after the save before is on the disk.

        The state is nested tensors and plain values; `step` names the file. Raises OSError where this save (with
        `wait`) or the one before could not be written.
        """
        if not dist.is_main():
            return
        self.flush()
        text, tensors = files.flatten({"state": state, "beside": self._beside()})
        self._copy(tensors)
        self._writing = self._writer.submit(self._write, self.folder / f"state-{state['step']:08d}.safetensors", text)
        if wait:
            self.flush()

    def flush(self) -> None:
        """Wait until the last save is on the disk; raises as `save` does."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self) -> dict[str, Any] | None:
        """The newest save that is whole, or None where there is none; a damaged one is reported and passed over.

        Raises ValueError where all of them are damaged.
        """
        told = ""
        for path in sorted(self.folder.glob("state-*.safetensors"), reverse=True):
            try:
                state = self._read(path)
            except Damaged as error:
                told += f"{path} is damaged ({error}): "
                continue
            if told and dist.is_main():
                say(f"{told}going on from step {state['step']}, saved before it")
            self._newest = path
            return state
        if told:
            raise ValueError(f"{told}remove {self.folder}, the run then starts afresh")
        return None

    def finish(self) -> None:
        """The stage has succeeded: leave its outputs to those who wait, else remove the folder.

        Where DVC has died, nobody takes down the outputs, and the stage will be run again: the folder is kept.
        """
        if self._writing is not None:
            self._writing.exception()
        if dist.is_main():
            removed = not self.orphaned and locks.remove(self.folder)
            if not removed and locks.awaited(self.folder):
                self._offer()
            elif not removed and not self.orphaned:
                locks.remove(self.folder)  # what hindered was somebody who only looked
        self._release()

    def close(self) -> None:
        """Release the lock and keep the folder; raises as `save` does."""
        try:
            self.flush()
        finally:
            self._release()

    def _enter(self) -> None:
        """Take the lock (rank 0; the others follow what it finds); wait as long as another process holds it."""
        try:
            # Rank 0 tells the others at each look: none of them sits in one collective until it times out.
            while (found := dist.from_main(self._attempt)) == HELD:
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            if dist.is_main():
                say(f"\n{self.stage}: no longer waiting; the same command waits again")
            raise SystemExit(130) from None
        if found == SERVED:
            raise Served
        if found == ORPHANED:
            raise SystemExit(130)

    def _attempt(self) -> str | None:
        """One look of rank 0: None where the run is now this process's."""
        self._lock = locks.take(self.folder)
        if self._lock is None:
            return self._wait()
        waited, self._waiting = self._waiting, None
        served = handover.offered(self.folder) and self._take()
        if waited is not None:
            if not served:
                say(f"{self.stage}: {waited.holder} has ended without finishing; this process takes over")
            waited.close()
        if not served:
            return None
        if not self.orphaned:
            locks.remove(self.folder)
        self._release()
        return SERVED

    def _wait(self) -> str:
        """Another process holds the lock: join those who wait, and report now and then."""
        holder = Holder.of(self.folder)
        if holder.here:
            raise Busy(f"this process is at work on this very run already ({self.folder})")
        if self.orphaned:
            say(f"{self.stage}: DVC, which started this process, is gone: no longer waiting")
            return ORPHANED
        if self._waiting is None:
            joined = locks.wait(self.folder)
            if joined is None:  # it is just being removed
                return HELD
            self._waiting = Waiting(self.stage, self.folder, joined)
        self._waiting.tell()
        return HELD

    def _take(self) -> bool:
        """Put what another process has made in place; returns whether it was whole."""
        if handover.take(self.folder, outputs(self.stage)):
            say(f"{self.stage}: finished by {Holder.of(self.folder)}; its outputs are taken, nothing is computed again")
            return True
        say(f"{self.stage}: the outputs that {self.folder} keeps are damaged, and are made again")
        handover.withdraw(self.folder)
        return False

    def _offer(self) -> None:
        """Leave the outputs to those who wait, in the place of what they were made from."""
        try:
            if handover.offer(self.folder, outputs(self.stage)):
                handover.keep_nothing_else(self.folder)
        except OSError as error:
            handover.withdraw(self.folder)
            say(f"{self.stage}: nothing is left to those who wait for this run, who go on from its last save ({error})")

    def _release(self) -> None:
        self._writer.shutdown()
        if self._lock is not None:
            self._lock.close()

    def _copy(self, tensors: dict[str, Tensor]) -> None:
        """Copy the tensors to memory that training does not touch."""
        kept, self._copies = self._copies, {}
        for name, tensor in tensors.items():
            space = kept.get(name)
            if space is None or (space.shape, space.dtype) != (tensor.shape, tensor.dtype):
                space = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)  # pinned: copied faster
            self._copies[name] = space.copy_(tensor.detach())

    def _write(self, path: Path, text: str) -> None:
        """Write the copies; of the saves before, keep the newest."""
        try:
            plain = torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)  # a header holds 100 MB at most
            checksum = {"checksum": _checksum(text, self._copies)}
            files.save_tensors(path, self._copies | {PLAIN: plain}, checksum)
        except OSError as error:
            needed = sum(tensor.numel() * tensor.element_size() for tensor in self._copies.values())
            free = shutil.disk_usage(self.folder).free
            intact = f"the save {self._newest.name} is intact" if self._newest else "there is no earlier save"
            raise OSError(
                error.errno,
                f"{path} could not be written ({error.strerror}): {needed / 2**20:.1f} MiB are needed, "
                f"{free / 2**20:.1f} MiB are free; {intact}: make room, the same command then goes on from there",
            ) from None
        for other in self.folder.glob("state*"):
            if other not in (path, self._newest):
                other.unlink()
        self._newest = path

    def _read(self, path: Path) -> dict[str, Any]:
        """One save, checked, in memory, so that the file may go; Damaged: it, or a file that lay beside it."""
        try:
            mapped, metadata = files.read_tensors(path)
        except (SafetensorError, OSError) as error:
            raise Damaged(str(error)) from None
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        try:
            text = tensors.pop(PLAIN).numpy().tobytes().decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise Damaged(f"no plain values: {error}") from None
        if metadata.get("checksum") != _checksum(text, tensors):
            raise Damaged("other content than was written")
        try:
            saved = files.unflatten(text, tensors)
            files.refuse_other_form(saved, Saved, "it", "no run of this version has written it")
        except ValueError as error:
            raise Damaged(str(error)) from None
        beside = self._beside()
        for name, size in saved["beside"].items():
            if beside.get(name) != size:
                raise Damaged(f"{name} beside it has {beside.get(name, 'no')} bytes, then it had {size}")
        state: dict[str, Any] = saved["state"]
        return state

    def _beside(self) -> dict[str, int]:
        """Sizes of the snapshots that lie in the folder."""
        paths = sorted(self.folder.glob("*/*.safetensors"))
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in paths}


def key(params: dict[str, Any], inputs: list[Path], script: str) -> str:
    """Hash of a stage's params, of the inputs' self-descriptions and of the loaded code, 16 hex digits.

    Inputs' `meta.json` or `config.json` hold the sha256 of what they describe.
    """
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
    for path in [*sorted(inputs), Path(script), *loaded_code()]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def loaded_code() -> list[Path]:
    """Files of the `facm` modules that this process has imported, less the neutral ones and what belongs to them."""
    code = []
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.startswith("facm.") and path and Path(path).name != "__init__.py" and not name.startswith(NEUTRAL):
            code.append(Path(path))
    return code


def _starter() -> int:
    """Process id of DVC: the nearest ancestor outside the stage. A shell and torchrun may lie between."""
    pid = os.getppid()
    while (parent := _parent_in_stage(pid)) is not None:
        pid = parent
    return pid


def _parent_in_stage(pid: int) -> int | None:
    """Parent of a process that DVC started for a stage; None for any other, and where there is no /proc."""
    process = Path(f"/proc/{pid}")
    try:
        variables, status = (process / "environ").read_bytes(), (process / "stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1]) if b"\0DVC_STAGE=" in b"\0" + variables else None


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """Of all that a save holds, whatever the order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(files.content(tensors[name]))
    return digest.hexdigest()


def _steps(stage: str) -> int | None:
    """Steps of a stage that trains, as params.yaml here says."""
    block = raw().get(stage) if Path(PATH).is_file() else None
    return block.get("steps") if isinstance(block, dict) else None


def _prune_older(parent: Path, stage: str, present: Path, keep: int) -> None:
    """Remove forgotten runs of a stage, none of the latest and none in use; clear what a killed removal left."""
    others = [path for path in parent.glob(f"{stage}-*") if path != present]
    for folder in sorted(others, key=lambda path: Holder.of(path).ordinal, reverse=True)[keep:]:
        age_s = Unfinished.of(folder).age_s
        if age_s >= KEEP_S and locks.remove_unused(folder):
            say(f"{stage}: removed the unfinished {folder}, which was not written to for {span(age_s)}")
    for folder in parent.glob(f".{stage}-*"):
        shutil.rmtree(folder, ignore_errors=True)
