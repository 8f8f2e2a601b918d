"""Digits from one noise at several NFE, teacher and student, from the checkpoints of the digits pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import facm

SEED, SCALE, GAP = 3, 5, 2
LABELS = list(range(10))
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("student", {"nfe": 1}),
    ("student", {"t_grid": (0.0, 0.7)}),
    ("student", {"nfe": 4}),
    ("student", {"nfe": 4, "sampler": "anchored"}),
    ("student", {"nfe": 16, "sampler": "anchored"}),
    ("teacher", {"sampler": "heun", "steps": 8, "w": 1.25, "t_low": 0.125, "t_high": 1.0}),
)


def make(folder: Path) -> None:
    """Write rows.png."""
    rows = []
    for kind, fields in ROWS:
        images = facm.load(f"data/{kind}").generate(LABELS, seed=SEED, **fields)
        rows.append(images[..., 0])
    side = rows[0].shape[1]
    sheet = np.full((len(rows) * (side + GAP) - GAP, len(LABELS) * (side + GAP) - GAP), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            sheet[i * (side + GAP) :, j * (side + GAP) :][:side, :side] = image
    whole = Image.fromarray(sheet)
    whole.resize((whole.width * SCALE, whole.height * SCALE), Image.Resampling.NEAREST).save(
        folder / "rows.png", optimize=True
    )
