"""The student's pictures at each NFE -> data/samples."""

from pathlib import Path

from facm import check, dist
from facm.generator import Generator, balanced_labels
from facm.samples import saving_samples

OUT = Path("data/samples")


def main() -> None:
    params = check.read()
    check.writable("data")
    dist.setup(params.runtime.threads)
    s = params.sample
    student = Generator.load("data/student", s.sigma_rel, rounding=s.rounding)
    labels = balanced_labels(s.num, student.config.num_classes)
    for nfe in s.nfe:
        sampler = student.sampler(s.sampler, **check.sampler_fields(params, nfe))
        with saving_samples(OUT, f"nfe{nfe}", s.num, labels) as take:
            counted = student.draw_into(
                take, sampler, labels, s.num, s.seed, batch_size=s.batch_size, what=f"NFE {nfe}"
            )
            if dist.is_main() and counted != nfe:
                raise RuntimeError(f"sampler {s.sampler} took {counted} evaluations for NFE {nfe}")
    dist.teardown()


if __name__ == "__main__":
    main()
