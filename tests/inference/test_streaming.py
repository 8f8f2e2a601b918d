"""Memory and bytes of archives that are written and read in parts."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import save_arrays

from facm.inference.samples import load_samples, saving_arrays

NUM, BOUND_MIB = 3000, 400  # 563 MiB of pictures; measured: 274


@pytest.mark.slow
def test_3000_pictures_of_256x256_are_drawn_and_looked_at_in_less_memory_than_they_are(tmp_path: Path) -> None:
    script = Path(__file__).parents[1].joinpath("streamed.py")
    ran = subprocess.run([sys.executable, script, tmp_path, str(NUM)], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    found = re.search(r"drawn .* s (\d+) MiB read .* s (\d+) MiB", ran.stdout)
    assert found and NUM * 256 * 256 * 3 / 2**20 > 1.4 * BOUND_MIB
    assert int(found[1]) < BOUND_MIB and int(found[2]) < BOUND_MIB


@pytest.mark.parametrize("labels", [np.arange(7), None], ids=["labels", "none"])
def test_an_archive_in_parts_is_numpys_byte_for_byte(labels: np.ndarray | None, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "whole.npz", *([images] if labels is None else [images, labels]))
    with saving_arrays(tmp_path / "parts.npz", 7, labels) as take:
        for part in (images[:3], images[3:6], images[6:]):
            take(part)
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_slices_of_an_archive_are_those_of_the_array(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    save_arrays(tmp_path / "some.npz", images, None)
    stored, _ = load_samples(tmp_path / "some.npz")
    assert len(stored) == 7 and stored.shape == (7, 5, 4, 3) and stored.dtype == torch.uint8
    for rows in (slice(0, 3), slice(5, 99), slice(None), slice(4, 4)):
        assert np.array_equal(stored[rows].numpy(), images[rows])


def test_an_archive_with_too_few_pictures_is_not_left_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="2 pictures were drawn, 3 were to be"),
        saving_arrays(tmp_path / "few.npz", 3, None) as take,
    ):
        take(np.zeros((2, 4, 4, 1), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "float.npz", np.zeros((2, 4, 4, 1)))
    np.savez_compressed(tmp_path / "small.npz", np.zeros((2, 4, 4, 1), np.uint8))
    for name in ("float", "small"):
        with pytest.raises(ValueError, match=r"needed is plain uint8 \(N, H, W, C\)"):
            load_samples(tmp_path / f"{name}.npz")
