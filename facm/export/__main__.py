"""`python -m facm.export data/student --out DIR [--onnx]`: a folder to use and to share, with its model card.

    python -m facm.export data/student --out student
    python -m facm.export data/student --out student --onnx --name "Digits, few-step"
    python -m facm.export data/teacher --out teacher --license cc-by-4.0

The folder is read by `facm.load`, by `FACMPipeline.from_pretrained`, and by the hub. It is written beside its place and
moved there when it is whole; an earlier export there is replaced, any other folder is refused. What else lies in an
earlier export's folder, such as .git, stays.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from facm.data import codecs
from facm.export import card, provenance
from facm.export import folder as exported
from facm.export import onnx as onestep
from facm.export.provenance import Provenance
from facm.inference import grid
from facm.inference.generator import Generator, balanced_labels
from facm.networks import checkpoint
from facm.runtime import files
from facm.runtime.log import say

NFES = (1, 2, 4)  # rows of a student's samples, where the run does not tell its own
ROWS, COLUMNS, SEED, POINTS = 4, 10, 0, 1000  # at most
LICENSE = "apache-2.0"
CARD, SAMPLES, CODE, ONNX = "README.md", "samples.png", "pipeline.py", "onnx"
WRITTEN = (exported.INDEX, exported.NETWORK, exported.VAE, CARD, SAMPLES, CODE, ONNX)
"""What an export may hold; the first one makes a folder an export: taken away first, put there last."""

REMOTE_CODE = '''\
"""For `DiffusionPipeline.from_pretrained(..., custom_pipeline=...)`; needs the package facm."""

from facm.pipeline import FACMPipeline

__all__ = ["FACMPipeline"]
'''


def main() -> None:
    """Write a checkpoint as a folder to use and to share: network, configs, model card, samples."""
    parser = argparse.ArgumentParser(prog="python -m facm.export", description=main.__doc__)
    parser.add_argument("folder", help="checkpoint folder, such as data/student or data/teacher")
    parser.add_argument("--out", required=True, help="folder to write; an earlier export there is replaced")
    parser.add_argument("--onnx", action="store_true", help="also the one-step generator, onnx/onestep.onnx")
    parser.add_argument("--sigma-rel", type=float, help="post-hoc EMA length instead of the stored one")
    parser.add_argument("--vae", help="where the codec's weights are, if not where the checkpoint's config.json says")
    parser.add_argument("--name", help="title of the model card; default: the last part of --out")
    parser.add_argument("--license", default=LICENSE, help=f"of the weights, an identifier of the hub ({LICENSE})")
    arguments = vars(parser.parse_args())
    try:
        export(Path(arguments.pop("folder")), Path(arguments.pop("out")), **arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def export(
    folder: Path,
    out: Path,
    *,
    onnx: bool = False,
    sigma_rel: float | None = None,
    vae: str | None = None,
    name: str | None = None,
    license: str = LICENSE,
) -> None:
    """Write the folder; options as `main`'s. Raises ValueError, before anything is changed."""
    config = checkpoint.read_config(folder)
    _refuse(folder, out)
    if onnx:
        onestep.check(config)
    known = provenance.of(folder, config, sigma_rel)
    generator = Generator.load(folder, sigma_rel, vae=vae, rounding=known.drawn.get("rounding", "round"))
    place = out.resolve()
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as temporary:
        new, before = Path(temporary) / "new", Path(temporary) / "before"
        _write(new, generator, known, onnx, sigma_rel, name or place.name, license)
        _move(new, place, before)
    figures = "with its figures" if known.figures else f"without figures ({known.why})"
    say(f"{out}: {config.kind} by {config.objective}, {figures}")


def _write(
    folder: Path, generator: Generator, known: Provenance, onnx: bool, sigma_rel: float | None, name: str, license: str
) -> None:
    config, network = generator.config, generator.network
    autoencoder = getattr(generator.codec, "network", None)
    told_length = config if sigma_rel is None else replace(config, sigma_rel=sigma_rel)
    exported.write(folder, network, told_length, autoencoder)
    shown, told = samples(generator, known)
    grid.save(grid.sheet(shown, COLUMNS), folder / SAMPLES)
    _text(folder / CODE, REMOTE_CODE)
    error = None
    if onnx:
        (folder / ONNX).mkdir()
        error = onestep.write(folder / ONNX, generator)
    made = card.Exported(
        name=name,
        license=license,
        weights=sum(weight.numel() for weight in network.parameters()),
        sigma_rel=sigma_rel,
        samples=told,
        onnx_error=error,
        vae=autoencoder is not None,
    )
    _text(folder / CARD, card.render(config, known, made))


def samples(generator: Generator, known: Provenance) -> tuple[np.ndarray, str]:
    """What the card shows, uint8 (N, H, W, C) or points float32 (N, D), and the sentence that says what it is.

    A student: a row for each of NFES, the same noise; a teacher: rows of its sampler as the run had it, if that is
    known, else unguided.
    """
    config = generator.config
    points = config.codec in codecs.POINTS
    named = known.drawn.get("sampler", config.samplers[0])
    if config.kind == "student":
        nfes = known.drawn.get("nfe", NFES)[: 1 if points else ROWS]
        drawn = [_draw(generator, named, POINTS if points else COLUMNS, card.of_nfe(known, named, n)) for n in nfes]
        rows = f"Samples at NFE {nfes[0]}" if points else f"Samples, a row each at NFE {', '.join(map(str, nfes))}"
        return np.concatenate(drawn), f"{rows} from the same noise; sampler `{named}`, seed {SEED}, not selected."
    fields = card.guided(known)
    shown = _draw(generator, named, POINTS if points else ROWS * COLUMNS, fields)
    told = ", ".join(f"{key} {value:g}" for key, value in fields.items())
    return shown, f"Samples by sampler `{named}`, {told}; seed {SEED}, not selected."


def _draw(generator: Generator, name: str, num: int, fields: dict[str, Any]) -> np.ndarray:
    sampler = generator.sampler(name, **fields)
    labels = balanced_labels(num, generator.config.num_classes)
    return generator.draw(sampler, labels, num, SEED, batch_size=COLUMNS if num < POINTS else POINTS)[0]


def _refuse(folder: Path, out: Path) -> None:
    """Raise ValueError where writing would lose something, or must fail."""
    checkpoint.refuse_own(folder, out)
    checkpoint.refuse_made(out)
    if not out.resolve().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.resolve().parent}")
    if out.is_file():
        raise ValueError(f"--out {out} is a file: choose another name")
    files.refuse_unwritable(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        ours = files.load_json(out / exported.INDEX, "").get("_class_name") == exported.PIPELINE[1]
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise ValueError(f"--out {out} is a folder that is no earlier export: remove it, or choose another")


def _move(new: Path, out: Path, before: Path) -> None:
    """Put a new folder in its place, or what it holds in the place of what an earlier export holds.

    `out` itself stays if it is there, as it may be a repository, or somebody's current folder. What is replaced goes to
    `before`, and comes back from there if something fails.
    """
    if not out.exists():
        os.replace(new, out)
        files.fsync_dir(out.parent)
        return
    before.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for name, source, target in [(n, out, before) for n in WRITTEN] + [(n, new, out) for n in reversed(WRITTEN)]:
            if (source / name).exists():
                os.replace(source / name, target / name)
                moved.append((source / name, target / name))
    except OSError:
        for source, target in reversed(moved):
            os.replace(target, source)
        raise
    files.fsync_dir(out)


def _text(path: Path, text: str) -> None:
    with files.atomic_write(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    main()
