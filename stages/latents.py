"""The dataset's train split, encoded -> data/latents."""

from facm import check, codecs, data, dist, encoder
from facm.data import latents, tokens


def main() -> None:
    params = check.read()
    check.writable("data")
    dist.setup(params.runtime.threads)
    fingerprint = dist.from_main(lambda: data.verify(params.data.name, params.data.root, params.data.fingerprint))
    images = data.load(params.data.name, params.data.root, "train")
    latents.write(
        "data/latents",
        images if params.latents.labels else images.unlabelled(),
        codecs.build(params.latents.codec),
        flip=params.latents.flip,
        shard_size=params.latents.shard_size,
        batch_size=params.latents.batch_size,
        dataset_name=params.data.name,
        fingerprint=fingerprint,
    )
    asked = params.latents.tokens
    if asked.encoder is not None and asked.weights is not None and asked.sha256 is not None:
        tokens.write(
            "data/latents",
            lambda part: images.images[part.start : part.stop],
            len(images),
            encoder.load(asked.encoder, asked.weights, asked.sha256, asked.side).to(dist.device()),
            flip=params.latents.flip,
            shard_size=params.latents.shard_size,
            batch_size=params.latents.batch_size,
            fingerprint=fingerprint,
        )
    dist.teardown()


if __name__ == "__main__":
    main()
