"""The rules of params.yaml that no single value can break: what does not go together, and what to set instead.

Rules of one subject stand in one function; `broken` goes through them in order and gives the messages of those that
are broken.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from facm import objectives, samplers
from facm.check import choices
from facm.data import codecs, datasets
from facm.flow.guidance import Guidance
from facm.flow.time import TIME_SAMPLERS
from facm.inference.sampler import fields_for, for_network
from facm.metrics.scores import NEIGHBOURS
from facm.networks import backbones, features, preconds
from facm.runtime import params
from facm.runtime.names import refuse_unknown
from facm.runtime.params import PATH, Params
from facm.training import loop

ONE_STD = ("edm", "ddpm")  # preconds that know noise of one level: one std for all channels
WITHOUT_TEACHER = ("data/samples", "metrics/distill")  # report.pictures and report.curves from scratch


class Rule(NamedTuple):
    """What must not be: whether it is so, and the place in params.yaml with what is wrong there and what to set."""

    broken: bool
    message: str


Rules = Iterator[Rule | partial[Any]]
"""Rules, and calls of what checks itself and raises ValueError."""


def broken(p: Params) -> Iterator[str]:
    """Messages of the rules that params.yaml breaks, in order.

    Unknown names hide all that follows, an objective that cannot be built what depends on it.
    """
    unknown = list(_messages(_names(p)))
    yield from unknown
    if unknown:
        return
    for rules in (_kind, _reference, _data, _trainings, _imported):
        yield from _messages(rules(p))
    try:
        objective = choices.build_objective(p)
    except ValueError as error:
        yield str(error)
        return
    for of_objective in (_alignment, _teacher, _step, _conditions, _batches, _sampling):
        yield from _messages(of_objective(p, objective))


def _messages(rules: Rules) -> Iterator[str]:
    for rule in rules:
        if isinstance(rule, partial):
            try:
                rule()
            except ValueError as error:
                yield str(error)
        elif rule.broken:
            yield f"{PATH}, {rule.message}"


def _names(p: Params) -> Rules:
    """Names against registries, blocks against names."""
    chosen: tuple[tuple[str, Iterable[str], Iterable[str]], ...] = (
        ("data.name", [p.data.name], datasets.DATASETS),
        ("reference.features", [p.reference.features], features.FEATURES),
        ("reference.also", p.reference.also or (), features.FEATURES),
        ("latents.codec", [p.latents.codec], codecs.CODECS),
        ("backbone.name", [p.backbone.name], backbones.BACKBONES),
        ("backbone.precond", [p.backbone.precond], preconds.PRECONDS),
        ("distill.objective", [p.distill.objective], objectives.OBJECTIVES),
        ("sample.sampler", [p.sample.sampler], samplers.SAMPLERS),
        ("backbones", p.backbones, backbones.BACKBONES),
        ("preconds", p.preconds, preconds.PRECONDS),
        ("objectives", p.objectives, objectives.OBJECTIVES),
        ("teacher.time.sampler", [p.teacher.time.sampler], TIME_SAMPLERS),
        ("distill.time.sampler", [p.distill.time.sampler], TIME_SAMPLERS),
    )
    for place, names, known in chosen:
        yield partial(refuse_unknown, names, known, f"{PATH}, {place}")


def _kind(p: Params) -> Rules:
    """Pictures or points: data.name decides which of them it is."""
    points, latents = p.data.name in datasets.POINTS, p.data.name in datasets.LATENTS
    has, others = ("points", "pictures") if points else ("pictures", "points")
    data = f"data.name '{p.data.name}'"
    for place, name, known, of_points in (
        ("reference.features", p.reference.features, features.FEATURES, features.POINTS),
        *(("reference.also", name, features.FEATURES, features.POINTS) for name in p.reference.also or ()),
        ("latents.codec", p.latents.codec, codecs.CODECS, codecs.POINTS),
        ("backbone.name", p.backbone.name, backbones.BACKBONES, backbones.POINTS),
    ):
        fitting = ", ".join(other for other in known if (other in of_points) == points)
        wrong = (name in of_points) != points
        yield Rule(wrong, f"{place}: '{name}' is for {others}, and {data} has {has}: set it to {fitting}")
    for place, wanted in (("latents.flip", p.latents.flip), ("evaluate.copies", p.evaluate.copies)):
        yield Rule(points and wanted, f"{place}: is for pictures, and {data} has points: set it false")
    without = f"is for pictures, and {data} has latents without them"
    yield Rule(latents and p.evaluate.copies, f"evaluate.copies: {without}: set it false")
    rounded = points and p.sample.rounding != "round"
    yield Rule(rounded, "sample.rounding: points are not rounded: set it to round")


def _reference(p: Params) -> Rules:
    """Feature networks, and a published reference."""
    r = p.reference
    names, dataset = [r.features, *(r.also or ())], r.source == "dataset"
    yield Rule(
        len(set(names)) < len(names), f"reference.also: {', '.join(names)}: each network once, that of features too"
    )
    yield Rule(
        dataset != (r.sha256 is None),
        f"reference: source '{r.source}' with sha256 {r.sha256}: an npz goes with its sha256 (`sha256sum FILE` tells "
        "it), the dataset with null; data.fingerprint is what pins that",
    )
    yield Rule(
        dataset and p.data.name in datasets.LATENTS,
        f"reference.source: data.name '{p.data.name}' has latents and no pictures to measure: name an npz of "
        "published statistics with its sha256, and set reference.features to inception",
    )
    yield Rule(
        not dataset and features.network_class(r.features).seeded,
        f"reference.source: statistics in '{r.source}' are of a published network, '{r.features}' is trained here: set "
        "reference.features to inception",
    )


def _data(p: Params) -> Rules:
    """What the dataset or the codec has no use for, or lacks: a side, weights, statistics."""
    codec, vae, needed = p.latents.codec, p.latents.vae, p.latents.codec in codecs.WEIGHTS
    yield partial(datasets.check_size, p.data.name, p.data.side)
    yield Rule(
        needed and vae is None,
        f"latents.vae: codec '{codec}' needs weights: a folder, a hub name or a file, got {vae!r}",
    )
    yield Rule(
        not needed and vae is not None,
        f"latents.vae: codec '{codec}' has no weights ({', '.join(codecs.WEIGHTS)} have), got {vae!r}; set it to null",
    )
    yield Rule(
        p.latents.vae_sha256 is not None and vae is None,
        "latents.vae_sha256: pins weights, and latents.vae names none; set it to null",
    )
    how, stats, sha256 = p.latents.normalise, p.latents.stats, p.latents.stats_sha256
    yield Rule(
        len({how == "given", stats is not None, sha256 is not None}) > 1,
        f"latents: normalise 'given', stats and stats_sha256 go together, got '{how}', {stats!r} and {sha256!r}",
    )
    yield Rule(
        p.data.name in datasets.LATENTS and how != "channel",
        f"latents.normalise: data.name '{p.data.name}' has its own statistics: set it to channel",
    )


def _trainings(p: Params) -> Rules:
    """The network, and what teacher and distill have in common."""
    yield partial(choices.check_backbone, p)
    for name, block in (("teacher", p.teacher), ("distill", p.distill)):
        sigma_rel = block.ema.sigma_rel
        unkept = sigma_rel not in block.ema.sigma_rels
        yield Rule(unkept, f"{name}.ema.sigma_rel: {sigma_rel} must be one of sigma_rels")
        yield Rule(
            (block.init is None) != (block.init_sha256 is None),
            f"{name}: init and init_sha256 go together; the sha256 stands in the checkpoint's config.json",
        )
    trained: dict[str, params.Training] = {"distill": p.distill}
    if p.distill.mode == "distill" and p.teacher.stage != "import_teacher":
        trained["teacher"] = p.teacher
    for name, training in trained.items():
        warmup, lr, steps = training.optimizer.warmup, training.optimizer.lr, training.steps
        yield Rule(
            steps <= warmup,
            f"{name}.optimizer.warmup: {warmup} must be below {name}.steps {steps}, or the learning rate {lr:g} is "
            "never used: set it lower, to 0 for none",
        )


def _imported(p: Params) -> Rules:
    """A checkpoint is named where, and only where, one takes the teacher's place."""
    imported, importing = p.imported, p.teacher.stage == "import_teacher"
    yield Rule(
        importing != (imported.code == "facm/convert"),
        f"imported.code: '{imported.code}' with teacher.stage '{p.teacher.stage}': import_teacher depends on "
        "facm/convert (`python -m facm.preset digits imported` sets both), any other stage on data/latents",
    )
    if not importing:
        return
    from facm.convert import FORMATS, load_format

    for name in ("source", "format", "sha256"):
        missing = getattr(imported, name) is None
        yield Rule(missing, f"imported.{name}: is null: say which checkpoint is to be the teacher")
    if imported.format is not None:
        yield partial(refuse_unknown, [imported.format], FORMATS, f"{PATH}, imported.format")
    yield Rule(
        imported.format in FORMATS and load_format(imported.format or "").normalised and imported.stats is None,
        f"imported.stats: format '{imported.format}' normalises its latents, the network means nothing without their "
        "statistics: name its latents_stats.pt",
    )
    yield Rule(
        p.teacher.init is not None,
        f"teacher.init: import_teacher does not train, so that nothing starts from '{p.teacher.init}': set it to "
        "null, or teacher.stage to teacher",
    )


