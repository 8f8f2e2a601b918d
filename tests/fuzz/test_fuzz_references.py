"""Published references: npz files in the layouts of FACM, EDM and ADM."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import edited, edits

from facm.metrics.published import Archive
from facm.runtime.files import sha256

pytestmark = pytest.mark.slow

D = 6
RANDOM = np.random.default_rng(0)
FACTOR = RANDOM.normal(size=(D, D))
STATISTICS = {"mu": RANDOM.normal(size=D), "sigma": FACTOR @ FACTOR.T}
LAYOUTS: dict[str, dict[str, np.ndarray]] = {
    "FACM": STATISTICS,
    "EDM": STATISTICS | {"mu_dinov2": RANDOM.normal(size=3), "sigma_dinov2": np.eye(3)},
    "ADM": STATISTICS
    | {
        "mu_s": RANDOM.normal(size=4),
        "sigma_s": np.eye(4),
        "arr_0": RANDOM.integers(0, 256, (5, 4, 4, 3)).astype(np.uint8),
    },
}

ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "nan": lambda a: np.full(a.shape, np.nan),
    "inf": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, np.inf, a),
    "negative": lambda a: -a.astype(np.float64),
    "complex": lambda a: a.astype(complex) * 1j,
    "text": lambda a: a.astype(str),
    "object": lambda a: a.astype(object),
    "half": lambda a: a.astype(np.float16),
    "big-endian": lambda a: a.astype(">f8"),
    "fortran": lambda a: np.asfortranarray(a),
    "transposed": lambda a: a.T,
    "turned": lambda a: a[::-1],
    "flat": lambda a: a.ravel(),
    "scalar": lambda a: a.sum(),
    "empty": lambda a: a[:0],
    "shorter": lambda a: a[1:],
    "another axis": lambda a: a[None],
    "records": lambda a: np.zeros(a.shape, [("a", "f8")]),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "zero": np.zeros_like,
    "bool": lambda a: a > 0,
}
NAMES = ["mu", "sigma", "mu_s", "sigma_s", "arr_0", "mu_", "mu_x", "sigma_x", "x", "mu.npy", "../mu", "é"]


def stored(arrays: dict[str, Any], compress: bool) -> bytes:
    """An npz file's bytes."""
    out = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(out, **arrays)
    return out.getvalue()


def read(path: Path) -> None:
    """An archive as the stage reference opens it: the statistics of the file, each a covariance, and its pictures."""
    found = Archive.open(path, sha256(path))
    with np.load(path, allow_pickle=False) as arrays:
        for name, (mu, sigma) in found.statistics.items():
            tail = f"_{name}" if name and f"mu_{name}" in arrays.files else name
            if arrays[f"mu{tail}"].dtype.kind == "V" or arrays[f"sigma{tail}"].dtype.kind == "V":
                raise Wrong("records are read as numbers")
            if not np.array_equal(mu, arrays[f"mu{tail}"]) or not np.array_equal(sigma, arrays[f"sigma{tail}"]):
                raise Wrong("other statistics than numpy reads")
            if not np.allclose(sigma, sigma.T) or np.linalg.eigvalsh(sigma).min() < -1e-3 * max(
                1.0, np.abs(sigma).max()
            ):
                raise Wrong("a sigma that is no covariance")
    if found.pictures is not None:
        pictures = found.pictures[:].numpy()
        with np.load(path, allow_pickle=False) as arrays:
            if not np.array_equal(pictures, arrays["arr_0"]):
                raise Wrong("other pictures than numpy reads")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_references(layout: str, compress: bool, folder: Path) -> None:
    path = folder / "reference.npz"
    content = stored(LAYOUTS[layout], compress)

    def trial(changes: Any) -> Callable[[], Any]:
        path.write_bytes(edited(content, changes))
        return lambda: read(path)

    path.write_bytes(content)
    read(path)
    campaign("npz bytes", edits(len(content)), trial, 240, folder=folder, names=[path.name])


def changed(kind: str, array: np.ndarray) -> Any:
    """An array after a change; as it is where the change is none of its kind."""
    try:
        return ARRAYS[kind](array)
    except (TypeError, IndexError, ValueError):
        return array


@pytest.mark.parametrize("layout", LAYOUTS)
def test_references_of_other_arrays(layout: str, folder: Path) -> None:
    path = folder / "reference.npz"

    def trial(drawn: Any) -> Callable[[], Any]:
        changes, compress = drawn
        arrays: dict[str, Any] = dict(LAYOUTS[layout])
        for kind, number, name in changes:
            names = sorted(arrays)
            if not names:
                break
            old = names[number % len(names)]
            if kind == "remove":
                del arrays[old]
            elif kind == "rename":
                arrays[name] = arrays.pop(old)
            else:
                arrays[old] = changed(kind, np.asarray(arrays[old]))
        path.write_bytes(stored(arrays, compress))
        return lambda: read(path)

    kind = st.sampled_from([*ARRAYS, "remove", "rename"])
    inputs = st.tuples(
        st.lists(st.tuples(kind, st.integers(0, 100), st.sampled_from(NAMES)), min_size=1, max_size=3), st.booleans()
    )
    campaign("npz arrays", inputs, trial, 300, folder=folder, names=[path.name])


def test_references_whose_members_are_damaged(folder: Path) -> None:
    """A zip that is whole, with members that are not: their headers declare what is not there."""
    path = folder / "reference.npz"
    plain = {f"{name}.npy": member(array) for name, array in LAYOUTS["ADM"].items()}

    def trial(drawn: Any) -> Callable[[], Any]:
        name, changes, header = drawn
        members = dict(plain)
        members[name] = edited(members[name], changes) if header is None else headed(header) + members[name][-64:]
        with zipfile.ZipFile(path, "w") as archive:
            for inner, content in members.items():
                archive.writestr(inner, content)
        return lambda: read(path)

    headers = st.sampled_from(
        [
            "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4, 3), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 4000, 4000, 3), }",
            "{'descr': '<f8'}",
            "",
            "(" * 500,
            "{'descr': '<f8', 'fortran_order': False, 'shape': (True,), }",
            "{'descr': 'O', 'fortran_order': False, 'shape': (6,), }",
            "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (6,), }",
            "{'descr': '<f8', 'fortran_order': 7, 'shape': (6,), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4, 4, 3), }",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 0, 0, 0), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999, 9), }",
            "{'descr': '|V0', 'fortran_order': False, 'shape': (6,), }",
        ]
    )
    inputs = st.tuples(st.sampled_from(sorted(plain)), edits(200), st.none() | headers)
    campaign("npz members", inputs, trial, 420, folder=folder, names=[path.name])


def member(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def headed(text: str) -> bytes:
    """The head of a npy file with a header of any text."""
    content = text.encode("latin1") + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content
