"""A converted network in the teacher's place: it must be what params.yaml and data/latents say the teacher is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from facm import checkpoint, preconds
from facm.checkpoint import Config
from facm.convert.pickles import ForeignError
from facm.data.latents import LatentSet

FREE = ("edm", "ddpm")  # preconds that translate between the network's data and ours, however those are normalised


def place(config: Config, latents: LatentSet, conditioning: str, precond: dict[str, Any], path: Path) -> Config:
    """The description under which a converted network is the pipeline's teacher.

    Args:
        config: as `convert` gives it.
        latents: the pipeline's.
        conditioning: of params.yaml, teacher.conditioning.
        precond: constants of the precond, of params.yaml.
        path: of the source, for messages.

    Raises:
        ForeignError: another conditioning, or other constants of the precond, than params.yaml says.
        ValueError: statistics that the precond cannot have.
        facm.checkpoint.CheckpointError: other classes, shape, codec or statistics than those of data/latents.
    """
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
    mean, std = latents.mean.tolist(), latents.std.tolist()
    sizes = {
        "shape": tuple(latents.shape),
        "num_classes": latents.num_classes,
        "codec": latents.codec,
        "codec_options": latents.codec_options,
    }
    own = replace(config, mean=mean, std=std, precond_constants=precond, **sizes)  # type: ignore[arg-type]
    config = replace(config, codec_options=latents.codec_options)
    if config.precond in FREE:
        config = replace(config, mean=mean, std=std)
    checkpoint.check_fits(own, config, path)
    defaults = preconds.defaults(config.precond)
    for name, value in config.precond_constants.items():
        if (defaults | precond)[name] != value:
            raise ForeignError(
                f"{path} has {name} {value}, params.yaml, preconds.{config.precond}.{name} is "
                f"{(defaults | precond)[name]}: set it to {value}"
            )
    with torch.device("meta"):
        own.build()  # refuses statistics that the precond cannot have
    return own