def _alignment(p: Params, objective: Any) -> Rules:
    """An encoder's tokens (REPA) that cannot be made, or are needed and not made."""
    tokens = p.latents.tokens
    given = [value is not None for value in (tokens.encoder, tokens.weights, tokens.sha256)]
    yield Rule(
        any(given) != all(given), "latents.tokens: encoder, weights and sha256 go together, or are null together"
    )
    for kind, those in (("latents without them", datasets.LATENTS), ("points", datasets.POINTS)):
        wrong = tokens.encoder is not None and p.data.name in those
        yield Rule(wrong, f"latents.tokens.encoder: is for pictures, and data.name '{p.data.name}' has {kind}")
    trains = p.distill.mode == "distill" and p.teacher.stage == "teacher"
    block = p.backbones.get("repa", {}).get("coefficient", 0.5)
    aligned = trains and p.backbone.name == "repa" and isinstance(block, int | float) and block > 0
    yield Rule(
        aligned and tokens.encoder is None,
        "latents.tokens.encoder: the teacher of backbone repa is aligned with an encoder's tokens: name it, or set "
        "backbones.repa.coefficient to 0 (then it is sit), or import a teacher (teacher.stage)",
    )
    yield Rule(
        aligned and p.backbone.precond != "none",
        f"backbone.precond: '{p.backbone.precond}' hides the projector of backbone repa, which would not be aligned: "
        "set it to none, or backbones.repa.coefficient to 0",
    )


