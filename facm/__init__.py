"""Flow-Anchored Consistency Models (arXiv 2507.03738): train few-step generators, and use them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from facm.generator import Generator

__version__ = "0.1.0"


def load(folder: "str | Path", sigma_rel: float | None = None, *, vae: str | None = None) -> "Generator":
    """A generator from a checkpoint folder: `facm.load("data/student").generate(range(10), nfe=2, seed=0)`.

    Args:
        folder: such as data/student or data/teacher.
        sigma_rel: another, post-hoc EMA length than the stored one.
        vae: where the codec's weights are here (folder, hub name or file), if not where config.json says.

    Raises:
        facm.checkpoint.CheckpointError: missing, damaged or unfitting files.
    """
    from facm.generator import Generator

    return Generator.load(folder, sigma_rel, vae=vae)
