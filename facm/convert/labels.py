"""How many classes a table of labels has, and whether one of its rows is the null label.

The published code makes a row more than there are classes where labels are dropped in training, and none more where
they are not (LabelEmbedder of DiT, SiT, LightningDiT), so the rows alone do not tell. What the file says decides, then
what the user or the dataset says; the 1001 rows of the published networks are ImageNet's 1000 classes and the null
label; any other number is refused. REPA keeps the row with cfg_prob 0, and then never trains it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.convert.settings import Settings
from facm.runtime.foreign import ForeignError

TABLE = "y_embedder.embedding_table.weight"
PUBLISHED = 1001
OF_DATA = object()
"""In place of a number of classes: the dataset, which is not read yet, will tell."""


def read(rows: int, given: Mapping[str, Any], settings: Settings, path: Path) -> tuple[int, bool]:
    """Number of classes, and whether the network was trained with a null label.

    Args:
        rows: of the table.
        given: `classes`, where it is known.

    Raises:
        ForeignError: nothing tells the number, or the table has another.
    """
    classes, dropout = given.get("classes"), settings.get("label_dropout")
    trained = settings.get("cfg_prob") != 0 and dropout != 0
    if classes is None or (classes is OF_DATA and dropout is not None):
        if dropout is None and rows != PUBLISHED and settings.get("cfg_prob") is None:
            raise ForeignError(
                f"{path} has a table of {rows} labels, and nothing tells whether the last is a class or the null label "
                f"(none): say --set classes={rows - 1} or --set classes={rows}"
            )
        classes = rows if dropout == 0 else rows - 1
    if classes is OF_DATA:
        classes = rows - 1
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ForeignError(f"{path}: classes {classes!r} must be a whole number of at least 1: --set classes=N")
    if classes not in (rows - 1, rows):
        raise ForeignError(
            f"{path} knows {rows - 1} classes and the null label, or {rows} classes: its table has {rows} labels; "
            f"{classes} classes (of the file's settings, --set classes or data/latents) do not fit: choose another "
            "checkpoint, or another data.name"
        )
    if classes == rows and dropout:
        raise ForeignError(
            f"{path} says {settings.named('label_dropout')}, which needs a null label beside {classes} classes, and "
            f"its table has {rows} labels: it is damaged, or its settings are of another file"
        )
    return classes, classes < rows and trained


def padded(weights: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """Weights whose table has a row for the null label, of zeros where it had none; it is never used."""
    table = weights.get(TABLE)
    if table is None or table.shape[0] != classes:
        return dict(weights)
    return dict(weights) | {TABLE: torch.cat([table, torch.zeros_like(table[:1])])}
