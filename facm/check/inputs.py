"""What later stages would refuse, told before anything long is begun.

`refuse_missing`: files from outside the repository that are missing, or others than the pinned ones. The first stage
and `python -m facm.check` ask.

`refuse_unfit`: latents that the trainings could not take, asked before they are encoded. Shape, classes and codec are
known then, statistics only where `latents.normalise` says them. Networks are built without values (torch's device
meta); weights to start from are read, and compared by name and shape.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from facm import check
from facm.check import rules
from facm.data.latents import autoencoder, encoder, statistics
from facm.data.latents.store import LatentSet
from facm.metrics import published
from facm.networks import checkpoint
from facm.networks.checkpoint import Config
from facm.objectives.fm import FM
from facm.runtime import dist, files, params
from facm.runtime.params import PATH, Params, ParamsError
from facm.runtime.paths import located, repository_root
from facm.training import repa


def refuse_missing(p: Params, done: Collection[str] = ()) -> None:
    """Raise where a stage starts from what is not there, or is another file. All ranks may call it, rank 0 reads.

    What is on the hub or in torch's cache is not looked for: it is fetched where it is missing.

    Args:
        p: params.yaml, checked.
        done: stages of which nothing is asked, see `done_before`.

    Raises:
        FileNotFoundError: a checkpoint to start from or to import, weights that a loss compares with, of a codec or of
            an encoder, statistics, a published reference.
        ValueError: of another content than the pinned one, or not the network that params.yaml says; a network that
            no constants of the backbone's block make.
    """
    if "distill" not in done:
        check.at_hand(p)
    if not dist.is_main():
        return
    check.buildable(p)
    if p.reference.source != published.DATASET:
        published.Archive.open(repository_root() / p.reference.source, p.reference.sha256 or "")
    if "latents" not in done:
        _latents(p)
    for name, init, sha256 in (
        ("teacher", p.teacher.init, p.teacher.init_sha256),
        ("distill", p.distill.init, p.distill.init_sha256),
    ):
        if init is not None and name not in done:
            path = located(init) / "model.safetensors"
            files.refuse_no_file(path, f"{PATH}, {name}.init: ")
            files.pinned(path, sha256, f"{PATH}, {name}.init_sha256", "it is another checkpoint")
    if p.teacher.stage == "import_teacher" and "teacher" not in done:
        _converted(p)


def done_before(path: str | Path = "dvc.lock") -> list[str]:
    """Those of latents, teacher, distill that ran with these params last: what was pulled needs no sources."""
    lock = params.raw(path) if Path(path).is_file() else {}
    mapping, found = params.raw(), []
    for stage in ("latents", "teacher", "distill"):
        recorded = lock.get("stages", {}).get(stage, {}).get("params", {}).get(PATH, {})
        if not recorded or any(params.at(mapping, key) != value for key, value in recorded.items()):
            break
        found.append(stage)
    return found


def _latents(p: Params) -> None:
    """Raise for what the latents are made with."""
    if p.latents.vae is not None and not autoencoder.is_hub_name(p.latents.vae):
        autoencoder.find_pinned(p.latents.vae, p.latents.vae_sha256)
    if p.latents.stats is not None:
        statistics.pinned(located(p.latents.stats), p.latents.stats_sha256)
    tokens = p.latents.tokens
    if tokens.encoder is not None and tokens.weights is not None:
        encoder.pinned(tokens.weights, tokens.sha256 or "")


def _converted(p: Params, classes: int | None = None) -> Config:
    """What a checkpoint to import is; raises where that is not what params.yaml says, or cannot be guided as it says.

    Args:
        p: params.yaml.
        classes: of the data; None: not known yet.
    """
    from facm.convert import place

    (name, constants), path = check.precond(p), located(p.imported.source or "")
    config = place.read(p.imported, p.latents.codec, check.backbone(p), name, classes)[1]
    place.refuse_other(config, p.teacher.conditioning, constants, path)
    _refuse_guidance(p, config, path)
    return config


def _refuse_guidance(p: Params, teacher: Config, where: str | Path) -> None:
    """Raise where baseline or distill would guide the pipeline's teacher, and it cannot be guided."""
    d = p.distill
    if d.mode == "distill":
        checkpoint.refuse_guidance(teacher, where, p.baseline.w, f"{PATH}, baseline.w")
    if d.teacher == "data/teacher":
        checkpoint.refuse_guidance(teacher, where, d.w, f"{PATH}, distill.w", d.label_dropout)


