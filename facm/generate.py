"""`python -m facm.generate data/student --labels 0-9 --per-label 8 --nfe 2 --out digits.png`: a grid of pictures."""

import argparse
from pathlib import Path

import numpy as np

import facm
from facm import picture
from facm.log import say
from facm.samples import save_arrays


def parse_labels(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7].

    Raises:
        ValueError: anything else than numbers, commas and rising ranges.
    """
    labels: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.strip().isdigit() and last.strip().isdigit()) or int(last) < int(first):
            raise ValueError(f"--labels {text!r}: write numbers and rising ranges such as 0-3,7")
        labels += range(int(first), int(last) + 1)
    return labels


def main() -> None:
    """Draw pictures from a checkpoint: a grid (.png), or arrays (.npz with arr_0 pictures, arr_1 labels)."""
    parser = argparse.ArgumentParser(prog="python -m facm.generate", description=main.__doc__)
    parser.add_argument("folder", help="checkpoint folder, such as data/student")
    parser.add_argument("--labels", help="classes, such as 0-9 or 3,7; default: all; not for models without classes")
    parser.add_argument("--per-label", type=int, default=8, help="pictures per class, a row each (default 8)")
    parser.add_argument("--nfe", type=int, default=2, help="function evaluations per picture (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampler", help="consistency | euler | heun; default: the checkpoint's first")
    parser.add_argument("--sigma-rel", type=float, help="post-hoc EMA length instead of the stored one")
    parser.add_argument("--vae", help="where the codec's weights are, if not where the checkpoint's config.json says")
    parser.add_argument("--out", required=True, help="file to write: .png or .npz")
    arguments = parser.parse_args()
    try:
        _check(arguments)
        images, labels = _draw(arguments)
        if arguments.out.endswith(".npz"):
            save_arrays(arguments.out, images, None if labels is None else np.asarray(labels, np.int64))
        else:
            picture.save(picture.sheet(images, arguments.per_label), arguments.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    say(f"{arguments.out}: {len(images)} pictures, NFE {arguments.nfe}")


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for what can be refused before a picture is drawn."""
    if not arguments.out.endswith((".png", ".npz")):
        raise ValueError(f"--out {arguments.out!r} must end in .png or .npz")
    if not Path(arguments.out).parent.is_dir():
        raise ValueError(f"--out {arguments.out!r}: there is no folder {Path(arguments.out).parent}")
    for name, least in (("per_label", 1), ("nfe", 1), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be at least {least}")


def _draw(arguments: argparse.Namespace) -> tuple[np.ndarray, list[int] | None]:
    generator = facm.load(arguments.folder, arguments.sigma_rel, vae=arguments.vae)
    options = {"nfe": arguments.nfe, "seed": arguments.seed, "sampler": arguments.sampler}
    if generator.config.num_classes == 0:
        return generator.generate(arguments.labels, num=arguments.per_label**2, **options), None
    classes = parse_labels(arguments.labels or f"0-{generator.config.num_classes - 1}")
    labels = [label for label in classes for _ in range(arguments.per_label)]
    return generator.generate(labels, **options), labels


if __name__ == "__main__":
    main()
