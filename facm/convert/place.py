"""A converted network as the pipeline's teacher: it must be what params.yaml and data/latents say the teacher is.

No file tells which codec, and which of its weights, a network was trained on: those of data/latents are taken.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm import convert
from facm.convert import labels, layouts
from facm.data.latents.store import LatentSet
from facm.networks import checkpoint, preconds
from facm.networks.checkpoint import Config
from facm.runtime.files import refuse_no_file
from facm.runtime.foreign import ForeignError
from facm.runtime.params import Imported
from facm.runtime.paths import located

FREE = ("edm", "ddpm")  # preconds that translate between the network's data and ours, however those are normalised


def read(
    imported: Imported, codec: str, backbone: tuple[str, dict[str, Any]], precond: str, classes: int | None = None
) -> tuple[dict[str, Tensor], Config]:
    """The checkpoint that params.yaml names, converted; it needs no latents.

    It must have this backbone (name and constants) and precond. `classes` of the data: 0: none; None: not known yet.
    Raises FileNotFoundError, ForeignError, ValueError as `convert.space` and `convert.convert`.
    """
    source = convert.Source(
        path=located(imported.source or ""),
        format=imported.format or "",
        which=imported.which,
        profile=imported.profile,
        trust=imported.trust_pickle,
        sha256=imported.sha256,
    )
    layouts.refuse_path(source.path, "params.yaml, imported.source: ")
    refuse_no_file(source.path, "params.yaml, imported.source: ")
    stats = None if imported.stats is None else located(imported.stats)
    if stats is not None:
        refuse_no_file(stats, "params.yaml, imported.stats: ")
    space = convert.space(source.format, codec=codec, stats=stats)
    given = backbone[1] | {"classes": classes or labels.OF_DATA}
    return convert.convert(source, space, given, expected=(backbone[0], precond))


def refuse_other(config: Config, conditioning: str, precond: dict[str, Any], path: Path) -> None:
    """Raise ForeignError where params.yaml has another conditioning, or other constants of the precond."""
    if conditioning != config.conditioning:
        cure = (
            "to have it know the FM format too, convert it with `python -m facm.convert`, fine-tune it for a few "
            "epochs with teacher.stage: teacher and teacher.init (paper, A.3a)"
            if config.conditioning == "plain"
            else "or choose another source"
        )
        raise ForeignError(
            f"{path} knows conditioning '{config.conditioning}', params.yaml, teacher.conditioning is "
            f"'{conditioning}': set it to {config.conditioning}; {cure}"
        )
    constants = preconds.defaults(config.precond) | precond
    for name, value in config.precond_constants.items():
        if constants[name] != value:
            raise ForeignError(
                f"{path} has {name} {value}, params.yaml, preconds.{config.precond}.{name} is {constants[name]}: set "
                f"it to {value}"
            )


def place(config: Config, latents: LatentSet, conditioning: str, precond: dict[str, Any], path: Path) -> Config:
    """The description under which a converted network is the pipeline's teacher; arguments as `refuse_other`'s.

    Raises:
        ForeignError: as `refuse_other`.
        ValueError: statistics that the precond cannot have.
        facm.networks.checkpoint.CheckpointError: other classes, shape or statistics than those of data/latents.
    """
    refuse_other(config, conditioning, precond, path)
    mean, std = latents.mean.tolist(), latents.std.tolist()
    sizes = {
        "shape": tuple(latents.shape),
        "num_classes": latents.num_classes,
        "codec": latents.codec,
        "codec_options": latents.codec_options,
    }
    own = replace(config, mean=mean, std=std, precond_constants=precond, **sizes)  # type: ignore[arg-type]
    config = replace(config, codec=latents.codec, codec_options=latents.codec_options)
    if config.precond in FREE:
        config = replace(config, mean=mean, std=std)
    checkpoint.check_fits(own, config, path)
    with torch.device("meta"):
        own.build()  # refuses statistics that the precond cannot have
    return own
