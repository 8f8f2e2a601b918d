"""`python -m docs.figures`: make the figures of docs/concepts.md.

python -m docs.figures                            weightings, conditioning, trajectories, anchor, quality: SVG
python -m docs.figures --measure ANCHORED ALONE   before it, measure two runs of the preset mixture
python -m docs.figures --digits                   rows.png, from data/student and data/teacher
"""

import argparse
from pathlib import Path

from docs.figures import conditioning, digits, mixture, quality, weightings

FOLDER = Path(__file__).parent
FIGURES = {
    "weightings": weightings.make,
    "conditioning": conditioning.make,
    "trajectories": mixture.make_trajectories,
    "anchor": mixture.make_anchor,
    "quality": quality.make,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m docs.figures", description="make the figures of the documentation")
    parser.add_argument("--measure", nargs=2, metavar=("ANCHORED", "ALONE"), help="folders of two runs of the mixture")
    parser.add_argument("--digits", action="store_true", help="also those that need data/student and data/teacher")
    arguments = parser.parse_args()
    if arguments.measure:
        mixture.measure(*arguments.measure)
    for name, make in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(make())
    if arguments.digits:
        digits.make(FOLDER)


if __name__ == "__main__":
    main()
