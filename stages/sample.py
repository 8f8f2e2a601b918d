"""The student's pictures at each NFE -> data/samples."""

from pathlib import Path

from facm import check
from facm.inference.generator import Generator, balanced_labels, refuse_not_finite
from facm.inference.sampler import fields_for
from facm.inference.samples import NOT_FINITE, saving_samples
from facm.runtime import dist
from facm.runtime.files import save_json
from facm.runtime.log import say

OUT = Path("data/samples")


def main() -> None:
    params = check.read()
    check.writable("data")
    dist.setup(params.runtime.threads)
    s = params.sample
    student = Generator.load("data/student", s.sigma_rel, rounding=s.rounding)
    labels = balanced_labels(s.num, student.config.num_classes)
    recorded = student.config.params.get("distill", {}).get("if_diverged") == "record"
    not_finite = {}
    for nfe in s.nfe:
        sampler = student.sampler(s.sampler, **fields_for(s, nfe))
        with saving_samples(OUT, f"nfe{nfe}", s.num, labels) as take:
            drawn = student.draw_into(take, sampler, labels, s.num, s.seed, batch_size=s.batch_size, what=f"NFE {nfe}")
            if dist.is_main() and drawn.nfe != nfe:
                raise RuntimeError(f"sampler {s.sampler} took {drawn.nfe} evaluations for NFE {nfe}")
            if not recorded:
                refuse_not_finite(drawn.not_finite, s.num, f"NFE {nfe}")
        if drawn.not_finite:
            not_finite[f"nfe{nfe}"] = drawn.not_finite
    if dist.is_main() and not_finite:
        say(f"sample: not finite and recorded, as distill.if_diverged says: {not_finite}")
        save_json(OUT / NOT_FINITE, not_finite)
    dist.teardown()


if __name__ == "__main__":
    main()
