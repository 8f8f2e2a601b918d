"""Feature networks, the dataset's statistics under them, and the ends of the scale -> data/reference."""

from pathlib import Path

from facm import check
from facm.check import inputs
from facm.data import datasets
from facm.metrics import reference
from facm.metrics.published import DATASET, Archive
from facm.networks import features
from facm.runtime import dist
from facm.runtime.files import save_json
from facm.runtime.paths import repository_root


def main() -> None:
    params = check.read()
    check.writable("data", "metrics")
    inputs.refuse_missing(params, inputs.done_before())
    dist.setup(params.runtime.threads)
    r = params.reference
    archive = None if r.source == DATASET else Archive.open(repository_root() / r.source, r.sha256 or "")
    dist.from_main(lambda: features.find_weights([r.features, *(r.also or ())]))
    source = datasets.admit(params.data)
    splits = {} if params.data.name in datasets.LATENTS else {split: source.load(split) for split in datasets.SPLITS}
    figures = reference.build(
        "data/reference",
        splits.get("train"),
        splits.get("heldout"),
        features=r.features,
        seed=r.seed,
        num=r.num,
        also=r.also or (),
        archive=archive,
        copies=params.evaluate.copies,
    )
    if dist.is_main():
        save_json(Path("metrics/reference.json"), figures)
    dist.teardown()


if __name__ == "__main__":
    main()
