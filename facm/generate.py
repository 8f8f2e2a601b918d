"""`python -m facm.generate data/student --labels 0-9 --per-label 8 --nfe 2 --out digits.png`: a grid of pictures."""

import argparse

import numpy as np

import facm
from facm import picture
from facm.log import say


def parse_labels(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7].

    Raises:
        ValueError: anything else than numbers, commas and ranges.
    """
    labels: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdigit() or (last and not last.strip().isdigit()):
            raise ValueError(f"--labels {text!r}: write numbers and ranges such as 0-3,7")
        labels += range(int(first), int(last or first) + 1)
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
    parser.add_argument("--out", required=True, help="file to write: .png or .npz")
    arguments = parser.parse_args()
    try:
        images, labels, columns = _draw(arguments)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.out.endswith(".npz"):
        np.savez(arguments.out, images, np.asarray(labels if labels is not None else [], np.int64))
    elif arguments.out.endswith(".png"):
        picture.save(picture.grid(images, columns), arguments.out)
    else:
        raise SystemExit(f"error: --out {arguments.out!r} must end in .png or .npz")
    say(f"{arguments.out}: {len(images)} pictures, NFE {arguments.nfe}")


def _draw(arguments: argparse.Namespace) -> tuple[np.ndarray, list[int] | None, int]:
    generator = facm.load(arguments.folder, arguments.sigma_rel)
    options = {"nfe": arguments.nfe, "seed": arguments.seed, "sampler": arguments.sampler}
    if generator.config.num_classes == 0:
        return generator.generate(arguments.labels, num=arguments.per_label**2, **options), None, arguments.per_label
    classes = parse_labels(arguments.labels) if arguments.labels else list(range(generator.config.num_classes))
    labels = [label for label in classes for _ in range(arguments.per_label)]
    return generator.generate(labels, **options), labels, arguments.per_label


if __name__ == "__main__":
    main()