def _teacher(p: Params, objective: Any) -> Rules:
    """A teacher, or none: what depends on it agrees."""
    d, scratch = p.distill, p.distill.mode == "scratch"
    yield partial(choices.precond, p)
    yield Rule(
        p.train.parallel == "fsdp" and scratch and d.scratch_source == "ema",
        "train.parallel: 'fsdp' keeps no averaged network for distill.scratch_source: ema",
    )
    yield partial(Guidance, w=d.w, t_low=d.t_low, t_high=d.t_high)
    t_low, t_high = p.baseline.t_low, p.baseline.t_high
    yield Rule(t_low > t_high, f"baseline: t_low {t_low} must not exceed t_high {t_high}")
    script = Path("stages", f"{p.teacher.stage}.py")
    yield Rule(script.parent.is_dir() and not script.is_file(), f"teacher.stage: there is no {script}")
    yield Rule(
        scratch != (d.teacher == "data/latents"),
        f"distill: mode '{d.mode}' with teacher '{d.teacher}': mode scratch has no teacher (teacher: data/latents, "
        "evaluate.baseline: metrics/reference.json, report.pictures: data/samples, report.curves: metrics/distill; "
        "`python -m facm.preset digits scratch` sets them), mode distill names its checkpoint (data/teacher)",
    )
    yield Rule(
        scratch and (p.report.pictures, p.report.curves) != WITHOUT_TEACHER,
        f"report: pictures '{p.report.pictures}' and curves '{p.report.curves}' with distill.mode scratch: a teacher "
        "would be trained and drawn for the page alone; set pictures data/samples and curves metrics/distill, as "
        "`python -m facm.preset digits scratch` does",
    )


def _step(p: Params, objective: Any) -> Rules:
    """What an objective needs of the step, the codec and the networks."""
    d, name = p.distill, p.distill.objective
    yield Rule(
        p.train.compile and objective.ragged,
        f"train.compile: objective '{name}' asks for other numbers of rows in every step, each of which would be "
        "compiled: set it false",
    )
    yield Rule(
        p.train.parallel == "fsdp" and (objective.other_weights or objective.ragged),
        f"train.parallel: 'fsdp' does not fit objective '{name}' with these constants, which asks copies of the "
        "network, or other numbers of rows on each process: set ddp",
    )
    yield Rule(
        "lpips" in objective.tools and p.latents.codec != "identity",
        f"objectives.{name}.distance: 'lpips' compares pictures, and with latents.codec '{p.latents.codec}' a student "
        "makes none without a decoder: set l2 or pseudo_huber, or codec identity",
    )
    yield Rule(
        d.mode == "distill" and p.teacher.conditioning == "auxiliary" != objective.conditioning,
        "distill.conditioning: the teacher is auxiliary, its network has a second time that a student of conditioning "
        f"'{objective.conditioning}' lacks: set teacher.conditioning to expanded or plain",
    )
    yield Rule(
        p.backbone.precond in ONE_STD and p.latents.codec in codecs.WEIGHTS and p.latents.normalise == "channel",
        f"latents.normalise: precond '{p.backbone.precond}' needs one std for all channels: set one or none",
    )


