"""The dataset's train split, encoded -> data/latents."""

from pathlib import Path
from typing import Any

from facm import check, codecs, data, dist, params
from facm.data import latents
from facm.data.adopt import adopt
from facm.work import Work, key

OUT = Path("data/latents")


def main() -> None:
    p, raw = check.read(), params.raw()
    check.writable("data", ".work")
    dist.setup(p.runtime.threads)
    source, codec = data.admit(p.data), codecs.build(p.latents.codec, **check.codec_options(p))
    made_of = {"latents": raw["latents"], "data": source.fingerprint, "size": p.data.size}
    made_of |= {"codec": getattr(codec, "options", {})}
    work = Work("latents", dist.from_main(lambda: key(made_of, [], __file__)), keep=1)
    try:
        write(p, source, codec, work.folder)
    except BaseException:
        work.close()
        raise
    work.finish()
    dist.teardown()


def write(p: params.Params, source: data.Admitted, codec: codecs.Codec, unfinished: Path) -> None:
    """Encode pictures, or take ready-made latents as they are."""
    options: dict[str, Any] = {"flip": p.latents.flip, "dataset_name": p.data.name, "fingerprint": source.fingerprint}
    if p.data.name in data.LATENTS:
        adopt(OUT, source.dataset, codec, labels=p.latents.labels, **options)
        return
    images = source.load("train")
    latents.write(
        OUT,
        images if p.latents.labels else images.unlabelled(),
        codec,
        shard_size=p.latents.shard_size,
        batch_size=p.latents.batch_size,
        skipped=source.skipped,
        unfinished=unfinished,
        **options,
    )


if __name__ == "__main__":
    main()
