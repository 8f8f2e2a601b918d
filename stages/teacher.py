"""A flow-matching teacher with mixed conditioning (Eq. 1, App. A.3a) -> data/teacher."""

from pathlib import Path

import torch

from facm import check, checkpoint, dist, params, source, train
from facm.data.latents import LatentSet
from facm.files import save_json
from facm.objectives.fm import FM
from facm.work import Work, key

LATENTS, OUT = Path("data/latents"), Path("data/teacher")


def main() -> None:
    p, raw = check.read(), params.raw()
    check.writable("data", "metrics", ".work")
    dist.setup(p.runtime.threads)
    latents, t, tracked = LatentSet.open(LATENTS), p.teacher, params.tracked(raw, "teacher")
    check.fits(p, latents.shape)
    objective = FM(conditioning=t.conditioning, fraction=t.fraction, cosine=t.cosine, cosine_eps=t.cosine_eps)
    config = checkpoint.describe("teacher", latents, check.backbone(p), objective, t, tracked, check.precond(p))
    torch.manual_seed(t.seed)
    network = config.build(t.dropout)
    if t.init is not None:
        checkpoint.start_from(network, config, t.init, t.init_sha256)
    work = Work("teacher", key(tracked, [LATENTS / "meta.json"], __file__))
    job = train.Job("teacher", network, objective, latents, t, source.data(), p.runtime, train.plan_of(p.train))
    trained = train.train(job, work, "metrics/teacher")
    if dist.is_main():
        checkpoint.save(OUT, trained.weights, config, trained.snapshots)
        save_json(Path("metrics/teacher.json"), {"teacher_training": trained.figures})
        work.finish()


if __name__ == "__main__":
    main()
