"""The student's scores beside the dataset's and the teacher's -> metrics/evaluate.json, and a table to read."""

import json
from pathlib import Path
from typing import Any, TypedDict

from facm import check, table
from facm.inference.samples import NOT_FINITE, load_samples
from facm.metrics import scores as evaluate
from facm.metrics.reference import Reference
from facm.runtime import dist
from facm.runtime.files import load_record, save_csv, save_json
from facm.runtime.log import say
from facm.runtime.params import Params

SAMPLES = Path("data/samples")


class Scale(TypedDict):
    """The block of metrics/reference.json."""

    features: str


class Measured(TypedDict):
    """metrics/reference.json."""

    reference: Scale


class Ended(TypedDict):
    """The block of metrics/distill.json."""

    stable: bool
    steps: int


class Trained(TypedDict):
    """metrics/distill.json."""

    distill_training: Ended


def main() -> None:
    params = check.read()
    check.writable("metrics")
    dist.setup(params.runtime.threads)
    cure = "run `dvc repro`"
    measured = load_record(Path("metrics/reference.json"), Measured, cure)["reference"]
    baseline = load_record(Path(params.evaluate.baseline), dict[str, Any], cure).get("baseline")
    training = load_record(Path("metrics/distill.json"), Trained, cure)["distill_training"]
    reference, student = Reference.open("data/reference"), {}
    drawn = sorted(SAMPLES.glob("nfe*.npz"), key=lambda path: int(path.stem.removeprefix("nfe")))
    if not drawn:
        raise FileNotFoundError(f"{SAMPLES} holds no nfe<N>.npz: {cure}")
    for path in drawn:
        images, labels = load_samples(path)
        options = {"kid_subsets": params.evaluate.kid_subsets, "copies": params.evaluate.copies}
        nfe = int(path.stem.removeprefix("nfe"))
        student[path.stem] = evaluate.score(images, labels, reference, **options, seed=noise_seed(params, nfe))
    if dist.is_main():
        teacher = {"teacher": baseline} if baseline else {}
        key = evaluate.distance_key(reference.statistics[0].network.name, len(images))
        write(measured, teacher | ending(training, SAMPLES / NOT_FINITE), student, num=len(images), key=key)
    dist.teardown()


def ending(training: dict[str, Any], not_finite: Path) -> dict[str, Any]:
    """Whether the student was trained to its end and draws numbers, and where not (distill.if_diverged), what was told.

    Args:
        training: of metrics/distill.json; tells the step at which it was given up.
        not_finite: file that counts pictures which were not finite, where there are any.
    """
    told = {} if training["stable"] else {"diverged_at": training["steps"]}
    if not_finite.is_file():
        told["not_finite"] = load_record(not_finite, dict[str, int], "run `dvc repro`")
    return {"stable": not told} | told


def write(
    measured: dict[str, Any], beside: dict[str, Any], student: dict[str, dict[str, float]], *, num: int, key: str
) -> None:
    """Write the metrics and show them as a table.

    Args:
        measured: of metrics/reference.json.
        beside: the teacher's figures under `teacher`, or nothing, and how the student's training ended.
        student: scores by nfe<N>.
        num: pictures per NFE.
        key: name of the distance that is drawn over NFE.
    """
    ends = {name: measured[name] for name in ("floor", "class_mean", "pixel_mean", "noise") if name in measured}
    heldout = {name: value for name, value in measured.items() if name.startswith("heldout_")}
    result = {"features": measured["features"], "num": num} | ends | beside | {"student": student} | heldout
    save_json(Path("metrics/evaluate.json"), result)
    columns = {"nfe": [int(name.removeprefix("nfe")) for name in student]}
    save_csv(Path("metrics/quality.csv"), columns | {"distance": [scores[key] for scores in student.values()]})
    say(table.render(json.loads(Path("metrics/evaluate.json").read_text())))
    say("grids: " + " ".join(str(path) for path in sorted(SAMPLES.glob("grid_*.png"))))


def noise_seed(params: Params, nfe: int) -> int | None:
    """Seed of the noise of which the student's samples are a map; None where its sampler adds fresh noise."""
    sampler = check.student_sampler(params, nfe, check.build_objective(params).conditioning)
    return params.sample.seed if sampler.draws == 1 else None


if __name__ == "__main__":
    main()
