"""Safetensors and JSON files: written whole or not at all, read whole or refused with the cure."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file under a temporary name, then move it into place.

    Returns:
        What a meta.json says about it: `file`, `bytes` and `sha256`.
    """
    temporary = _temporary(path)
    # Not save_file: it makes files that only their owner can read, whatever the umask.
    temporary.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    described = {"file": path.name, "bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
    os.replace(temporary, path)
    return described


def load_tensors(path: Path, cure: str) -> dict[str, Tensor]:
    """Read a safetensors file; the tensors are mapped, so that pages are read when they are touched.

    Args:
        path: the file.
        cure: what the user should do where it is missing or damaged; ends the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated or no safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {cure}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from None


def save_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then move it into place."""
    temporary = _temporary(path)
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def load_json(path: Path, cure: str) -> Any:
    """Read JSON; raises as `load_tensors` does."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {cure}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from None


def sha256(path: Path) -> str:
    """The file's digest, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_csv(path: Path, columns: Mapping[str, Sequence[float]]) -> None:
    """Write equally long columns under a temporary name, then move the file into place."""
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    temporary = _temporary(path)
    temporary.write_text("\n".join(rows) + "\n")
    os.replace(temporary, path)


def _temporary(path: Path) -> Path:
    """Where a file is written before it is moved to `path`; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".tmp")
