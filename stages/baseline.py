"""The guided teacher, drawn by an ODE sampler and scored -> data/baseline, metrics/baseline.json."""

from pathlib import Path

from facm import check
from facm.inference.generator import Generator, balanced_labels, refuse_not_finite
from facm.inference.samples import load_samples, saving_samples
from facm.metrics import scores as evaluate
from facm.metrics.reference import Reference
from facm.runtime import dist
from facm.runtime.files import save_json

OUT = Path("data/baseline")


def main() -> None:
    params = check.read()
    check.writable("data", "metrics")
    dist.setup(params.runtime.threads)
    b, e = params.baseline, params.evaluate
    teacher = Generator.load("data/teacher", rounding=params.sample.rounding)
    reference = Reference.open("data/reference")
    w = b.w if teacher.config.num_classes else 1.0
    sampler = teacher.sampler(b.sampler, steps=b.steps, w=w, t_low=b.t_low, t_high=b.t_high, shift=b.shift)
    labels = balanced_labels(b.num, teacher.config.num_classes)
    with saving_samples(OUT, "teacher", b.num, labels) as take:
        what = f"{b.sampler} {b.steps}"
        drawn = teacher.draw_into(take, sampler, labels, b.num, b.seed, batch_size=b.batch_size, what=what)
        refuse_not_finite(drawn.not_finite, b.num, "teacher")
    images, _ = load_samples(OUT / "teacher.npz")
    scores = evaluate.score(images, labels, reference, kid_subsets=e.kid_subsets, copies=e.copies, seed=b.seed)
    if dist.is_main():
        save_json(Path("metrics/baseline.json"), {"baseline": {"nfe": drawn.nfe, "w": w, "num": b.num} | scores})
    dist.teardown()


if __name__ == "__main__":
    main()
