"""`python -m facm.data`: print the line `data.fingerprint: <sha256>` for the dataset in params.yaml.

`--look` decodes every file of a folder, too, and names those that are no usable pictures.
"""

import argparse
from collections.abc import Sequence

from facm.data.datasets import dataset_of, fingerprint
from facm.data.images.survey import tell
from facm.runtime import params
from facm.runtime.log import say

SHOWN = 20  # classes


def main() -> None:
    """Print the fingerprint of the dataset that params.yaml, or else `--name` and `--root`, name."""
    parser = argparse.ArgumentParser(prog="python -m facm.data", description="print a data set's fingerprint")
    parser.add_argument("--name", help="data set; left out: data.name and data.root of params.yaml")
    parser.add_argument("--root", help="its folder, where it has one")
    parser.add_argument("--look", action="store_true", help="of a folder: name the files that are no usable pictures")
    parser.add_argument("--side", type=int, help="data.side, with --name and --look")
    arguments = parser.parse_args()
    try:
        if arguments.side is not None and arguments.side < 1:
            raise ValueError(f"--side {arguments.side} must be at least 1")
        block = params.read().data if arguments.name is None else arguments
        if not arguments.look:
            say(f"data.fingerprint: {fingerprint(block.name, block.root)}")
            return
        dataset = dataset_of(block.name, block.root, size=block.side)
        if not hasattr(dataset, "survey"):
            raise ValueError(f"--look is for folders of pictures, not for '{block.name}'")
        survey = dataset.survey(strict=False)
        say(f"data.fingerprint: {survey.fingerprint}")
        num = sum(map(len, survey.names.values()))
        say(f"{num} usable pictures of {survey.sides[1]}x{survey.sides[0]} pixels, {classes(survey.classes)}")
        for warning in survey.warnings:
            say(f"warning: {warning}")
        for name, reason in survey.skipped.items():
            say(tell({name: reason}))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def classes(names: Sequence[str]) -> str:
    """The labels of class folders, as they are asked for; of many the first and the last."""
    if not names:
        return "no classes: reference.features must be inception, the small feature networks learn classes"
    if list(names) == list(map(str, range(len(names)))):
        return f"{len(names)} classes: 0..{len(names) - 1}"
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
    told = numbered if len(names) <= SHOWN else [*numbered[: SHOWN - 1], "...", numbered[-1]]
    return f"{len(names)} classes: {', '.join(told)}"


if __name__ == "__main__":
    main()
