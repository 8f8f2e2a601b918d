"""A flow-matching teacher with mixed conditioning (Eq. 1, App. A.3a) -> data/teacher."""

from pathlib import Path

import torch

from facm import check
from facm.data.latents.store import LatentSet
from facm.data.latents.tokens import INDEX, TokenSet
from facm.networks import checkpoint
from facm.objectives.fm import FM
from facm.runtime import dist, params
from facm.runtime.files import save_json
from facm.runtime.resume import Work, key
from facm.training import loop, repa, target_velocity

LATENTS, OUT = Path("data/latents"), Path("data/teacher")


def main() -> None:
    p, raw = check.read(), params.raw()
    check.writable("data", "metrics", ".work")
    check.at_hand(p)
    dist.setup(p.runtime.threads)
    latents, t, tracked = LatentSet.open(LATENTS), p.teacher, params.tracked(raw, "teacher")
    check.fits(p, latents.shape)
    objective = FM(conditioning=t.conditioning, fraction=t.fraction, cosine=t.cosine, cosine_eps=t.cosine_eps)
    config = checkpoint.describe("teacher", latents, check.backbone(p), objective, t, tracked, check.precond(p))
    torch.manual_seed(t.seed)
    network = config.build(t.dropout)
    tokens, inputs = None, [LATENTS / "meta.json"]
    if repa.wanted(network):
        tokens = TokenSet.find(LATENTS, num=latents.num, flips=latents.flips, fingerprint=latents.fingerprint)
        inputs += [LATENTS / INDEX]
    aligned = repa.aligned(objective, network, tokens)
    if t.init is not None:
        checkpoint.start_from(network, config, t.init, t.init_sha256)
    work, plan = Work("teacher", key(tracked, inputs, __file__)), loop.plan_of(p.train)
    job = loop.Job("teacher", network, aligned, latents, t, target_velocity.Data(), p.runtime, plan, tokens=tokens)
    trained = loop.train(job, work, "metrics/teacher")
    if dist.is_main():
        checkpoint.save(OUT, trained.weights, config, trained.snapshots)
        save_json(Path("metrics/teacher.json"), {"teacher_training": trained.figures})
        work.finish()


if __name__ == "__main__":
    main()