def expected(
    p: Params,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    codec_options: dict[str, Any],
    given: dict[str, torch.Tensor] | None,
) -> LatentSet:
    """The latents that will be made, without a shard; statistics that are not known yet are 0 and 1.

    Args:
        p: params.yaml.
        shape: of one, (C, H, W) or (D,).
        num_classes: 0: no labels.
        codec_options: as `LatentSet` has them.
        given: mean and std (C,), where `latents.normalise` is given.
    """
    mean, std = (torch.zeros(shape[0]), torch.ones(shape[0])) if given is None else (given["mean"], given["std"])
    return LatentSet(
        num=0,
        shape=shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        codec=p.latents.codec,
        flips=p.latents.flip,
        dataset=p.data.name,
        fingerprint="",
        shards=(),
        codec_options=codec_options,
    )


def refuse_unfit(p: Params, latents: LatentSet, tokens: tuple[int, int] | None = None) -> None:
    """Raise where a training could not take these latents, or not start from what it is to start from.

    Args:
        p: params.yaml, checked.
        latents: see `expected`.
        tokens: number and width of the tokens per picture that will be made beside them; None: none.

    Raises:
        ValueError: a network that cannot be built for them, another shape, classes, codec or statistics than those of
            a checkpoint to start from or to import, tokens that do not fit.
        FileNotFoundError: there is no such checkpoint.
    """
    check.fits(p, latents.shape)
    if p.backbone.precond in rules.ONE_STD and p.latents.normalise == "channel" and latents.shape[0] > 1:
        raise ParamsError(
            f"{PATH}, latents.normalise: precond '{p.backbone.precond}' needs one std for all channels: set one or none"
        )
    d, t = p.distill, p.teacher
    network, precond = check.backbone(p), check.precond(p)
    student = checkpoint.describe("student", latents, network, check.build_objective(p), d, {}, precond)
    _start(p, student, d.init, d.init_sha256)
    if d.mode == "scratch":
        checkpoint.refuse_guidance(student, d.init or "a network from scratch", d.w, f"{PATH}, distill.w")
        return
    if d.teacher != "data/teacher":
        if Path(d.teacher, "config.json").is_file():  # else a stage of the user's own makes it
            other = checkpoint.read_config(d.teacher)
            checkpoint.check_teacher(_known(p, student, other), other, d.teacher, d.teacher_condition)
            checkpoint.refuse_guidance(other, d.teacher, d.w, f"{PATH}, distill.w", d.label_dropout)
    elif t.stage == "import_teacher":
        _import(p, latents)
    else:
        objective = FM(conditioning=t.conditioning, fraction=t.fraction, cosine=t.cosine, cosine_eps=t.cosine_eps)
        teacher = checkpoint.describe("teacher", latents, network, objective, t, {}, precond)
        repa.refuse_unfit(_start(p, teacher, t.init, t.init_sha256), tokens)
        _refuse_guidance(p, teacher, t.init or "the teacher")


def _start(p: Params, config: Config, init: str | None, sha256: str | None) -> torch.nn.Module:
    """Build the network, and start it from where it is to start from, if anywhere."""
    with torch.device("meta"):
        network = config.build()
    if init is not None:
        folder = located(init)
        checkpoint.start_from(network, _known(p, config, checkpoint.read_config(folder)), folder, sha256)
    return network


def _import(p: Params, latents: LatentSet) -> None:
    """Convert the checkpoint to import, and put it in the teacher's place, but for writing it."""
    from facm.convert import place

    (name, constants), path = check.precond(p), located(p.imported.source or "")
    config = _converted(p, latents.num_classes)
    if not _statistics_known(p):
        if name not in place.FREE and config.mean == [0.0] * len(config.mean) and config.std == [1.0] * len(config.std):
            raise ParamsError(
                f"{PATH}, latents.normalise: {path} was trained on the codec's own output: set none, not "
                f"'{p.latents.normalise}'"
            )
        if len(config.mean) == len(latents.mean):
            latents = replace(latents, mean=torch.tensor(config.mean), std=torch.tensor(config.std))
    place.place(config, latents, p.teacher.conditioning, constants, path)


def _known(p: Params, config: Config, other: Config) -> Config:
    """The description with the other one's statistics where its own are not known yet."""
    return config if _statistics_known(p) else replace(config, mean=other.mean, std=other.std)


def _statistics_known(p: Params) -> bool:
    return p.latents.normalise in ("none", "given")
