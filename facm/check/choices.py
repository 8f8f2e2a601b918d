"""What params.yaml chooses: the objective, the network and the codec with their constants, by block."""

from typing import Any

from facm import objectives
from facm.data import codecs
from facm.networks import backbones, preconds
from facm.runtime.params import PATH, Params, ParamsError


def build_objective(p: Params) -> Any:
    """The objective that `distill` names, with its constants checked.

    Raises:
        ParamsError: no block `objectives.<name>`.
        ValueError: a wrong constant.
    """
    name = p.distill.objective
    if name not in p.objectives:
        raise ParamsError(
            f"{PATH}, objectives: no block '{name}' for distill.objective; presets/base.yaml has its default"
        )
    return objectives.build(name, p.objectives[name], {key: getattr(p.distill, key) for key in objectives.SHARED})


def backbone(p: Params) -> tuple[str, dict[str, Any]]:
    """Name and constants of the chosen backbone, its size in numbers.

    Raises:
        ParamsError: there is none.
        ValueError: a variant that is unknown or contradicted.
    """
    name = p.backbone.name
    if name not in p.backbones:
        raise ParamsError(f"{PATH}, backbones: no block '{name}' for backbone.name")
    return name, backbones.resolve(name, p.backbones[name])


def check_backbone(p: Params) -> None:
    """Raise ValueError where the chosen backbone has no block, or a wrong constant."""
    backbones.refuse_constants(*backbone(p))


def precond(p: Params) -> tuple[str, dict[str, Any]]:
    """Name and constants of the chosen preconditioning.

    Raises:
        ParamsError: there is none.
        ValueError: a wrong constant.
    """
    name = p.backbone.precond
    if name not in p.preconds:
        raise ParamsError(f"{PATH}, preconds: no block '{name}' for backbone.precond")
    preconds.check(name, p.preconds[name])
    return name, p.preconds[name]


def codec_options(p: Params) -> dict[str, Any]:
    """What `latents` says about its codec."""
    if p.latents.codec not in codecs.WEIGHTS:
        return {}
    return {name: getattr(p.latents, name) for name in ("vae", "vae_sha256", "posterior", "seed")}
