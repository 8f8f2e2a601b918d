"""A published checkpoint in the teacher's place (`teacher.stage: import_teacher`) -> data/teacher."""

from dataclasses import replace
from pathlib import Path

from facm import check, convert
from facm.convert import place
from facm.data.latents.store import LatentSet
from facm.networks import checkpoint
from facm.runtime import dist, params
from facm.runtime.files import save_csv, save_json
from facm.runtime.log import say
from facm.runtime.paths import located

LATENTS, OUT = Path("data/latents"), Path("data/teacher")


def main() -> None:
    p, raw = check.read(), params.raw()
    check.writable("data", "metrics")
    dist.setup(p.runtime.threads)
    if dist.is_main():
        latents, precond = LatentSet.open(LATENTS), check.precond(p)
        weights, config = place.read(p.imported, latents.codec, check.backbone(p), precond[0], latents.num_classes)
        say(f"{OUT}: {convert.told_settings(config)}")
        if (told := convert.other_codec(p.imported.format or "", latents.codec)) is not None:
            say(f"{OUT}: {told}")
        tracked = params.tracked(raw, "teacher")
        config = place.place(config, latents, p.teacher.conditioning, precond[1], located(p.imported.source or ""))
        tracked["imported"] |= config.params["imported"]
        checkpoint.save(OUT, weights, replace(config, params=tracked))
        save_json(Path("metrics/teacher.json"), {"teacher_training": {"steps": 0, "skipped": 0, "stable": True}})
        save_csv(Path("metrics/teacher/imported.csv"), {"step": [0], "tensors": [len(weights)]})
    dist.teardown()


if __name__ == "__main__":
    main()
