"""The dataset's train split, encoded -> data/latents."""

from pathlib import Path
from typing import Any

from facm import check
from facm.check import inputs
from facm.data import codecs, datasets
from facm.data.latents import encoder, statistics, store, tokens
from facm.runtime import dist, params
from facm.runtime.paths import located
from facm.runtime.resume import Work, key

OUT = Path("data/latents")
NOT_OF_SHARDS = ("normalise", "stats", "stats_sha256")  # params of which a finished shard knows nothing


def main() -> None:
    p, raw = check.read(), params.raw()
    check.writable("data", ".work")
    inputs.refuse_missing(p)
    dist.setup(p.runtime.threads)
    codec = codecs.build(p.latents.codec, **check.codec_options(p))
    if p.data.side is not None:
        codec.latent_shape((p.data.side, p.data.side, 3))  # refused before all pictures are looked at
    source = datasets.admit(p.data)
    encoded = {name: value for name, value in raw["latents"].items() if name not in NOT_OF_SHARDS}
    made_of = {"latents": encoded, "data": source.fingerprint, "side": p.data.side}
    made_of |= {"codec": getattr(codec, "options", {})}
    work = Work("latents", dist.from_main(lambda: key(made_of, [], __file__)), keep=1)
    try:
        write(p, source, codec, work.folder)
    except BaseException:
        work.close()
        raise
    work.finish()
    dist.teardown()


def write(p: params.Params, source: datasets.Admitted, codec: codecs.Codec, unfinished: Path) -> None:
    """Encode pictures, or take ready-made latents as they are."""
    options: dict[str, Any] = {"flip": p.latents.flip, "dataset_name": p.data.name, "fingerprint": source.fingerprint}
    given = None if p.latents.stats is None else statistics.pinned(located(p.latents.stats), p.latents.stats_sha256)
    if p.data.name in datasets.LATENTS:
        store.adopt(OUT, source.dataset, codec, labels=p.latents.labels, **options)
        return
    asked, encoding = p.latents.tokens, None
    if asked.encoder is not None and asked.weights is not None and asked.sha256 is not None:
        encoding = encoder.load(asked.encoder, asked.weights, asked.sha256, asked.side).to(dist.device())
    images = source.load("train")
    shape, num_classes = codec.latent_shape(images.images.shape[1:]), images.num_classes if p.latents.labels else 0
    if given is not None:
        statistics.refuse_channels(given, shape[0])
    coming = inputs.expected(p, shape, num_classes, codec_options=getattr(codec, "options", {}), given=given)
    dist.from_main(lambda: inputs.refuse_unfit(p, coming, None if encoding is None else encoding.shape))
    store.write(
        OUT,
        images if p.latents.labels else images.unlabelled(),
        codec,
        shard_size=p.latents.shard_size,
        batch_size=p.latents.batch_size,
        skipped=source.skipped,
        unfinished=unfinished,
        normalise=lambda measured: statistics.statistics(measured, p.latents.normalise, given),
        **options,
    )
    if encoding is not None:
        tokens.write(
            OUT,
            lambda part: images.images[part.start : part.stop],
            len(images),
            encoding,
            flip=p.latents.flip,
            shard_size=p.latents.shard_size,
            batch_size=p.latents.batch_size,
            fingerprint=source.fingerprint,
            unfinished=unfinished,
        )


if __name__ == "__main__":
    main()
