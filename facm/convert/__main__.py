"""`python -m facm.convert SOURCE --from FORMAT --out DIR`: a published checkpoint as a checkpoint folder, and back.

    python -m facm.convert 800ep-stg1.pt --from facm --stats latents_stats.pt --vae VAE --out teachers/facm
    python -m facm.convert fast.pt --from facm --kind student --stats latents_stats.pt --vae VAE --out students/facm
    python -m facm.convert 0100000.pt --from facm --profile 0.05 --trust-pickle --stats ... --vae VAE --out DIR
    python -m facm.convert SiT-XL-2-256x256.pt --from sit --vae stabilityai/sd-vae-ft-ema --out teachers/sit
    python -m facm.convert edm-cifar10-32x32-uncond-vp.pkl --from edm --trust-pickle --out teachers/edm
    python -m facm.convert data/student --to facm --out student.pt --stats latents_stats.pt

VAE names the codec's weights as latents.vae does (facm/data/latents/autoencoder.py): they travel with the network, and
a training that starts from it must have the same. No file tells which it was trained on: only its channels are
compared. What a file says of its own training is read, printed and kept (facm/convert/settings.py). Of a table of
labels that is not ImageNet's, --set classes=N says how many there are. The first line that is printed has the sha256
for teacher.init_sha256.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from facm import convert
from facm.convert import weights
from facm.convert.export import TARGETS, export
from facm.data import codecs
from facm.networks import checkpoint
from facm.networks.checkpoint import Config
from facm.runtime.files import refuse_no_target, sha256
from facm.runtime.log import say

PICTURE = (256, 256, 3)  # any that codecs with weights take: its latent tells their channels
OF_ONE_WAY = {  # options that say nothing the other way
    "from": ("kind", "which", "profile", "codec", "vae", "set", "sha256", "trust_pickle"),
    "to": ("sigma_rel",),
}


def main() -> None:
    """Convert a published checkpoint to a checkpoint folder (--from), or a folder to the authors' format (--to)."""
    parser = _parser()
    arguments = parser.parse_args()
    way, other = ("to", "from") if arguments.to else ("from", "to")
    for name in OF_ONE_WAY[other]:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} goes with --{other}, not with --{way}")
    try:
        (_export if arguments.to else _import)(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def constant(text: str) -> tuple[str, Any]:
    """ "heads=16" -> ("heads", 16): numbers, true, false, none, text; commas make a list; else ValueError."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {text!r}: write NAME=VALUE, such as heads=16")
    parts = [_plain(part) for part in value.split(",")]
    return name, parts if len(parts) > 1 else parts[0]


def _plain(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m facm.convert", description=main.__doc__)
    parser.add_argument(
        "source", help="file of the published checkpoint (.pt, .pkl, .safetensors), or our folder (--to)"
    )
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--from", dest="format", help=f"format of the source: {', '.join(convert.FORMATS)}")
    ways.add_argument("--to", choices=TARGETS, help="write the authors' format instead")
    parser.add_argument("--out", required=True, help="checkpoint folder to write; with --to the .pt file")
    parser.add_argument("--kind", choices=("teacher", "student"), default="teacher", help="what the source is")
    parser.add_argument("--which", choices=weights.CHOICES, default="ema", help="averaged (default) or raw weights")
    parser.add_argument("--profile", type=float, default=0.2, help="sigma_rel of FACM's two averages: 0.2 or 0.05")
    parser.add_argument("--stats", help="latents_stats.pt that normalises the source's latents; with --to: written")
    parser.add_argument("--codec", help="key of facm/codecs; default: the format's")
    parser.add_argument("--vae", help="weights of the codec, as latents.vae in params.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="constant of the network, or classes=N"
    )
    parser.add_argument("--sha256", help="refuse a source of another content")
    parser.add_argument("--trust-pickle", action="store_true", help="read a pickle that names code (none of it is run)")
    parser.add_argument("--sigma-rel", type=float, help="with --to: post-hoc EMA length instead of the stored weights")
    return parser


def _import(arguments: argparse.Namespace) -> None:
    path, out = Path(arguments.source), Path(arguments.out)
    checkpoint.refuse_foreign(out)
    if out.resolve() in path.resolve().parents:
        raise ValueError(f"{path} lies in {out}, which is replaced as a whole: choose another --out")
    stats = None if arguments.stats is None else Path(arguments.stats)
    space, codec = convert.space(arguments.format, codec=arguments.codec, stats=stats), _codec(arguments)
    space = replace(space, options=getattr(codec, "options", {}))
    given = dict(constant(text) for text in arguments.set)
    source = convert.Source(
        path=path,
        format=arguments.format,
        which=arguments.which,
        profile=arguments.profile,
        trust=arguments.trust_pickle,
        kind=arguments.kind,
        sha256=arguments.sha256,
    )
    tensors, config = convert.convert(source, space, given)
    _refuse_channels(codec, config, path)
    checkpoint.save(out, tensors, config)
    average = {True: "averaged weights", False: "raw weights", None: "weights"}[config.params["imported"]["averaged"]]
    length = "" if config.sigma_rel is None else f" of sigma_rel {config.sigma_rel:g}"
    say(f"{out}: sha256 {checkpoint.read_config(out).sha256}")
    say(f"  {average}{length} of {path.name} (sha256 {config.params['imported']['sha256']})")
    say(f"  {config.backbone} {config.constants}, precond {config.precond}, conditioning {config.conditioning}")
    say(f"  latents {config.shape} of codec {config.codec}, {config.num_classes} classes")
    say(f"  {convert.told_settings(config)}")
    if (told := convert.other_codec(arguments.format, config.codec)) is not None:
        say(f"  {told}")


def _codec(arguments: argparse.Namespace) -> codecs.Codec | None:
    """The codec, so that its weights are looked at; None: it has none."""
    name = arguments.codec or convert.load_format(arguments.format).codec
    if (name in codecs.WEIGHTS) != (arguments.vae is not None):
        rule = "needs its weights (folder, hub name or file)" if name in codecs.WEIGHTS else "has no weights"
        raise ValueError(f"--vae {arguments.vae}: codec '{name}' {rule}")
    return None if arguments.vae is None else codecs.build(name, vae=arguments.vae)


def _refuse_channels(codec: codecs.Codec | None, config: Config, path: Path) -> None:
    """Raise ValueError where a network's latents cannot be those of its codec."""
    channels = config.shape[0] if codec is None else codec.latent_shape(PICTURE)[0]
    if channels != config.shape[0]:
        raise ValueError(
            f"{path} has latents of {config.shape[0]} channels, codec '{config.codec}' makes {channels}: set --codec "
            "to the one it was trained on"
        )


def _export(arguments: argparse.Namespace) -> None:
    out, stats = Path(arguments.out), None if arguments.stats is None else Path(arguments.stats)
    for option, path in (("--out", out), ("--stats", stats)):
        if path is not None:
            checkpoint.refuse_own(arguments.source, path, option)
            checkpoint.refuse_made(path, option)
            refuse_no_target(path, option)
    if stats is not None and stats.resolve() == out.resolve():
        raise ValueError(f"--stats {stats} is --out, too: choose another")
    needed = export(Path(arguments.source), out, sigma_rel=arguments.sigma_rel, stats=stats)
    say(f"{out}: sha256 {sha256(out)}")
    say("  their ldit/lightningdit.yaml needs " + ", ".join(f"{name}: {value}" for name, value in needed.items()))


if __name__ == "__main__":
    main()
