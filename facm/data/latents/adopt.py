"""Ready-made latents as data/latents: copied shard by shard, with the statistics that came with them."""

from pathlib import Path
from typing import Any

from facm.data.latents import statistics, store
from facm.data.latents.codec import Codec
from facm.runtime import dist
from facm.runtime.files import save_tensors
from facm.runtime.log import progress


def adopt(
    folder: str | Path, dataset: Any, codec: Codec, *, flip: bool, labels: bool, dataset_name: str, fingerprint: str
) -> None:
    """Write a set of latents, which the ranks share; nothing is encoded or computed.

    Args:
        folder: where to; an earlier set in it is removed.
        dataset: has `paths`, `read`, `refuse_uneven` and `statistics_path`
        (facm.data.datasets.precomputed.Precomputed). codec: whose latents they are.
        flip: take over the mirrored ones, which must be there.
        labels: take over the labels; the number of classes is one more than the greatest.
        dataset_name, fingerprint: recorded.

    Raises:
        ValueError: shards or statistics of another form, lost ones, or latents that the codec does not have.
    """
    dist.from_main(dataset.refuse_uneven)
    folder, given = Path(folder), statistics.read(dataset.statistics_path)
    shape = tuple(dataset.read(0, flip=flip, labels=labels)["latents"].shape[1:])
    _check(codec, shape, len(given["mean"]))
    if dist.is_main():
        store.empty(folder)
    dist.barrier()
    mine, num_shards = dist.share(len(dataset.paths)), len(dataset.paths)

    def written(number: int) -> tuple[dict[str, Any], int]:
        shard = dataset.read(number, flip=flip, labels=labels)
        num, *of_one = shard["latents"].shape
        if tuple(of_one) != shape:
            raise ValueError(f"{dataset.paths[number]} has latents {tuple(of_one)}, {dataset.paths[0]} has {shape}")
        described = save_tensors(folder / store.shard_name(number), shard)
        return described | {"num": num}, 1 + int(shard["labels"].max()) if labels else 0

    made = list(dist.in_order(map(written, progress(mine, len(mine), "taking over")), num_shards))
    if dist.is_main():
        described, classes = [shard for shard, _ in made], max(num_classes for _, num_classes in made)
        meta = {"codec": codec.name, "dataset": dataset_name, "fingerprint": fingerprint, "flips": flip}
        sizes = {"shape": list(shape), "num": sum(shard["num"] for shard in described), "num_classes": classes}
        store.finish(folder, meta | sizes, given, described, getattr(codec, "options", {}))


def _check(codec: Codec, shape: tuple[int, ...], channels: int) -> None:
    """Raise ValueError where a codec, or statistics of so many channels, do not go with latents of a shape."""
    if channels != shape[0]:
        raise ValueError(f"latents_stats.pt has {channels} channels, the latents of data.root have {shape[0]}")
    factor = getattr(getattr(codec, "architecture", None), "factor", 1)
    expected = codec.latent_shape((shape[1] * factor, shape[2] * factor, 3))
    if expected != shape:
        raise ValueError(
            f"params.yaml, latents.codec: '{codec.name}' has latents {expected}, those of data.root are {shape}: name "
            "the codec that they were made with"
        )
