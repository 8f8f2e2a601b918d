"""`python -m facm.posthoc data/student --sigma-rel 0.1 --out DIR`: post-hoc EMA of any length, without training."""

import argparse
from dataclasses import replace

from facm.networks import checkpoint
from facm.runtime.log import say


def main() -> None:
    """Synthesise weights from a checkpoint's snapshots and write them as a checkpoint of their own."""
    parser = argparse.ArgumentParser(prog="python -m facm.posthoc", description=main.__doc__)
    parser.add_argument("folder", help="checkpoint folder with EMA snapshots")
    parser.add_argument(
        "--sigma-rel", type=float, required=True, help="EMA length as a share of training, 0 < s < 0.28"
    )
    parser.add_argument("--out", required=True, help="folder to write; an earlier checkpoint there is replaced")
    arguments = parser.parse_args()
    try:
        checkpoint.refuse_own(arguments.folder, arguments.out)
        checkpoint.refuse_foreign(arguments.out)
        weights = checkpoint.synthesize(arguments.folder, arguments.sigma_rel)
        config = replace(checkpoint.read_config(arguments.folder), sigma_rel=arguments.sigma_rel)
        checkpoint.save(arguments.out, weights, config, [path for _, _, path in checkpoint.snapshots(arguments.folder)])
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    say(f"{arguments.out}: {arguments.folder} at sigma_rel {arguments.sigma_rel:g}")


if __name__ == "__main__":
    main()
