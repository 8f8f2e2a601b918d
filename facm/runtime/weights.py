"""Published weights of feature networks: outside the repository, in torch's cache, pinned by their sha256.

Only which weights these are is kept in data/reference, not the weights.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from facm.runtime import files
from facm.runtime.files import load_tensors, save_tensors


def find(features: str, file: str, url: str, pinned: str) -> Path:
    """The pinned weights in torch's cache, downloaded from `url` where they are missing.

    Raises:
        FileNotFoundError: neither there nor to be had.
        ValueError: a file of that name with other content.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=pinned, progress=sys.stderr.isatty())
        except OSError as error:
            raise FileNotFoundError(
                f"reference.features '{features}' needs {file}, and it could not be downloaded ({error}): "
                f"fetch {url} where there is a network and put it at {path} (TORCH_HOME moves that folder)"
            ) from None
    files.pinned(path, pinned, "", f"remove it, it is fetched again from {url}")
    return path


def save(path: Path, pinned: str) -> dict[str, Any]:
    """Write which weights a network has; returns `file`, `bytes`, `sha256`."""
    return save_tensors(path, {"sha256": torch.tensor(list(bytes.fromhex(pinned)), dtype=torch.uint8)})


def check(path: Path, features: str, pinned: str) -> None:
    """Raise FileNotFoundError or ValueError unless `path` was saved with the pinned weights."""
    cure = f"remove {path.parent} and run `dvc repro`"
    digest = load_tensors(path, cure).get("sha256")
    if digest is None or digest.dtype != torch.uint8 or digest.dim() != 1:
        raise ValueError(f"{path} does not say of which weights it was made: {cure}")
    saved = bytes(digest.tolist()).hex()
    if saved != pinned:
        raise ValueError(f"{path} was made with {features} weights {saved}, needed are {pinned}: run `dvc repro`")
