"""Sampled pictures on disk: ADM's npz (arr_0 uint8 NHWC, arr_1 labels) and a grid."""

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from facm import picture

GRID = 100  # pictures in a grid, at most


def save_samples(folder: str | Path, name: str, images: np.ndarray, labels: Tensor | None) -> None:
    """Write `<name>.npz` and `grid_<name>.png`.

    Args:
        folder: made where it is missing.
        name: such as nfe2.
        images: uint8 (N, H, W, C).
        labels: (N,) int64 or None.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [images] if labels is None else [images, labels.numpy()]
    temporary = folder / f"{name}.tmp"
    with temporary.open("wb") as file:
        np.savez(file, *arrays)
    os.replace(temporary, folder / f"{name}.npz")
    picture.save(picture.grid(images[:GRID], 10), folder / f"grid_{name}.png")


def load_samples(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Pictures uint8 (N, H, W, C) and labels (N,) int64, None without classes.

    Raises:
        ValueError: missing or damaged file.
    """
    try:
        with np.load(path) as arrays:
            return arrays["arr_0"], arrays.get("arr_1")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}): remove its folder and run `dvc repro`") from None
