"""Everything in params.yaml that can be refused before any work: names against registries, blocks against classes.

`python -m facm.check` does the same from the shell. Every stage calls `read` first, for the whole file, so that a
mistake under `distill` is told before the teacher is trained.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facm import objectives, samplers
from facm.data import codecs, datasets
from facm.flow.guidance import Guidance
from facm.flow.time import TIME_SAMPLERS
from facm.metrics.scores import NEIGHBOURS
from facm.networks import backbones, features, lpips, preconds
from facm.runtime import params
from facm.runtime.names import refuse_unknown
from facm.runtime.params import PATH, Params, ParamsError, outputs
from facm.runtime.paths import located
from facm.training import loop

MADE_HERE = ("data/teacher", "data/latents")  # what distill.teacher may name, whatever dvc.yaml says
ONE_STD = ("edm", "ddpm")  # preconds that know noise of one level: one std for all channels
WITHOUT_TEACHER = ("data/samples", "metrics/distill")  # report.pictures and report.curves from scratch


def read(path: str | Path = PATH) -> Params:
    """params.yaml, checked as far as it can be without data.

    Raises:
        ParamsError: names value, rule and place.
    """
    read_params = params.read(path)
    try:
        check(read_params)
    except ParamsError:
        raise
    except ValueError as error:
        raise ParamsError(str(error)) from None
    return read_params


def check(p: Params) -> None:
    """Raise ValueError (ParamsError) for the first rule that is broken."""
    refuse_unknown([p.data.name], datasets.DATASETS, f"{PATH}, data.name")
    refuse_unknown([p.reference.features], features.FEATURES, f"{PATH}, reference.features")
    refuse_unknown(p.reference.also or (), features.FEATURES, f"{PATH}, reference.also")
    refuse_unknown([p.latents.codec], codecs.CODECS, f"{PATH}, latents.codec")
    refuse_unknown([p.backbone.name], backbones.BACKBONES, f"{PATH}, backbone.name")
    refuse_unknown([p.backbone.precond], preconds.PRECONDS, f"{PATH}, backbone.precond")
    refuse_unknown([p.distill.objective], objectives.OBJECTIVES, f"{PATH}, distill.objective")
    refuse_unknown([p.sample.sampler], samplers.SAMPLERS, f"{PATH}, sample.sampler")
    refuse_unknown(p.backbones, backbones.BACKBONES, f"{PATH}, backbones")
    refuse_unknown(p.preconds, preconds.PRECONDS, f"{PATH}, preconds")
    refuse_unknown(p.objectives, objectives.OBJECTIVES, f"{PATH}, objectives")
    _check_kind(p)
    _check_reference(p)
    _check_data(p)
    _check_normalise(p)
    backbones.refuse_constants(*_backbone_block(p))
    for name, block in (("teacher", p.teacher), ("distill", p.distill)):
        refuse_unknown([block.time.sampler], TIME_SAMPLERS, f"{PATH}, {name}.time.sampler")
        if block.ema.sigma_rel not in block.ema.sigma_rels:
            raise ParamsError(f"{PATH}, {name}.ema.sigma_rel: {block.ema.sigma_rel} must be one of sigma_rels")
        if (block.init is None) != (block.init_sha256 is None):
            raise ParamsError(
                f"{PATH}, {name}: init and init_sha256 go together; the sha256 stands in the checkpoint's config.json"
            )
    _check_imported(p)
    objective = build_objective(p)
    _check_stages(p, objective)
    loop.check_batch("teacher", p.teacher.batch_size, 1, p.train.accumulate)
    loop.check_batch("distill", p.distill.batch_size, objective.group, p.train.accumulate)
    _check_sampling(p, objective)


def at_hand(p: Params) -> None:
    """Raise where what a training needs and no stage makes is not there, or is another file.

    Raises:
        FileNotFoundError: a teacher that is no checkpoint folder, or as `facm.networks.lpips.find_weights` does.
        ValueError: likewise.
    """
    if "lpips" in build_objective(p).tools:
        lpips.find_weights()
    made_here = (*MADE_HERE, *outputs(None))
    if p.distill.teacher not in made_here and not (located(p.distill.teacher) / "config.json").is_file():
        raise FileNotFoundError(
            f"{PATH}, distill.teacher: {p.distill.teacher} is no checkpoint folder (no config.json in it): set it to "
            "data/teacher, or to one that is there"
        )


def build_objective(p: Params) -> Any:
    """The objective that `distill` names, with its constants checked.

    Raises:
        ParamsError: no block `objectives.<name>`, or a wrong constant.
    """
    name = p.distill.objective
    if name not in p.objectives:
        raise ParamsError(
            f"{PATH}, objectives: no block '{name}' for distill.objective; presets/base.yaml has its default"
        )
    return objectives.build(name, p.objectives[name], shared(p))


def shared(p: Params) -> dict[str, Any]:
    """What every objective may take from `distill`."""
    return {name: getattr(p.distill, name) for name in ("conditioning", "alpha", "beta", "p")}


def backbone(p: Params) -> tuple[str, dict[str, Any]]:
    """Name and constants of the chosen backbone, its size in numbers.

    Raises:
        ParamsError: there is none.
        ValueError: a variant that is unknown or contradicted.
    """
    name, constants = _backbone_block(p)
    return name, backbones.resolve(name, constants)


def _backbone_block(p: Params) -> tuple[str, dict[str, Any]]:
    """Name and block of the chosen backbone; raises ParamsError where there is none."""
    if p.backbone.name not in p.backbones:
        raise ParamsError(f"{PATH}, backbones: no block '{p.backbone.name}' for backbone.name")
    return p.backbone.name, p.backbones[p.backbone.name]


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


def fits(p: Params, shape: Sequence[int]) -> None:
    """Raise ParamsError for what latents (C, H, W) do not allow, under `teacher` and `distill` alike."""
    name = p.distill.objective
    cosines = {"teacher.cosine": p.teacher.cosine, f"objectives.{name}.cosine": p.objectives[name].get("cosine")}
    for place, cosine in cosines.items():
        if cosine == "channel" and shape[0] == 1:
            raise ParamsError(
                f"{PATH}, {place}: 'channel' with latents of one channel: the cosine of one number is +-1 and has no "
                "gradient; set auto or sample"
            )


def _check_kind(p: Params) -> None:
    """Raise ParamsError where pictures and points are mixed; params.yaml, data.name decides which of them it is."""
    points = p.data.name in datasets.POINTS
    kinds = ("points", "pictures") if points else ("pictures", "points")
    chosen = (
        ("reference.features", p.reference.features, features.FEATURES, features.POINTS),
        *(("reference.also", name, features.FEATURES, features.POINTS) for name in p.reference.also or ()),
        ("latents.codec", p.latents.codec, codecs.CODECS, codecs.POINTS),
        ("backbone.name", p.backbone.name, backbones.BACKBONES, backbones.POINTS),
    )
    for place, name, known, of_points in chosen:
        if (name in of_points) != points:
            fitting = ", ".join(other for other in known if (other in of_points) == points)
            raise ParamsError(
                f"{PATH}, {place}: '{name}' is for {kinds[1]}, and data.name '{p.data.name}' has {kinds[0]}: "
                f"set it to {fitting}"
            )
    for place, wanted in (("latents.flip", p.latents.flip), ("evaluate.copies", p.evaluate.copies)):
        if points and wanted:
            raise ParamsError(
                f"{PATH}, {place}: is for pictures, and data.name '{p.data.name}' has points: set it false"
            )
    if p.data.name in datasets.LATENTS and p.evaluate.copies:
        raise ParamsError(
            f"{PATH}, evaluate.copies: is for pictures, and data.name '{p.data.name}' has latents without them: set it "
            "false"
        )
    if points and p.sample.rounding != "round":
        raise ParamsError(f"{PATH}, sample.rounding: points are not rounded: set it to round")


def _check_reference(p: Params) -> None:
    """Raise ParamsError for feature networks or a published reference that cannot be used."""
    r = p.reference
    names = [r.features, *(r.also or ())]
    if len(set(names)) < len(names):
        raise ParamsError(f"{PATH}, reference.also: {', '.join(names)}: each network once, that of features too")
    if (r.source == "dataset") != (r.sha256 is None):
        raise ParamsError(
            f"{PATH}, reference: source '{r.source}' with sha256 {r.sha256}: an npz goes with its sha256 (`sha256sum "
            "FILE` tells it), the dataset with null; data.fingerprint is what pins that"
        )
    if r.source == "dataset" and p.data.name in datasets.LATENTS:
        raise ParamsError(
            f"{PATH}, reference.source: data.name '{p.data.name}' has latents and no pictures to measure: name an npz "
            "of published statistics with its sha256, and set reference.features to inception"
        )
    if r.source != "dataset" and features.network_class(r.features).seeded:
        raise ParamsError(
            f"{PATH}, reference.source: statistics in '{r.source}' are of a published network, '{r.features}' is "
            "trained here: set reference.features to inception"
        )


def _check_imported(p: Params) -> None:
    """Raise ParamsError unless a checkpoint is named where, and only where, one takes the teacher's place."""
    imported, importing = p.imported, p.teacher.stage == "import_teacher"
    if importing != (imported.code == "facm/convert"):
        raise ParamsError(
            f"{PATH}, imported.code: '{imported.code}' with teacher.stage '{p.teacher.stage}': import_teacher depends "
            "on facm/convert (`python -m facm.preset digits imported` sets both), any other stage on data/latents"
        )
    if not importing:
        return
    from facm.convert import FORMATS, load_format

    for name in ("source", "format", "sha256"):
        if getattr(imported, name) is None:
            raise ParamsError(f"{PATH}, imported.{name}: is null: say which checkpoint is to be the teacher")
    refuse_unknown([imported.format or ""], FORMATS, f"{PATH}, imported.format")
    if load_format(imported.format or "").normalised and imported.stats is None:
        raise ParamsError(
            f"{PATH}, imported.stats: format '{imported.format}' normalises its latents, the network means nothing "
            "without their statistics: name its latents_stats.pt"
        )
    if p.teacher.init is not None:
        raise ParamsError(
            f"{PATH}, teacher.init: import_teacher does not train, so that nothing starts from '{p.teacher.init}': set "
            "it to null, or teacher.stage to teacher"
        )


