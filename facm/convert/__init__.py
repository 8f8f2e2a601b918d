"""Published checkpoints as checkpoint folders of this project, one source format per file, and students back.

    python -m facm.convert SOURCE --from facm|lightningdit|sit|dit|repa|edm --out DIR
    python -m facm.convert data/student --to facm --out student.pt

A converted network answers with the velocity v of x_t = (1 - t) x0 + t x1, t = 1 for data, whatever its authors'
convention. A new format is a file and a line in FORMATS.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm import objectives
from facm.convert import layouts, settings, weights
from facm.convert.export import read_statistics
from facm.convert.weights import Format, Found
from facm.data import codecs
from facm.networks import checkpoint
from facm.networks.checkpoint import Config
from facm.runtime import files, foreign
from facm.runtime.foreign import ForeignError
from facm.runtime.names import refuse_unknown
from facm.runtime.registry import Registry

FORMATS = Registry(
    __name__,
    "--from (in params.yaml: imported.format)",
    facm="FACM",
    lightningdit="LightningDiT",
    sit="SiT",
    dit="DiT",
    repa="REPA",
    edm="EDM",
)

TRUSTING = (
    "add --trust-pickle (in params.yaml: imported.trust_pickle: true): its tensors are then read, with stand-ins for "
    "all else, none of whose code is run"
)

UNTOLD = {"pixel_norm": False, "time_scale": 1.0}
"""Constants that change what a network computes and that no weight tells, as published networks have them; FACM's own
may have had pixel_norm (its sCM needs an edit of the source)."""


@dataclass(frozen=True)
class Source:
    """A foreign file, and how to read it."""

    path: Path
    format: str  # a key of FORMATS
    which: str = "ema"  # ema (averaged weights) | model (raw ones)
    profile: float = 0.2  # of several averages (FACM's training files) the one of this sigma_rel
    trust: bool = False  # read it although it holds more than tensors and plain values, see `foreign.read`
    kind: str = "teacher"  # teacher | student
    sha256: str | None = None  # pinned: another content is refused before it is read


@dataclass(frozen=True)
class Space:
    """Where a network lives: a codec, mean and std per channel of its output (empty: 0 and 1), and its options."""

    codec: str
    mean: list[float]
    std: list[float]
    options: dict[str, Any] = field(default_factory=dict)


def load_format(name: str) -> Format:
    """The source format; raises ValueError for an unknown name."""
    made: Format = FORMATS.load(name)()
    return made


def space(format: str, *, codec: str | None = None, stats: Path | None = None) -> Space:
    """The space of a format's latents, of its own codec or another, with the statistics of a latents_stats.pt.

    Raises:
        ForeignError: statistics are needed and not given.
        ValueError: an unknown codec.
    """
    known = load_format(format)
    refuse_unknown([codec or known.codec], codecs.CODECS, "--codec")
    if stats is not None:
        return Space(codec or known.codec, *read_statistics(stats))
    if known.normalised:
        raise ForeignError(
            f"'{format}' normalises its latents: give the latents_stats.pt that belongs to the checkpoint with --stats "
            "(in params.yaml: imported.stats); the network means nothing without it"
        )
    return Space(codec or known.codec, [], [])


def other_codec(format: str, codec: str) -> str | None:
    """A line where a codec is not the one that a format was published with; no file tells what it was trained on."""
    published = load_format(format).codec
    if codec == published:
        return None
    return f"codec {codec}: {format} was published with {published}; no file tells its codec, so that this is taken"


def convert(
    source: Source, where: Space, given: Mapping[str, Any] | None = None, *, expected: tuple[str, str] | None = None
) -> tuple[dict[str, Tensor], Config]:
    """Weights and description of a foreign checkpoint, ready for `checkpoint.save`.

    Args:
        given: constants of the backbone that shapes do not tell, or all of them; they win. `side`: pixels of a latent;
            `classes`: how many, see labels.py.
        expected: backbone and precond that it must have; None: any.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignError: it is another format, its settings cannot be translated or contradict what is given, or it does
            not fit: the message has every missing, unexpected and mis-shaped name.
        ValueError: an unknown format, or constants that no network has.
    """
    known = load_format(source.format)
    if source.kind == "student" and not known.students:
        raise ForeignError(f"'{source.format}' publishes no few-step students: set --kind teacher")
    digest = _verified(source)
    content = foreign.read(source.path, trust=source.trust, trusting=TRUSTING)
    chosen = weights.choose(content, source.path, which=source.which, profile=source.profile)
    layouts.refuse_names(chosen.tensors, source.path)
    settings.refuse_other(chosen.settings, source.format, known.settings, source.path)
    given = settings.constants(chosen.settings, given or {}, known.settings, source.path)
    found = known.read(chosen, given, source.path)
    for name, published in UNTOLD.items():
        if found.constants.get(name, published) != published and (source.format, name) != ("facm", "pixel_norm"):
            raise ForeignError(
                f"{source.path}: no published {source.format} network has {name} {found.constants[name]!r}, which no "
                f"weight would tell: set it to {published!r} (in params.yaml: backbones.{found.backbone}.{name})"
            )
    if expected not in (None, (found.backbone, found.precond)):
        raise ForeignError(
            f"{source.path} is a {found.backbone} with precond {found.precond}, params.yaml, backbone "
            f"has name and precond {expected}: set both as the checkpoint has them, and its block under backbones"
        )
    channels = found.shape[0]
    if where.mean and len(where.mean) != channels:
        raise ForeignError(
            f"{source.path} has latents of {channels} channels, the statistics are of {len(where.mean)}: another stats"
        )
    mean, std = settings.statistics(chosen.settings, where.mean, where.std, _scale(where.codec), channels, source.path)
    where = replace(where, mean=mean or [0.0] * channels, std=std or [1.0] * channels)
    config = _describe(source, digest, chosen, found, where)
    prefix = "" if found.precond == "none" else "model."  # of the network within a preconditioning
    return weights.fit({prefix + name: tensor for name, tensor in found.weights.items()}, config, source.path), config


def _verified(source: Source) -> str:
    """sha256 of the file, compared with the pinned one; raises FileNotFoundError, ForeignError."""
    layouts.refuse_path(source.path)
    files.refuse_no_file(source.path)
    digest = files.sha256(source.path)
    if source.sha256 is not None and digest != source.sha256:
        raise ForeignError(
            f"{source.path} has sha256 {digest}, pinned is {source.sha256}: it is another file than the pinned one, or "
            "damaged; fetch it again, or pin what you mean (in params.yaml: imported.sha256)"
        )
    return digest


def _describe(source: Source, digest: str, chosen: weights.Weights, found: Found, where: Space) -> Config:
    objective = objectives.OBJECTIVES.load("facm" if source.kind == "student" else "fm")()
    told = {
        "source": source.path.name,
        "format": source.format,
        "sha256": digest,
        "averaged": chosen.averaged,
        "step": chosen.step,
        "settings": chosen.settings.told,
    }
    return Config(
        kind=source.kind,
        backbone=found.backbone,
        constants=found.constants,
        shape=found.shape,
        num_classes=found.num_classes,
        conditioning=found.conditioning,
        fraction=1.0 if source.kind == "student" else found.fraction,
        codec=where.codec,
        mean=where.mean,
        std=where.std,
        objective="facm" if source.kind == "student" else "fm",
        samplers=list(objective.samplers),
        step=chosen.step or 0,
        sigma_rel=chosen.sigma_rel,
        params={"imported": told},
        threads=torch.get_num_threads(),
        versions=checkpoint.versions(),
        precond=found.precond,
        precond_constants=found.precond_constants,
        codec_options=where.options,
        null_label=found.null_label,
    )


def _scale(codec: str) -> float:
    """By which a codec multiplies its autoencoder's latents."""
    architecture = getattr(codecs.CODECS.load(codec), "architecture", None)
    return 1.0 if architecture is None else float(architecture.scale)


def told_settings(config: Config) -> str:
    """A line on the settings that were found in a converted network's file."""
    found = config.params["imported"]["settings"]
    named = ", ".join(f"{name} {value!r}" for name, value in found.items())
    null = "" if config.null_label or not config.num_classes else "; no null label: it cannot be guided"
    return f"settings in the file: {named or 'none, taken as published'}{null}"
