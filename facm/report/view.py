"""What all sections of a page agree on: names of the groups, which NFEs and how many pictures, how large."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from facm.data.images.images import kind
from facm.report.images import PIXELATED, side_of
from facm.report.run import Group, Run
from facm.report.tags import Html, join, tag

COLUMNS = 10  # pictures side by side
NFES = 5  # numbers of evaluations whose pictures are shown, at most
PICTURED = 6  # groups whose pictures are shown, at most
NEAR = 20  # samples beside their nearest train pictures
FAILED = 10  # samples per NFE in the gallery of failures


@dataclass(frozen=True)
class View:
    """How a page shows its groups.

    Attributes:
        letters: A, B, ... where there are several groups, else empty.
        blocks: rows of pictures of the same noise per network.
        side: pixels per side of a picture, at most.
    """

    letters: tuple[str, ...]
    blocks: int
    side: int

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "View":
        """Fit the pictures of these groups into a page."""
        letters = tuple(letter(number) for number in range(len(groups))) if len(groups) > 1 else ("",)
        shape = next((s for group in groups for run in group.runs if (s := picture_shape(run)) is not None), (1, 1, 1))
        blocks = 2 if len(groups) == 1 and max(shape[:2]) <= PIXELATED else 1
        shown = [group.runs[0] for group in groups[:PICTURED]]
        num = sum((len(nfes(run)) + 1) * COLUMNS * blocks + len(nfes(run)) * FAILED + 2 * NEAR for run in shown)
        return cls(letters, blocks, side_of(shape, num))

    def label(self, number: int, what: str) -> str:
        """A name within a page of one group, or of several."""
        return self.together([number], what)

    def together(self, numbers: Sequence[int], what: str) -> str:
        """The same of what these groups have in common."""
        letters = ", ".join(self.letters[number] for number in numbers)
        return f"{letters}: {what}" if letters else what

    def heading(self, words: str) -> Html:
        """A heading within a section: below that of the group where there are several."""
        return tag("h4" if self.letters[0] else "h3", words)

    def pictured(self, groups: Sequence[Group], block: Callable[[Run], Html]) -> Html:
        """A block of pictures per group, of its first run that has any; under its name where there are several."""
        parts = []
        for number, group in enumerate(groups[:PICTURED]):
            run = group.first(lambda run: run.samples(run.nfes[0]))
            if len(groups) > 1:
                parts.append(tag("h3", self.label(number, run.name)))
            parts.append(block(run))
        return join(*parts)

    def legend(self, number: int, group: Group) -> str:
        """A group's name in the legend of a plot."""
        return f"{self.letters[number]} ({group.name})" if self.letters[number] else group.name


def letter(number: int) -> str:
    """A to Z, then A1 to Z1, and so on."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def nfes(run: Run) -> list[int]:
    """The NFEs whose pictures are shown: all, or the first, the last and some between."""
    found = run.nfes
    if len(found) <= NFES:
        return found
    return [found[round(i * (len(found) - 1) / (NFES - 1))] for i in range(NFES)]


def picture_shape(run: Run) -> tuple[int, ...] | None:
    """(H, W, C) of a run's samples; None where they are points or not at hand."""
    for nfe in run.nfes:
        try:
            found = run.samples(nfe)
        except ValueError:  # damaged: the sections that show them tell
            continue
        if found is not None:
            images, _ = found
            return images.shape[1:] if kind(images.dtype, images.shape) == "pictures" else None
    return None
