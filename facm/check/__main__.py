"""`python -m facm.check`: everything in params.yaml that can be refused before any work, all broken rules at once."""

import argparse

from facm import check
from facm.check import inputs
from facm.runtime import params
from facm.runtime.params import PATH


def main() -> None:
    """Check params.yaml."""
    argparse.ArgumentParser(prog="python -m facm.check", description=main.__doc__).parse_args()
    broken: list[object] = []
    try:
        p = params.read()
        broken += check.broken(p)
        if not broken:
            inputs.refuse_missing(p)
    except (FileNotFoundError, ValueError) as error:
        broken.append(error)
    if broken:
        raise SystemExit("\n".join(f"error: {message}" for message in broken))
    print(f"{PATH}: in order")


if __name__ == "__main__":
    main()
