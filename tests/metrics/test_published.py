"""Published references of exactly their formats: ADM's, FACM's and EDM's npz; what does not fit is refused."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from facm.inference.samples import load_samples
from facm.metrics.frechet import refuse_no_statistics
from facm.metrics.published import Archive
from facm.runtime.files import sha256

D, SPATIAL = 6, 4


def statistics(width: int, kind: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(width).normal(size=(50, width))
    return rows.mean(0).astype(kind), np.cov(rows, rowvar=False).astype(kind)


def pictures(num: int = 11) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 5, 4, 3), dtype=np.uint8)


def published(kind: str) -> dict[str, np.ndarray]:
    """The members of a file of each project."""
    mu, sigma = statistics(D)
    if kind == "adm":
        mu_s, sigma_s = statistics(SPATIAL)
        images = {"arr_0": pictures(), "arr_1": np.arange(11)}
        return images | {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s}
    if kind == "single":
        return dict(zip(("mu", "sigma"), statistics(D, np.float32), strict=True))
    return {"mu": mu, "sigma": sigma}


def opened(path: Path) -> Archive:
    return Archive.open(path, sha256(path))


@pytest.mark.parametrize("kind", ["adm", "facm and edm", "single"])
def test_each_format_is_read_as_float64(kind: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **published(kind))
    archive = opened(tmp_path / "r.npz")
    mu, sigma = archive.statistics[""]
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(sigma, statistics(D)[1], rtol=1e-6)
    assert ("s" in archive.statistics) == (archive.pictures is not None) == (kind == "adm")
    assert archive.sha256 == sha256(tmp_path / "r.npz")


def test_a_further_network_s_sigma_is_looked_at_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **published("single"), mu_dinov2=np.zeros(3), sigma_dinov2=-np.eye(3))
    with pytest.raises(ValueError, match="mu_dinov2 and sigma_dinov2: no covariance"):
        opened(tmp_path / "r.npz")


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("sums", [np.float64, np.float32])
def test_a_covariance_of_fewer_samples_than_features_is_one_however_it_was_rounded(sums: type, kind: type) -> None:
    rows = np.abs(np.random.default_rng(0).normal(size=(60, 8)) @ np.ones((8, 300)) + 0.4).astype(sums)
    mu = rows.mean(0)
    sigma = (rows.T @ rows - 60 * np.outer(mu, mu)) / 59
    assert np.linalg.eigvalsh(sigma.astype(kind).astype(np.float64))[0] < 0
    refuse_no_statistics(mu.astype(kind), sigma.astype(kind))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pictures_are_read_part_by_part_compressed_or_not(save, tmp_path: Path) -> None:
    save(tmp_path / "r.npz", **published("adm"))
    found = opened(tmp_path / "r.npz").pictures
    assert found is not None and len(found) == 11 and tuple(found.shape) == (11, 5, 4, 3)
    for rows in (slice(0, 3), slice(7, 99), slice(None), slice(2, 5), slice(4, 4)):
        assert np.array_equal(found[rows].numpy(), pictures()[rows])


def test_statistics_of_further_networks_stand_under_their_names(tmp_path: Path) -> None:
    mu, sigma = statistics(3)
    np.savez(tmp_path / "r.npz", **published("adm"), mu_dinov2=mu, sigma_dinov2=sigma)
    assert np.array_equal(opened(tmp_path / "r.npz").statistics["dinov2"][0], mu)


def test_another_file_than_the_pinned_one_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"reference.source: .*r.npz is missing: fetch it"):
        Archive.open(tmp_path / "r.npz", "0" * 64)
    with pytest.raises(FileNotFoundError, match=r"params.yaml, reference.source: .* is a folder: name a file"):
        Archive.open(tmp_path, "0" * 64)
    np.savez(tmp_path / "r.npz", **published("facm"))
    with pytest.raises(ValueError, match=f"reference.sha256: pinned is {'0' * 64}, but .* has {'[0-9a-f]' * 64}"):
        Archive.open(tmp_path / "r.npz", "0" * 64)


def damaged(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: value for name, value in (published("adm") | changes).items() if value is not None}


WRONG = {
    "no statistics": (damaged(mu=None), "needed are mu and sigma, found arr_0"),
    "no sigma": (damaged(sigma=None), "sigma"),
    "not square": (
        damaged(sigma=np.zeros((D, 2))),
        r"mu and sigma: a mean of \(6,\) and a covariance of \(6, 2\) must be",
    ),
    "not finite": (damaged(mu_s=np.full(SPATIAL, np.nan)), "mu_s and sigma_s: a mean or covariance that is not finite"),
    "empty": (damaged(mu=np.zeros(0), sigma=np.zeros((0, 0))), r"\(0,\) and a covariance of \(0, 0\) must be"),
    "complex": (damaged(sigma=np.eye(D) * 1j), "complex128 must be real numbers"),
    "text": (damaged(mu=np.array(list("abcdef"))), "a mean of <U1 and"),
    "too large": (damaged(sigma=np.eye(D) * 1e300), "not finite"),
    "negative": (damaged(sigma=-np.eye(D)), "mu and sigma: no covariance: its eigenvalues go from -1 to -1, below 0"),
    "indefinite": (damaged(sigma_s=np.diag([1.0, 2, 3, -0.01])), "mu_s and sigma_s: .* from -0.01 to 3, below 0"),
    "centred twice": (damaged(sigma=np.eye(D) - 0.5), "eigenvalues go from -2 to 1"),
    "not symmetric": (damaged(sigma=np.eye(D) + np.eye(D, k=1) * 0.01), "not symmetric: .* by up to 0.01"),
    "zeros": (damaged(sigma=np.zeros((D, D))), "a covariance of zeros"),
    "float pictures": (damaged(arr_0=np.zeros((4, 5, 5, 3))), "pictures must be uint8"),
    "points": (damaged(arr_0=np.zeros((4, 2), np.float32)), "arr_0 must be uint8"),
    "pickle": (damaged(mu=np.array([{}], dtype=object)), "allow_pickle"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_with_the_file(name: str, tmp_path: Path) -> None:
    members, message = WRONG[name]
    np.savez(tmp_path / "r.npz", **members)
    with pytest.raises(ValueError, match=f"reference.source: .*r.npz cannot be used .*{message}"):
        opened(tmp_path / "r.npz")


def test_an_array_in_the_place_of_an_archive_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.zeros(3))
    for path in (tmp_path / "r.npy", tmp_path / "empty.npz"):
        path.touch()
        with pytest.raises(ValueError, match=f"{path.name} cannot be used"):
            opened(path)
        with pytest.raises(ValueError, match=f"{path.name} is missing or damaged"):
            load_samples(path)


def test_a_file_cut_off_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", **published("adm"))
    (tmp_path / "r.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"r.npz cannot be used"):
        opened(tmp_path / "r.npz")


def npy_file(header: str, values: bytes = bytes(240)) -> bytes:
    """A member whose header may declare anything."""
    content = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + values


def declared(shape: str, kind: str = "<f8") -> bytes:
    return npy_file(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}")


MEMBERS = {
    "more than memory has": ("mu", declared("(9999999999999,)"), "allocate"),
    "more than an integer holds": ("sigma", declared("(99999999999999999999999, 9)"), "too large"),
    "a header cut off": ("mu", npy_file("{'descr': ("), "EOF"),
    "a header nested too deep": ("mu", npy_file("(" * 500), ""),
    "no array": ("mu", b"hello", "mu and sigma: bytes that are no array"),
    "no array beside one": ("sigma_s", b"hello", "mu_s and sigma_s: bytes that are no array"),
    "records": ("mu", npy_file("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (6,), }"), "real numbers"),
    "fewer images than none": ("arr_0", declared("(-1, 4, 4, 3)", "|u1"), "at least 1 of each axis"),
    "no images": ("arr_0", declared("(0, 4, 4, 3)", "|u1"), "at least 1 of each axis"),
    "images without pixels": ("arr_0", declared("(5, 0, 0, 0)", "|u1"), "at least 1 of each axis"),
    "fewer bytes than images": ("arr_0", declared("(6, 4, 4, 3)", "|u1"), r"\(6, 4, 4, 3\) must .* has 240 bytes"),
    "more images than bytes": ("arr_0", declared("(100000, 4000, 4000, 3)", "|u1"), "has 240 bytes"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_is_not_what_its_header_says_is_refused(name: str, tmp_path: Path) -> None:
    member, content, message = MEMBERS[name]
    np.savez(tmp_path / "r.npz", **{key: value for key, value in published("adm").items() if key != member})
    with zipfile.ZipFile(tmp_path / "r.npz", "a") as archive:
        archive.writestr(f"{member}.npy", content)
    with pytest.raises(ValueError, match=f"reference.source: .*r.npz cannot be used .*{message}"):
        opened(tmp_path / "r.npz")


def flagged(content: bytes, bit: int, method: int | None = None) -> bytes:
    """An archive whose directory marks each member as encrypted, patched, or compressed by another method."""
    changed, at = bytearray(content), -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        changed[at + 8] |= bit
        if method is not None:
            changed[at + 10 : at + 12] = struct.pack("<H", method)
    return bytes(changed)


@pytest.mark.parametrize(
    ("bit", "method", "message"), [(1, None, "encrypted"), (32, None, "patched"), (0, 97, "compression method")]
)
def test_an_archive_that_zipfile_cannot_unpack_is_refused(
    bit: int, method: int | None, message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "r.npz", **published("adm"))
    (tmp_path / "r.npz").write_bytes(flagged((tmp_path / "r.npz").read_bytes(), bit, method))
    with pytest.raises(ValueError, match=f"r.npz cannot be used .*{message}"):
        opened(tmp_path / "r.npz")
    with pytest.raises(ValueError, match=f"r.npz is missing or damaged .*{message}"):
        load_samples(tmp_path / "r.npz")


def test_damage_within_compressed_statistics_or_images_is_refused_by_name(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.savez_compressed(out, **published("adm"))
    content = out.getvalue()
    with zipfile.ZipFile(out) as archive:
        starts = [info.header_offset + 60 for info in archive.infolist() if info.filename != "arr_1.npy"]
    for start in starts:
        (tmp_path / "r.npz").write_bytes(content[:start] + bytes(40) + content[start + 40 :])
        with pytest.raises(ValueError, match=r"r.npz cannot be used"):
            found = opened(tmp_path / "r.npz").pictures
            assert found is not None
            found[:]
