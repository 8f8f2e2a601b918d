"""Feature networks, the dataset's statistics under them, and the ends of the scale -> data/reference."""

from pathlib import Path

from facm import check, data, dist, reference
from facm.files import save_json


def main() -> None:
    params = check.read()
    check.writable("data", "metrics")
    dist.setup(params.runtime.threads)
    source = data.admit(params.data)
    splits = {split: source.load(split) for split in data.SPLITS}
    figures = reference.build(
        "data/reference",
        splits["train"],
        splits["heldout"],
        features=params.reference.features,
        seed=params.reference.seed,
        num=params.reference.num,
    )
    if dist.is_main():
        save_json(Path("metrics/reference.json"), figures)
    dist.teardown()


if __name__ == "__main__":
    main()
