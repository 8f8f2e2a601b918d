"""Safetensors, JSON and CSV files: written whole or not at all, read whole or refused with the cure.

A file is written under a temporary name, brought to the disk and only then moved: after a kill or a power loss there is
either the file before or the new one.
"""

import hashlib
import json
import lzma
import math
import os
import reprlib
import struct
import tempfile
import tokenize
import types
import typing
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

# Names in the safetensors format, in the order in which its library lays tensors out (then by name).
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

PLAIN = {
    int: "a whole number from 0 on",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "an object of names and values",
}
"""What the types of JSON are called."""

DAMAGED_NPZ = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
"""What numpy and zipfile raise on a damaged npz, by trial."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A new binary file that becomes `path` when the block ends, and is gone where the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Bring a folder's names to the disk: what was moved into it is still there after a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write a safetensors file, byte for byte as its library does, but in one pass and without a copy in memory.

    Returns its `file`, `bytes` and `sha256` for a meta.json. ValueError for a dtype that is not among DTYPES.
    """
    digest, size = hashlib.sha256(), 0
    with atomic_write(path) as file:
        for part in _safetensors(tensors, metadata):
            digest.update(part)
            size += file.write(part)
    return {"file": path.name, "bytes": size, "sha256": digest.hexdigest()}


def load_tensors(path: Path, cure: str) -> dict[str, Tensor]:
    """Read a safetensors file; the tensors are mapped, so that pages are read when they are touched.

    `cure` ends the message where it is missing (FileNotFoundError) or damaged (ValueError).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {cure}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors, mapped as by `load_tensors`, and its header's text; SafetensorError if damaged."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def refuse_no_file(path: Path, place: str = "", cure: str = "check the path") -> None:
    """Raise FileNotFoundError unless there is a file; the message begins with `place` and ends with the cure."""
    if path.is_dir():
        raise FileNotFoundError(f"{place}{path} is a folder: name a file")
    if not path.is_file():
        raise FileNotFoundError(f"{place}{path} is missing: {cure}")


def refuse_unwritable(path: Path, option: str = "--out") -> None:
    """Raise ValueError where a new file or folder could not be written, before the work that it is to hold.

    Folders above it may be missing: they are made later. `option` named it.
    """
    place = path.absolute()
    above = next((folder for folder in place.parents if os.path.lexists(folder)), place)
    try:
        with tempfile.NamedTemporaryFile(dir=above, prefix=f"{path.name if above == place.parent else ''}."):
            pass
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written, {above}: {error.strerror}") from None


def refuse_no_target(path: Path, option: str = "--out") -> None:
    """Raise ValueError where a file cannot be written: as `refuse_unwritable`, or a folder is in its place."""
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name the file to write")
    refuse_unwritable(path, option)


def flatten(value: Any) -> tuple[str, dict[str, Tensor]]:
    """Take nested plain values and tensors apart: JSON that names each tensor, and the tensors by name.

    Dicts keep their keys' types and order, tuples stay tuples, NaN stays NaN; the opposite is `unflatten`. TypeError
    for anything else.
    """
    tensors: dict[str, Tensor] = {}
    return json.dumps(_flatten(value, "", tensors)), tensors


def unflatten(text: str, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what `flatten` took apart; raises ValueError where `flatten` did not make it."""
    try:
        return _unflatten(json.loads(text), tensors)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"values of another form ({error})") from None


def save_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def load_json(path: Path, cure: str) -> Any:
    """Read JSON; raises as `load_tensors` does."""
    refuse_no_file(path, cure=cure)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from None


def load_record(path: Path, form: Any, cure: str) -> Any:
    """Read JSON of a form; raises as `load_tensors` does, and as `refuse_other_form`."""
    found = load_json(path, cure)
    refuse_other_form(found, form, str(path), cure)
    return found


def refuse_other_form(value: Any, form: Any, place: str, cure: str) -> None:
    """Raise ValueError unless a plain value is of a form.

    Args:
        value: as JSON gives it.
        form: a type, X | None, list[X], tuple[X, ...], dict[str, X], Any, or a TypedDict or dataclass, whose names the
            value must have. int: whole numbers from 0 on, of 63 bits; float: numbers, finite.
        place: what the message begins with, such as "data/latents/meta.json".
        cure: ends the message.
    """
    origin, inner = typing.get_origin(form), typing.get_args(form)
    if form is Any or (origin is types.UnionType and value is None):
        return
    if origin is types.UnionType:
        return refuse_other_form(value, inner[0], place, cure)
    named = typing.get_type_hints(form) if typing.is_typeddict(form) or is_dataclass(form) else None
    kind = dict if named is not None else {tuple: list}.get(origin, origin or form)
    if not _is_a(value, kind):
        raise ValueError(f"{place}: must be {PLAIN[kind]}, it is {reprlib.repr(value)}: {cure}")
    if named is not None:
        lacking = [name for name in named if name not in value and name in getattr(form, "__required_keys__", named)]
        if lacking:
            raise ValueError(f"{place} lacks '{lacking[0]}': {cure}")
    parts = value.items() if kind is dict else enumerate(value) if kind is list else ()
    for name, part in parts:
        of_part = named.get(str(name), Any) if named is not None else inner[kind is dict] if inner else Any
        refuse_other_form(part, of_part, f"{place}, {name}", cure)


def _is_a(value: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, list | tuple if kind is list else kind)


def sha256(path: Path) -> str:
    """The file's digest, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned(path: Path, expected: str | None, place: str, cure: str) -> str:
    """The file's sha256; ValueError, which begins with `place`, where it is not the expected one (None: any).

    Args:
        place: that pins it, such as "params.yaml, latents.vae_sha256"; empty: the code.
        cure: what to do about another content.
    """
    found = sha256(path)
    if expected not in (None, found):
        raise ValueError(f"{place}{place and ': '}pinned is {expected}, but {path} has {found}: {cure}")
    return found


def save_csv(path: Path, columns: Mapping[str, Sequence[float]]) -> None:
    """Write equally long columns."""
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    with atomic_write(path) as file:
        file.write(("\n".join(rows) + "\n").encode())


def content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Iterator[bytes | memoryview]:
    """Parts of the file: the header's length (8 bytes), the header (JSON), the tensors without gaps."""
    unknown = {str(tensor.dtype) for tensor in tensors.values()} - set(map(str, DTYPES))
    if unknown:
        raise ValueError(f"a tensor of {', '.join(unknown)} cannot be saved: known are {', '.join(DTYPES.values())}")
    order = list(DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield content(tensors[name])


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if name in tensors:
            raise ValueError(f"two tensors would be saved as '{name}': a key holds a slash")
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _flatten(part, f"{name}/{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        parts = [_flatten(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be saved, only tensors and plain values")


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, parts),) = value.items()
    if kind == "tensor":
        return tensors[parts]
    if kind == "tuple":
        return tuple(_unflatten(part, tensors) for part in parts)
    return {key: _unflatten(part, tensors) for key, part in parts}
