"""`python -m facm.data`: print the line `data.fingerprint: <sha256>` for the data set in params.yaml."""

import argparse

from facm import params
from facm.data import fingerprint


def main() -> None:
    """Print the fingerprint of the data set that params.yaml, or else `--name` and `--root`, name."""
    parser = argparse.ArgumentParser(prog="python -m facm.data", description="print a data set's fingerprint")
    parser.add_argument("--name", help="data set; left out: data.name and data.root of params.yaml")
    parser.add_argument("--root", help="its folder, where it has one")
    arguments = parser.parse_args()
    try:
        block = params.read().data if arguments.name is None else arguments
        print(f"data.fingerprint: {fingerprint(block.name, block.root)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