def _check_data(p: Params) -> None:
    """Raise ValueError for what the dataset or the codec has no use for, or lacks."""
    datasets.check_size(p.data.name, p.data.side)
    needed = p.latents.codec in codecs.WEIGHTS
    if needed != (p.latents.vae is not None):
        with_weights = ", ".join(codecs.WEIGHTS)
        raise ParamsError(
            f"{PATH}, latents.vae: codec '{p.latents.codec}' "
            + ("needs weights: a folder, a hub name or a file" if needed else f"has no weights ({with_weights} have)")
            + f", got {p.latents.vae!r}"
            + ("" if needed else "; set it to null")
        )
    if p.latents.vae_sha256 is not None and p.latents.vae is None:
        raise ParamsError(f"{PATH}, latents.vae_sha256: pins weights, and latents.vae names none; set it to null")


def _check_normalise(p: Params) -> None:
    """Raise ParamsError where statistics are needed and not named, or the other way round."""
    asked = [p.latents.normalise == "given", p.latents.stats is not None, p.latents.stats_sha256 is not None]
    if any(asked) != all(asked):
        raise ParamsError(
            f"{PATH}, latents: normalise 'given', stats and stats_sha256 go together, got '{p.latents.normalise}', "
            f"{p.latents.stats!r} and {p.latents.stats_sha256!r}"
        )
    if p.data.name in datasets.LATENTS and p.latents.normalise != "channel":
        raise ParamsError(
            f"{PATH}, latents.normalise: data.name '{p.data.name}' has its own statistics: set it to channel"
        )


