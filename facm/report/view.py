"""What all sections share: names of the groups, which NFEs and how many images they show, images as data URIs.

Images are PNG within the page: small ones pixel for pixel (the page enlarges them), large ones reduced.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from facm.data.images.images import kind
from facm.report.run import Group, Run

COLUMNS = 10  # images side by side
NFES = 5  # NFEs whose images are shown, at most
GROUPS = 6  # groups whose images are shown, at most
NEAREST = 20  # samples beside their nearest training images
FAILURES = 10  # samples per NFE among the failures
LARGEST = 128  # pixels per side, at most
LEAST = 24  # an image is never reduced below this, whatever the budget
BUDGET = 3_300_000  # bytes of a page's pixels, uncompressed: its PNGs, in base64, stay below 4/3 of that and headers
PIXELATED = 64  # sides up to which a browser is to show pixels


@dataclass(frozen=True)
class View:
    """How a page shows its groups.

    Attributes:
        letters: A, B, ... where there are several groups, else empty.
        blocks: rows of images of the same noise per network.
        side: pixels per side of an image, at most.
    """

    letters: tuple[str, ...]
    blocks: int
    side: int

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "View":
        """Fit the images of these groups into a page."""
        letters = tuple(letter(number) for number in range(len(groups))) if len(groups) > 1 else ("",)
        shape = next((s for group in groups for run in group.runs if (s := image_shape(run)) is not None), (1, 1, 1))
        blocks = 2 if len(groups) == 1 and max(shape[:2]) <= PIXELATED else 1
        shown = [group.runs[0] for group in groups[:GROUPS]]
        num = sum((len(nfes(run)) + 1) * COLUMNS * blocks + len(nfes(run)) * FAILURES + 2 * NEAREST for run in shown)
        return cls(letters, blocks, side_of(shape, num))

    def label(self, number: int, what: str) -> str:
        """A name within a page of one group, or of several."""
        return self.together([number], what)

    def together(self, numbers: Sequence[int], what: str) -> str:
        """A name of what these groups have in common."""
        letters = ", ".join(self.letters[number] for number in numbers)
        return f"{letters}: {what}" if letters else what

    @property
    def heading(self) -> str:
        """Element of a heading within a section: below that of the group where there are several."""
        return "h4" if self.letters[0] else "h3"

    def per_group(self, groups: Sequence[Group], block: Callable[[Run], Markup]) -> Markup:
        """A block per group, of its first run that has samples; under its name where there are several."""
        parts = list[Markup]()
        for number, group in enumerate(groups[:GROUPS]):
            run = group.first(lambda run: run.samples(run.nfes[0]))
            if len(groups) > 1:
                parts.append(Markup("<h3>{}</h3>").format(self.label(number, run.name)))
            parts.append(block(run))
        return Markup("").join(parts)

    def legend(self, number: int, group: Group) -> str:
        """A group's name in the legend of a chart."""
        return f"{self.letters[number]} ({group.name})" if self.letters[number] else group.name


def letter(number: int) -> str:
    """A to Z, then A1 to Z1, and so on."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def nfes(run: Run) -> list[int]:
    """The NFEs whose images are shown: all, or the first, the last and some between."""
    found = run.nfes
    if len(found) <= NFES:
        return found
    return [found[round(i * (len(found) - 1) / (NFES - 1))] for i in range(NFES)]


def image_shape(run: Run) -> tuple[int, ...] | None:
    """(H, W, C) of a run's samples; None where they are points or not available."""
    for nfe in run.nfes:
        try:
            found = run.samples(nfe)
        except ValueError:  # damaged: the sections that show them report it
            continue
        if found is not None:
            images, _ = found
            return images.shape[1:] if kind(images.dtype, images.shape) == "pictures" else None
    return None


def side_of(shape: Sequence[int], num: int) -> int:
    """Pixels per side of `num` images (H, W, C) on a page, so that they keep within BUDGET."""
    height, width, _ = shape
    fits = math.isqrt(BUDGET // (3 * max(1, num)))
    return min(max(height, width), LARGEST, max(LEAST, fits))


def strip(images: np.ndarray, alt: str, side: int) -> Markup:
    """Images uint8 (N, H, W, C) side by side, as one PNG within the page.

    Args:
        images: the images.
        alt: what they are.
        side: pixels per side of an image, at most, see `side_of`.
    """
    small = [reduced(image, side) for image in images]
    height, width = np.asarray(small[0]).shape[:2]
    gap = max(1, height // 16)
    sheet = Image.new("LA" if images.shape[-1] == 1 else "RGBA", (len(small) * (width + gap) - gap, height))
    for i, image in enumerate(small):
        sheet.paste(image.convert(sheet.mode), (i * (width + gap), 0))
    kind = "pixels" if max(height, width) <= PIXELATED else "smooth"
    tag = Markup('<img class="{}" src="{}" alt="{}" width="{}" height="{}">')
    return tag.format(kind, uri(sheet), alt, sheet.width, sheet.height)


def reduced(image: np.ndarray, side: int) -> Image.Image:
    """One image (H, W, C), its larger side at most `side`."""
    whole = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    largest = max(whole.size)
    if largest <= side:
        return whole
    size = tuple(max(1, round(length * side / largest)) for length in whole.size)
    return whole.resize(size, Image.Resampling.BOX)  # type: ignore[arg-type]


def uri(image: Image.Image) -> str:
    """A PNG as a data URI."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