def _conditions(p: Params, objective: Any) -> Rules:
    """A network is asked only for what it was trained at: the null label, the formats, its velocity."""
    d, teacher, scratch = p.distill, p.teacher, p.distill.mode == "scratch"
    labelled = p.latents.labels and p.data.name not in datasets.POINTS
    place, block = ("distill", d) if scratch else ("teacher", teacher)
    asked = {"distill.w": d.w} | ({} if scratch else {"baseline.w": p.baseline.w})
    name, w = max(asked.items(), key=lambda one: one[1])
    trained_here = block.init is None and (scratch or teacher.stage == "teacher")
    yield Rule(
        trained_here and labelled and w > 1 and not block.label_dropout,
        f"{place}.label_dropout: 0 never trains the null label, from which {name} {w} guides away: set it above 0 "
        f"(0.1 is usual), or {name} to 1",
    )
    one_format = (teacher.conditioning, teacher.fraction) in (("auxiliary", 0), ("expanded", 1))
    yield Rule(
        not scratch and teacher.stage == "teacher" and one_format,
        f"teacher.fraction: {teacher.fraction:g} with conditioning '{teacher.conditioning}' never trains where "
        "baseline and distill ask the teacher: set it between 0 and 1, or conditioning to plain",
    )
    yield Rule(
        d.objective == "fm" and d.conditioning != "plain" and objective.fraction == 0,
        "objectives.fm.fraction: 0 never trains the FM format, at which a student is drawn: set it above 0",
    )
    yield Rule(
        scratch and d.w > 1 and labelled and not objective.learns_velocity,
        f"distill.w: {d.w:g} from scratch guides by the network's own velocity, which objective '{d.objective}' with "
        "these constants does not train: set it to 1",
    )
    mixed = teacher.conditioning != "plain" and teacher.fraction > 0
    yield Rule(
        not scratch and d.teacher_condition == "fm" and not mixed,
        "distill.teacher_condition: 'fm' needs a mixed teacher (teacher.fraction above 0)",
    )


def _batches(p: Params, objective: Any) -> Rules:
    """Every process and micro-batch has rows."""
    yield partial(loop.check_batch, "teacher", p.teacher.batch_size, 1, p.train.accumulate)
    yield partial(loop.check_batch, "distill", p.distill.batch_size, objective.group, p.train.accumulate)


def _sampling(p: Params, objective: Any) -> Rules:
    """Samplers, their lengths, and how much is drawn."""
    s = p.sample
    yield Rule(
        s.sampler not in objective.samplers,
        f"sample.sampler: '{s.sampler}' does not fit objective '{p.distill.objective}', which has "
        f"{', '.join(objective.samplers)}",
    )
    for name, num in (("sample", s.num), ("baseline", p.baseline.num), ("reference", p.reference.num)):
        few = num <= NEIGHBOURS
        yield Rule(few, f"{name}.num: {num} must be at least {NEIGHBOURS + 1}, or nothing can be scored")
    ema = p.distill.ema
    yield Rule(
        s.sigma_rel is not None and ema.snapshots * len(ema.sigma_rels) < 2,
        f"sample.sigma_rel: {s.sigma_rel} is made from two snapshots or more, and distill.ema keeps {ema.snapshots} of "
        f"{len(ema.sigma_rels)} average: set distill.ema.snapshots to 2 or more",
    )
    lengths = [len(grid) for grid in s.t_grid or ()]
    yield Rule(
        len(set(lengths)) < len(lengths),
        f"sample.t_grid: two grids are as long as each other ({lengths}): one serves one NFE",
    )
    for nfe in s.nfe:
        yield partial(student_sampler, p, nfe, objective.conditioning)
    b = p.baseline
    fields: dict[str, Any] = {"steps": b.steps, "w": b.w, "t_low": b.t_low, "t_high": b.t_high, "shift": b.shift}
    yield partial(for_network, b.sampler, p.teacher.conditioning, "t", **fields)


def student_sampler(p: Params, nfe: int, conditioning: str) -> Any:
    """The sampler of `sample` for one NFE.

    Raises:
        ValueError: an NFE or grid that the sampler cannot have.
    """
    return for_network(p.sample.sampler, conditioning, "fm", **fields_for(p.sample, nfe))