def codec_options(p: Params) -> dict[str, Any]:
    """What `latents` says about its codec."""
    if p.latents.codec not in codecs.WEIGHTS:
        return {}
    return {name: getattr(p.latents, name) for name in ("vae", "vae_sha256", "posterior", "seed")}


def writable(*folders: str | Path) -> None:
    """Raise PermissionError, naming the folder, unless each can be written (made, where it is missing)."""
    for folder in map(Path, folders):
        place = folder
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{place} cannot be written, but {folder} must be made there: change its owner or mode"
            )


def _check_stages(p: Params, objective: Any) -> None:
    distill = p.distill
    _check_alignment(p)
    precond(p)
    if p.train.parallel == "fsdp" and distill.mode == "scratch" and distill.scratch_source == "ema":
        raise ParamsError(f"{PATH}, train.parallel: 'fsdp' keeps no averaged network for distill.scratch_source: ema")
    Guidance(w=distill.w, t_low=distill.t_low, t_high=distill.t_high)
    if p.baseline.t_low > p.baseline.t_high:
        raise ParamsError(f"{PATH}, baseline: t_low {p.baseline.t_low} must not exceed t_high {p.baseline.t_high}")
    if not Path("stages", f"{p.teacher.stage}.py").is_file() and Path("stages").is_dir():
        raise ParamsError(f"{PATH}, teacher.stage: there is no stages/{p.teacher.stage}.py")
    if (distill.mode == "scratch") != (distill.teacher == "data/latents"):
        raise ParamsError(
            f"{PATH}, distill: mode '{distill.mode}' with teacher '{distill.teacher}': mode scratch has no teacher "
            "(teacher: data/latents, evaluate.baseline: metrics/reference.json, report.pictures: data/samples, "
            "report.curves: metrics/distill; `python -m facm.preset digits scratch` sets them), mode distill names its "
            "checkpoint (data/teacher)"
        )
    if distill.mode == "scratch" and (p.report.pictures, p.report.curves) != WITHOUT_TEACHER:
        raise ParamsError(
            f"{PATH}, report: pictures '{p.report.pictures}' and curves '{p.report.curves}' with distill.mode scratch: "
            "a teacher would be trained and drawn for the page alone; set pictures data/samples and curves "
            "metrics/distill, as `python -m facm.preset digits scratch` does"
        )
    if p.train.compile and objective.ragged:
        raise ParamsError(
            f"{PATH}, train.compile: objective '{distill.objective}' asks for other numbers of rows in every step, "
            "each of which would be compiled: set it false"
        )
    if p.train.parallel == "fsdp" and (objective.other_weights or objective.ragged):
        raise ParamsError(
            f"{PATH}, train.parallel: 'fsdp' does not fit objective '{distill.objective}' with these constants, which "
            "asks copies of the network, or other numbers of rows on each process: set ddp"
        )
    if "lpips" in objective.tools and p.latents.codec != "identity":
        raise ParamsError(
            f"{PATH}, objectives.{distill.objective}.distance: 'lpips' compares pictures, and with latents.codec "
            f"'{p.latents.codec}' a student makes none without a decoder: set l2 or pseudo_huber, or codec identity"
        )
    if distill.mode == "distill" and p.teacher.conditioning == "auxiliary" != objective.conditioning:
        raise ParamsError(
            f"{PATH}, distill.conditioning: the teacher is auxiliary, its network has a second time that a student of "
            f"conditioning '{objective.conditioning}' lacks: set teacher.conditioning to expanded or plain"
        )
    if p.backbone.precond in ONE_STD and p.latents.codec in codecs.WEIGHTS and p.latents.normalise == "channel":
        raise ParamsError(
            f"{PATH}, latents.normalise: precond '{p.backbone.precond}' needs one std for all channels: set one or none"
        )
    _check_null_label(p)
    _check_conditions(p, objective)
    knows = p.teacher.conditioning != "plain" and p.teacher.fraction > 0
    if distill.mode == "distill" and distill.teacher_condition == "fm" and not knows:
        raise ParamsError(f"{PATH}, distill.teacher_condition: 'fm' needs a mixed teacher (teacher.fraction above 0)")


