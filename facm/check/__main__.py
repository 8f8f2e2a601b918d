"""`python -m facm.check`: everything in params.yaml that can be refused before any work."""

import argparse

from facm import check
from facm.check import inputs
from facm.runtime.params import PATH


def main() -> None:
    """Check params.yaml."""
    argparse.ArgumentParser(prog="python -m facm.check", description=main.__doc__).parse_args()
    try:
        inputs.refuse_missing(check.read())
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{PATH}: in order")


if __name__ == "__main__":
    main()
