"""Everything in params.yaml that can be refused before any work: names against registries, blocks against classes.

`python -m facm.check` does the same from the shell. Every stage calls `read` first, for the whole file, so that a
mistake under `distill` is told before the teacher is trained.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facm import backbones, codecs, data, features, objectives, params, samplers
from facm.names import refuse_unknown
from facm.params import PATH, Params, ParamsError
from facm.schedules import TIME_SAMPLERS
from facm.velocity import Guidance


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
    refuse_unknown([p.data.name], data.DATASETS, f"{PATH}, data.name")
    refuse_unknown([p.reference.features], features.FEATURES, f"{PATH}, reference.features")
    refuse_unknown(p.reference.also or (), features.FEATURES, f"{PATH}, reference.also")
    refuse_unknown([p.latents.codec], codecs.CODECS, f"{PATH}, latents.codec")
    refuse_unknown([p.backbone.name], backbones.BACKBONES, f"{PATH}, backbone.name")
    refuse_unknown([p.distill.objective], objectives.OBJECTIVES, f"{PATH}, distill.objective")
    refuse_unknown([p.sample.sampler], samplers.SAMPLERS, f"{PATH}, sample.sampler")
    refuse_unknown(p.backbones, backbones.BACKBONES, f"{PATH}, backbones")
    refuse_unknown(p.objectives, objectives.OBJECTIVES, f"{PATH}, objectives")
    _check_kind(p)
    _check_reference(p)
    _check_data(p)
    for name, block in (("teacher", p.teacher), ("distill", p.distill)):
        refuse_unknown([block.time.sampler], TIME_SAMPLERS, f"{PATH}, {name}.time.sampler")
        if block.ema.sigma_rel not in block.ema.sigma_rels:
            raise ParamsError(f"{PATH}, {name}.ema.sigma_rel: {block.ema.sigma_rel} must be one of sigma_rels")
        if (block.init is None) != (block.init_sha256 is None):
            raise ParamsError(
                f"{PATH}, {name}: init and init_sha256 go together; the sha256 stands in the checkpoint's config.json"
            )
    objective = build_objective(p)
    _check_stages(p, objective)
    _check_sampling(p, objective)


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
    """Name and constants of the chosen backbone.

    Raises:
        ParamsError: there is none.
    """
    if p.backbone.name not in p.backbones:
        raise ParamsError(f"{PATH}, backbones: no block '{p.backbone.name}' for backbone.name")
    return p.backbone.name, p.backbones[p.backbone.name]


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
    points = p.data.name in data.POINTS
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
    if r.source != "dataset" and features.network_class(r.features).seeded:
        raise ParamsError(
            f"{PATH}, reference.source: statistics in '{r.source}' are of a published network, '{r.features}' is "
            "trained here: set reference.features to inception"
        )


def _check_data(p: Params) -> None:
    """Raise ValueError for what the dataset or the codec has no use for, or lacks."""
    data.check_size(p.data.name, p.data.size)
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
    backbone(p)
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
            "(teacher: data/latents, evaluate.baseline: metrics/reference.json; `python -m facm.preset digits scratch` "
            "sets them), mode distill names its checkpoint (data/teacher)"
        )
    if p.train.compile and getattr(objective, "ragged", False):
        raise ParamsError(
            f"{PATH}, train.compile: objective '{distill.objective}' asks for other numbers of rows in every step, "
            "each of which would be compiled: set it false"
        )
    if p.train.parallel == "fsdp" and _needs_copies(objective):
        raise ParamsError(
            f"{PATH}, train.parallel: 'fsdp' does not fit objective '{distill.objective}' with these constants, which "
            "asks copies of the network, or other numbers of rows on each process: set ddp"
        )
    knows = p.teacher.conditioning != "plain" and p.teacher.fraction > 0
    if distill.mode == "distill" and distill.teacher_condition == "fm" and not knows:
        raise ParamsError(f"{PATH}, distill.teacher_condition: 'fm' needs a mixed teacher (teacher.fraction above 0)")


def _needs_copies(objective: Any) -> bool:
    """Whether an objective asks averaged or frozen weights, or a number of rows that differs between processes."""
    averaged = "ema" in (getattr(objective, "target", None), getattr(objective, "self_teacher", None))
    return averaged or hasattr(objective, "phase") or getattr(objective, "ragged", False)


def _check_sampling(p: Params, objective: Any) -> None:
    if p.sample.sampler not in objective.samplers:
        raise ParamsError(
            f"{PATH}, sample.sampler: '{p.sample.sampler}' does not fit objective '{p.distill.objective}', "
            f"which has {', '.join(objective.samplers)}"
        )
    lengths = [len(grid) for grid in p.sample.t_grid or ()]
    if len(set(lengths)) < len(lengths):
        raise ParamsError(f"{PATH}, sample.t_grid: two grids are as long as each other ({lengths}): one serves one NFE")
    for nfe in p.sample.nfe:
        student_sampler(p, nfe, objective.conditioning)


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


def main() -> None:
    """Check params.yaml."""
    try:
        read()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{PATH}: in order")


if __name__ == "__main__":
    main()
