"""What the latents stage costs beside the encoder alone, in one run; see README.md.

python -m benchmarks.encoding                       # photographs that scikit-learn has, random weights
python -m benchmarks.encoding --codec sd_vae --vae stabilityai/sd-vae-ft-ema --width 128 --num 2048

Three ways, interleaved: `encoder`, the codec on pictures that lie in memory; `reading`, the files decoded, cropped and
nothing else; `stage`, both, with the shards written, as `python -m stages.latents` does it once the files are checked.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks import command, meter
from benchmarks.generation import Wrong
from benchmarks.step import environment
from facm.data import codecs
from facm.data.codecs.sd_vae import SdVae
from facm.data.codecs.va_vae import VaVae
from facm.data.images.files import Disk, Files
from facm.data.images.images import Images
from facm.data.latents import store
from facm.data.latents.autoencoder import Architecture
from facm.runtime import dist

ARCHITECTURES: dict[str, Architecture] = {"sd_vae": SdVae.architecture, "va_vae": VaVae.architecture}
SIDES, QUALITY = (500, 375), 90  # pixels, about ImageNet's mean; of the JPEG files
TURN = 7  # pixels by which each picture's window is further right and down than the one's before


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    command.run(parse(arguments), measure, table)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding", description=main.__doc__)
    parser.add_argument("--codec", choices=ARCHITECTURES, default="sd_vae", help="default sd_vae")
    parser.add_argument("--vae", help="its weights, as latents.vae; default: random ones")
    parser.add_argument("--width", type=int, default=32, help="channels of the first level of random weights (32)")
    parser.add_argument("--size", type=int, default=256, help="pixels per side after the crop (default 256)")
    parser.add_argument("--num", type=int, default=64, help="pictures (default 64)")
    parser.add_argument("--batch", type=int, default=32, help="pictures encoded at once (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each way (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the encoder (default 1)")
    parser.add_argument("--json", type=Path, help="file for all figures and raw samples")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is told: where, with what, and seconds by way."""
    device = dist.device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vae = options.vae or random_weights(folder / "vae", ARCHITECTURES[options.codec], options.width)
        codec = codecs.build(options.codec, vae=str(vae))
        pictures = photographs(folder / "pictures", options.num, options.size)
        runs = ways(folder / "latents", pictures, codec, options.batch)
        gate(torch.cat(runs["encoder"]()), runs["stage"], folder / "latents")
        runs["reading"]()
        samples = meter.interleaved(runs, options.rounds, device)
    config = {name: getattr(options, name) for name in ("codec", "vae", "width", "size", "num", "batch", "rounds")}
    return environment(device) | {"config": config, "samples": samples}


def gate(expected: Tensor, stage: Callable[[], Any], folder: Path) -> None:
    """Run the stage; raise Wrong where its latents are not the encoder's, to the bit: batches are the same."""
    stage()
    found = store.LatentSet.open(folder)
    (shard,) = found.shards
    if not torch.equal(shard["latents"], expected):
        raise Wrong(f"{folder} holds other latents than the encoder gives")


def random_weights(folder: Path, architecture: Architecture, width: int) -> Path:
    """A folder of diffusers with an autoencoder of the published architecture."""
    from diffusers import AutoencoderKL

    network: Any = AutoencoderKL(**architecture.config(width))
    network.save_pretrained(folder)
    return folder


def photographs(folder: Path, num: int, size: int) -> Files:
    """JPEG files of ImageNet's usual size: windows of the two photographs that scikit-learn comes with."""
    from sklearn.datasets import load_sample_images

    whole, (width, height) = [Image.fromarray(image) for image in load_sample_images().images], SIDES
    folder.mkdir()
    names = [f"{i:05d}.jpg" for i in range(num)]
    for i, name in enumerate(names):
        picture = whole[i % len(whole)]
        left, top = (TURN * i) % (picture.width - width), (TURN * i) % (picture.height - height)
        picture.crop((left, top, left + width, top + height)).save(folder / name, quality=QUALITY)
    return Files.of(Disk(folder), names, (size, size), size)


def ways(folder: Path, pictures: Files, codec: codecs.Codec, batch: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    held = pictures[:]
    parts = [slice(part.start, part.stop) for part in dist.batches(len(pictures), batch)]
    streams = range(0, 2 * len(pictures), 2)  # the odd ones are those of mirrored pictures
    stage = partial(
        store.write,
        folder,
        Images(pictures, None, 0),
        codec,
        flip=False,
        shard_size=len(pictures),
        dataset_name="photographs",
        fingerprint="",
        batch_size=batch,
    )
    return {
        "encoder": lambda: [codec.encode(held[part], streams[part]).cpu() for part in parts],
        "reading": lambda: [pictures[part] for part in parts],
        "stage": stage,
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown: wall time on a GPU or with several threads, process time with one on a CPU."""
    config, samples = result["config"], result["samples"]
    key = "cpu" if "cpu" in samples["encoder"] and result["threads"] == 1 else "wall"
    rows = {name: meter.spread(clocks[key])["median"] for name, clocks in samples.items()}
    both, least = rows["encoder"] + rows["reading"], max(rows["encoder"], rows["reading"])
    lines = [f"{result['device']}, torch {result['torch']}, commit {result['git']['commit'][:7]}, {config}"]
    lines += ["", f"| way | {key} ms per picture | pictures/s | / encoder |", "|---|---|---|---|"]
    for name, seconds in rows.items():
        each = seconds / config["num"]
        lines.append(f"| {name} | {1e3 * each:.2f} | {1 / each:.1f} | {seconds / rows['encoder']:.3f} |")
    shared = f"stage / (encoder + reading): {rows['stage'] / both:.3f}"
    return "\n".join([*lines, "", shared if key == "cpu" else f"stage / the slower: {rows['stage'] / least:.3f}"])


if __name__ == "__main__":
    main()
