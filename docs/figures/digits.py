"""Digits from one noise at several NFE, student and teacher, beside real ones, from the checkpoints of the pipeline."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import facm
from facm.data.datasets.digits import Digits
from studies import figure

SEED, COLUMNS, SIDE, GAP, LEFT = 3, 20, 24, 4, 112  # lengths in points
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # label, checkpoint, how it is sampled
    ("student, NFE 1", "student", {"nfe": 1}),
    ("student, NFE 2", "student", {"t_grid": (0.0, 0.7)}),
    ("student, NFE 4", "student", {"nfe": 4}),
    ("anchored, NFE 16", "student", {"nfe": 16, "sampler": "anchored"}),
    ("teacher, NFE 29", "teacher", {"sampler": "heun", "steps": 8, "w": 1.25, "t_low": 0.125, "t_high": 1.0}),
)


def make(folder: Path, data: Path = Path("data")) -> None:
    """Write rows.png: a row of held-out digits, then rows of samples, each column of one noise."""
    labels = [k % 10 for k in range(COLUMNS)]
    rows = [("real", _real(labels))]
    for label, kind, fields in ROWS:
        rows.append((label, facm.load(str(data / kind)).generate(labels, seed=SEED, **fields)))
    height = len(rows) * (SIDE + GAP) + GAP
    drawing = figure.new(LEFT + COLUMNS * (SIDE + GAP), height)
    for i, (label, images) in enumerate(rows):
        below = height - (i + 1) * (SIDE + GAP)
        drawing.text(GAP / drawing.bbox.width, (below + SIDE / 2) / height, label, va="center")
        for j, image in enumerate(images):
            axes = figure.frame(drawing, LEFT + j * (SIDE + GAP), below, SIDE, SIDE)
            axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=255, interpolation="bicubic")
            axes.set_axis_off()
    written = io.BytesIO()
    drawing.savefig(written, dpi=144)
    Image.open(written).convert("L").quantize(32).save(folder / "rows.png", optimize=True)


def _real(labels: list[int]) -> np.ndarray:
    """Held-out images of the labels, in their order."""
    heldout = Digits().load("heldout")
    left = {c: iter(np.flatnonzero(heldout.labels == c)) for c in set(labels)}
    return np.stack([np.asarray(heldout.images[next(left[c])]) for c in labels])
