"""The few-step student, distilled from the teacher or trained from scratch (Algorithm 1) -> data/student."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facm import check
from facm.data.latents.store import LatentSet
from facm.flow.guidance import Guidance
from facm.flow.interface import Objective
from facm.flow.time import weighting
from facm.networks import checkpoint, lpips
from facm.networks.checkpoint import Config
from facm.objectives import ignored
from facm.runtime import dist, params
from facm.runtime.files import save_csv, save_json
from facm.runtime.log import say
from facm.runtime.resume import Work, key
from facm.training import loop, target_velocity
from facm.training.passes import Plan

LATENTS, OUT = Path("data/latents"), Path("data/student")


def main() -> None:
    p, raw = check.read(), params.raw()
    check.writable("data", "metrics", ".work")
    check.at_hand(p)
    dist.setup(p.runtime.threads)
    latents, d, objective = LatentSet.open(LATENTS), p.distill, check.build_objective(p)
    check.fits(p, latents.shape)
    tracked = params.tracked(raw, "distill")
    unused = ignored(d.objective)
    if unused:
        say(f"distill: objective '{d.objective}' has no use for {', '.join(unused)}; recorded as null")
        tracked["distill"] |= dict.fromkeys(unused)
    config = checkpoint.describe("student", latents, check.backbone(p), objective, d, tracked, check.precond(p))
    torch.manual_seed(d.seed)
    network, plan = config.build(d.dropout), loop.plan_of(p.train)
    velocity = _start(network, config, d, plan)
    inputs = [LATENTS / "meta.json", *([Path(d.teacher) / "config.json"] if d.mode == "distill" else [])]
    work = Work("distill", key(tracked, inputs, __file__))
    job = loop.Job(
        "distill",
        network,
        objective,
        latents,
        d,
        velocity,
        p.runtime,
        plan,
        d.derivative,
        tools=_tools(objective, latents),
        if_diverged=d.if_diverged,
    )
    trained = loop.train(job, work, "metrics/distill")
    if dist.is_main():
        config = replace(config, step=trained.figures["steps"])  # fewer than asked where it diverged
        checkpoint.save(OUT, trained.weights, config, trained.snapshots)
        _write_weightings(Path("metrics/weighting.csv"), d)
        save_json(Path("metrics/distill.json"), {"distill_training": trained.figures})
        work.finish()


def _start(network: nn.Module, config: Config, d: params.Distill, plan: Plan) -> target_velocity.TargetVelocity:
    """Give the student its first weights and return where its target velocity comes from."""
    guidance: dict[str, Any] = {
        "w": d.w,
        "t_low": d.t_low,
        "t_high": d.t_high,
        "null": config.num_classes or None,
        "scratch_form": d.scratch_form,
        "scratch_condition": d.scratch_condition,
        "scratch_kappa": d.scratch_kappa,
        "teacher_condition": d.teacher_condition,
    }
    if d.mode == "scratch":
        if d.init is not None:
            checkpoint.start_from(network, config, d.init, d.init_sha256)
        checkpoint.refuse_guidance(config, d.init or "a network from scratch", d.w, "distill.w")
        return target_velocity.Scratch(Guidance(**guidance, conditioning=config.conditioning), d.scratch_source)
    teacher, described = checkpoint.load(d.teacher)
    checkpoint.check_teacher(config, described, d.teacher, d.teacher_condition)
    checkpoint.refuse_guidance(described, d.teacher, d.w, "distill.w", d.label_dropout)
    checkpoint.start_from(network, config, d.init or d.teacher, d.init_sha256 or described.sha256)
    return target_velocity.teacher(teacher, Guidance(**guidance, conditioning=described.conditioning), plan)


def _tools(objective: Objective, latents: LatentSet) -> dict[str, Callable[..., Any]]:
    """What the objective asks for beyond tensors."""
    if "lpips" not in objective.tools:
        return {}
    network = lpips.from_weights(*lpips.find_weights()).to(dist.device())
    return {"lpips": lpips.Distance(network, latents.mean, latents.std)}


def _write_weightings(path: Path, d: params.Distill) -> None:
    """The weighting functions of this run (Fig. 3a), for `dvc plots`."""
    t = torch.linspace(0, 1, 101)
    columns = {"t": t} | {name: weighting(getattr(d, name), d.p, f"distill.{name}")(t) for name in ("alpha", "beta")}
    save_csv(path, {name: column.tolist() for name, column in columns.items()})


if __name__ == "__main__":
    main()
