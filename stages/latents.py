"""The dataset's train split, encoded -> data/latents."""

from facm import check, codecs, data, dist
from facm.data import latents


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
    dist.teardown()


if __name__ == "__main__":
    main()
