"""Where files are looked for: in the current folder and in the repository."""

import os
from pathlib import Path


def repository_root() -> Path:
    """`$DVC_ROOT` (the main checkout, also in queue workers), else the current folder."""
    return Path(os.environ.get("DVC_ROOT", "."))


def located(path: str) -> Path:
    """A file or folder, looked for here, then under the repository's root, where queue workers do not run."""
    return Path(path) if Path(path).exists() else repository_root() / path
