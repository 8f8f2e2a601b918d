"""Whether an input is read right or refused in the package's own words, soon, and with nothing else touched.

A reader may answer, or raise an error of the package's own: ValueError or one of its subclasses in facm, a
FileNotFoundError or a SystemExit, whose text is the package's, names the file and says more than Python would. Whatever
else comes out of it is a fault: another type, Python's own words, a file that is not named, a wrong answer, a file
that is changed, or no answer in time.

FUZZ_TIMES multiplies the number of inputs, FUZZ_SEED takes others than those of every run, FUZZ_TALLY names a file to
which each campaign adds a line: kind, inputs, read, refused, known faults.
"""

import faulthandler
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, strategies

import facm

TIMES, SEED = int(os.environ.get("FUZZ_TIMES", "1")), os.environ.get("FUZZ_SEED")
CPU_S, LIMIT_S, KILL_S = 5.0, 20.0, 90.0
"""For one input: time of the processor, of the clock, and until the process is ended, whatever it hangs in."""
PACKAGE = str(Path(facm.__file__).parent) + os.sep
OURS = (ValueError, FileNotFoundError, SystemExit)
PYTHONS_WORDS = re.compile(
    r"object (?:has no attribute|is not |of type )|not subscriptable|unhashable|index out of range|invalid literal|"
    r"unexpected keyword argument|positional argument|not enough values|too many values|could not convert|"
    r"not supported between|unsupported operand|must be (?:str|real|an integer|a string)|\[Errno"
)


class Hang(BaseException):
    """A reader that has not answered in time."""


class Wrong(AssertionError):
    """An answer that is not what the input says."""


@dataclass
class Tally:
    """What came of the inputs of one kind.

    Attributes:
        read, refused: how many.
        known: faults that KNOWN lists.
        faults: per signature the smallest input, what happened, and how often.
    """

    read: int = 0
    refused: int = 0
    known: int = 0
    faults: dict[str, tuple[str, str, int]] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.read + self.refused + self.known + sum(number for _, _, number in self.faults.values())


KNOWN: dict[str, tuple[str, ...]] = {}
"""Per kind, beginnings of the signatures of faults that are known and not mended yet."""


def campaign(
    kind: str,
    inputs: "strategies.SearchStrategy[Any]",
    trial: Callable[[Any], Callable[[], Any]],
    num: int,
    *,
    folder: Path,
    names: Iterable[str],
) -> Tally:
    """Try a reader on many inputs; every fault is met once, with the smallest input that shows it.

    Args:
        kind: of inputs.
        inputs: drawn by hypothesis, the same ones in every run.
        trial: lays an input into the folder and returns what reads it, and raises Wrong where it was misread.
        num: inputs.
        folder: of the files; nothing in it may change while they are read.
        names: of which an error must hold one.

    Raises:
        AssertionError: there were faults.
    """
    tally, named = Tally(), list(names)
    met = tally.faults

    @hypothesis.settings(
        max_examples=num * TIMES,
        derandomize=SEED is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(inputs)
    def each(drawn: Any) -> None:
        read = trial(drawn)
        try:
            judge(read, folder=folder, names=named, tally=tally)
        except Fault as fault:
            if any(fault.signature.startswith(known) for known in KNOWN.get(kind, ())):
                tally.known += 1
                return
            shown = repr(drawn)
            number = 1 + met[fault.signature][2] if fault.signature in met else 1
            if number == 1 or len(shown) < len(met[fault.signature][0]):
                met[fault.signature] = (shown, str(fault), number)
            else:
                met[fault.signature] = (*met[fault.signature][:2], number)

    (each if SEED is None else hypothesis.seed(int(SEED))(each))()
    if "FUZZ_TALLY" in os.environ:
        with open(os.environ["FUZZ_TALLY"], "a") as file:
            print(kind, tally.inputs, tally.read, tally.refused, tally.known, sep="\t", file=file)
    if met:
        text = "\n\n".join(
            f"* {n} x {signature}\n  input {shown[:600]}\n  {told}" for signature, (shown, told, n) in met.items()
        )
        raise AssertionError(f"{kind}: {len(met)} faults among {num * TIMES} inputs\n{text}")
    return tally


class Fault(Exception):
    """What a reader must not do; `signature` tells one fault from another."""

    def __init__(self, signature: str, told: str):
        super().__init__(told)
        self.signature = signature


def judge(read: Callable[[], Any], *, folder: Path, names: list[str], tally: Tally) -> None:
    """Read one input.

    Raises:
        Fault: it is neither read right nor refused by the rules above.
    """
    before = looked(folder)
    try:
        with bounded():
            read()
        tally.read += 1
    except Wrong as error:
        raise Fault(f"misread: {error}"[:80], str(error)) from error
    except Hang as error:
        raise Fault(
            f"hang in {_place(error)}", f"no answer in {CPU_S:g} s of the processor, or in {LIMIT_S:g} s"
        ) from error
    except (Exception, SystemExit) as error:
        if why := not_ours(error, names):
            told = "".join(traceback.format_exception(error)[-4:])
            raise Fault(f"{why}: {type(error).__name__} in {_place(error)}", told[-1500:]) from error
        tally.refused += 1
    changed = sorted(path for path, state in looked(folder).items() ^ before.items())
    if changed:
        raise Fault("touched", f"reading has changed {changed[:5]}")


def not_ours(error: BaseException, names: list[str]) -> str:
    """Why an error is none of the package's; empty where it is."""
    kind, text = type(error), str(error)
    if not isinstance(error, OURS) or not (kind in OURS or kind.__module__.partition(".")[0] == "facm"):
        return "Python's own"
    if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE):
        return "raised elsewhere"
    if PYTHONS_WORDS.search(outside(text)):
        return "Python's own words"
    if not any(name in text for name in names):
        return "names no file"
    return "" if len(text.split()) > 3 else "says no rule"


def outside(text: str) -> str:
    """A message without what stands in parentheses: there a library may say what it missed."""
    while (shorter := re.sub(r"\([^()]*\)", "", text)) != text:
        text = shorter
    return text


@contextmanager
def bounded() -> Iterator[None]:
    """Raise Hang where the block takes too long; end the process where even that does not reach it."""

    def expired(number: int, frame: Any) -> None:
        raise Hang

    timers = ((signal.SIGALRM, signal.ITIMER_REAL, LIMIT_S), (signal.SIGPROF, signal.ITIMER_PROF, CPU_S))
    old = [signal.signal(number, expired) for number, _, _ in timers]
    faulthandler.dump_traceback_later(KILL_S, exit=True, file=sys.__stderr__)
    for _, timer, limit_s in timers:
        signal.setitimer(timer, limit_s)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, old, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        faulthandler.cancel_dump_traceback_later()


def looked(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Which files a folder holds, and which they are: number, size, time of the last change."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            about = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


def _place(error: BaseException) -> str:
    """The last function of the package on the way to an error, with its line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "no code of facm"
