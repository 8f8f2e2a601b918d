"""Sampled pictures on disk: ADM's npz (arr_0 uint8 NHWC, arr_1 labels) and a grid."""

import os
from pathlib import Path
from zipfile import BadZipFile

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
    save_arrays(folder / f"{name}.npz", images, None if labels is None else labels.numpy())
    picture.save(picture.grid(images[:GRID], 10), folder / f"grid_{name}.png")


def save_arrays(path: str | Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write an npz, arr_0 pictures and arr_1 labels where there are any, under a temporary name, then move it."""
    temporary = Path(path).with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, *([images] if labels is None else [images, labels]))
    os.replace(temporary, path)


def load_samples(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Pictures uint8 (N, H, W, C) and labels (N,) int64, None without classes.

    Raises:
        ValueError: missing or damaged file.
    """
    try:
        with np.load(path) as arrays:
            return arrays["arr_0"], arrays.get("arr_1")
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{path} is missing or damaged ({error}): remove its folder and run `dvc repro`") from None