def _check_conditions(p: Params, objective: Any) -> None:
    """Raise ParamsError where a network would be asked for its velocity at a condition that it was not trained at."""
    d, teacher = p.distill, p.teacher
    if (
        d.mode == "distill"
        and teacher.stage == "teacher"
        and (teacher.conditioning, teacher.fraction) in (("auxiliary", 0), ("expanded", 1))
    ):
        raise ParamsError(
            f"{PATH}, teacher.fraction: {teacher.fraction:g} with conditioning '{teacher.conditioning}' never trains "
            "where baseline and distill ask the teacher: set it between 0 and 1, or conditioning to plain"
        )
    if d.objective == "fm" and d.conditioning != "plain" and objective.fraction == 0:
        raise ParamsError(
            f"{PATH}, objectives.fm.fraction: 0 never trains the FM format, at which a student is drawn: set it above 0"
        )
    guided = d.mode == "scratch" and d.w > 1 and p.latents.labels and p.data.name not in datasets.POINTS
    if guided and not objective.learns_velocity:
        raise ParamsError(
            f"{PATH}, distill.w: {d.w:g} from scratch guides by the network's own velocity, which objective "
            f"'{d.objective}' with these constants does not train: set it to 1"
        )


def _check_null_label(p: Params) -> None:
    """Raise ParamsError where guidance would ask for a null label that was never trained."""
    scratch = p.distill.mode == "scratch"
    block, place = (p.distill, "distill") if scratch else (p.teacher, "teacher")
    trained_here = block.init is None and (scratch or p.teacher.stage == "teacher")
    if (
        trained_here
        and p.latents.labels
        and p.data.name not in datasets.POINTS
        and p.distill.w > 1
        and not block.label_dropout
    ):
        raise ParamsError(
            f"{PATH}, {place}.label_dropout: 0 never trains the null label, from which distill.w {p.distill.w} guides "
            "away: set it above 0 (0.1 is usual), or distill.w to 1"
        )


