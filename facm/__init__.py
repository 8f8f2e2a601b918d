"""Flow-Anchored Consistency Models (arXiv 2507.03738): train few-step generators, and use them."""

import sys
from typing import TYPE_CHECKING

from facm.runtime import moved

if TYPE_CHECKING:
    from pathlib import Path

    from facm.inference.generator import Generator

__version__ = "0.1.0"

sys.meta_path.append(moved.Finder)  # a stale import in a plug-in is told where to look


def load(
    where: "str | Path",
    sigma_rel: float | None = None,
    *,
    path: str | None = None,
    rev: str | None = None,
    vae: str | None = None,
) -> "Generator":
    """A generator from a trained network: `facm.load("data/student").generate(range(10), nfe=2, seed=0)`.

    Args:
        where: a checkpoint folder (data/student) or an exported one; the address of a git repository with DVC, or its
            folder where `path` or `rev` is given; or hf://OWNER/NAME. See facm/export/locate.py.
        sigma_rel: another, post-hoc EMA length than the stored one; exported folders have none.
        path: of the checkpoint in a repository; None: data/student, on the hub the repository's top.
        rev: of the repository: branch, tag (student@v1.0.0) or commit.
        vae: where the codec's weights are here (folder, hub name or file), if not where config.json says.

    Raises:
        facm.networks.checkpoint.CheckpointError: missing, damaged or unfitting files.
        facm.export.locate.FetchError: a repository, revision or path that cannot be had.
    """
    from facm.export import folder as exported
    from facm.export import locate
    from facm.inference.generator import Generator
    from facm.networks.checkpoint import CheckpointError

    folder = locate.find(where, path, rev)
    if exported.is_exported(folder):
        if sigma_rel is not None:
            raise CheckpointError(
                f"{where} was exported and has no EMA snapshots for sigma_rel {sigma_rel}: load the checkpoint folder, "
                "or export that length (`python -m facm.export --sigma-rel`)"
            )
        return exported.load(folder, vae=vae)
    try:
        return Generator.load(folder, sigma_rel, vae=vae)
    except CheckpointError as error:
        near = "" if folder.is_dir() else locate.hint(where)
        raise CheckpointError(f"{error}{near}") from None