def _check_alignment(p: Params) -> None:
    """Raise ParamsError where an encoder's tokens (REPA) cannot be made, or are needed and not made."""
    tokens, (name, constants) = p.latents.tokens, backbone(p)
    given = [value is not None for value in (tokens.encoder, tokens.weights, tokens.sha256)]
    if any(given) != all(given):
        raise ParamsError(f"{PATH}, latents.tokens: encoder, weights and sha256 go together, or are null together")
    if tokens.encoder is not None and p.data.name in datasets.LATENTS:
        raise ParamsError(
            f"{PATH}, latents.tokens.encoder: is for pictures, and data.name '{p.data.name}' has latents without them"
        )
    if tokens.encoder is not None and p.data.name in datasets.POINTS:
        raise ParamsError(f"{PATH}, latents.tokens.encoder: is for pictures, and data.name '{p.data.name}' has points")
    trains = p.distill.mode == "distill" and p.teacher.stage == "teacher"
    if trains and name == "repa" and constants.get("coefficient", 0.5) > 0 and tokens.encoder is None:
        raise ParamsError(
            f"{PATH}, latents.tokens.encoder: the teacher of backbone repa is aligned with an encoder's tokens: name "
            "it, or set backbones.repa.coefficient to 0 (then it is sit), or import a teacher (teacher.stage)"
        )
    if trains and name == "repa" and constants.get("coefficient", 0.5) > 0 and p.backbone.precond != "none":
        raise ParamsError(
            f"{PATH}, backbone.precond: '{p.backbone.precond}' hides the projector of backbone repa, which would "
            "not be aligned: set it to none, or backbones.repa.coefficient to 0"
        )


def _check_sampling(p: Params, objective: Any) -> None:
    if p.sample.sampler not in objective.samplers:
        raise ParamsError(
            f"{PATH}, sample.sampler: '{p.sample.sampler}' does not fit objective '{p.distill.objective}', "
            f"which has {', '.join(objective.samplers)}"
        )
    for name, num in (("sample", p.sample.num), ("baseline", p.baseline.num), ("reference", p.reference.num)):
        if num is not None and num <= NEIGHBOURS:
            raise ParamsError(f"{PATH}, {name}.num: {num} must be at least {NEIGHBOURS + 1}, or nothing can be scored")
    ema, sigma_rel = p.distill.ema, p.sample.sigma_rel
    if sigma_rel is not None and ema.snapshots * len(ema.sigma_rels) < 2:
        raise ParamsError(
            f"{PATH}, sample.sigma_rel: {sigma_rel:g} is made from two snapshots or more, and distill.ema keeps "
            f"{ema.snapshots} of {len(ema.sigma_rels)} average: set distill.ema.snapshots to 2 or more"
        )
    lengths = [len(grid) for grid in p.sample.t_grid or ()]
    if len(set(lengths)) < len(lengths):
        raise ParamsError(f"{PATH}, sample.t_grid: two grids are as long as each other ({lengths}): one serves one NFE")
    for nfe in p.sample.nfe:
        student_sampler(p, nfe, objective.conditioning)
    b = p.baseline
    fields: dict[str, Any] = {"steps": b.steps, "w": b.w, "t_low": b.t_low, "t_high": b.t_high, "shift": b.shift}
    samplers.for_network(b.sampler, p.teacher.conditioning, "t", **fields)


def student_sampler(p: Params, nfe: int, conditioning: str) -> Any:
    """The sampler of `sample` for one NFE.

    Raises:
        ValueError: an NFE or grid that the sampler cannot have.
    """
    return samplers.for_network(p.sample.sampler, conditioning, "fm", **sampler_fields(p, nfe))


def sampler_fields(p: Params, nfe: int) -> dict[str, Any]:
    """What `sample` says about the sampler of one NFE."""
    if p.sample.sampler not in ("consistency", "jumps"):
        return {"nfe": nfe} | ({} if p.sample.sampler in ("anchored", "edm") else {"shift": p.sample.shift})
    grids = {len(grid): grid for grid in p.sample.t_grid or ()}
    return {"nfe": nfe, "t_grid": grids.get(nfe)}
