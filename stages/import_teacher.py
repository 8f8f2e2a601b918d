"""A published checkpoint in the teacher's place (`teacher.stage: import_teacher`) -> data/teacher."""

from dataclasses import replace
from pathlib import Path

from facm import check, checkpoint, convert, dist, params
from facm.convert.place import place
from facm.data.latents import LatentSet
from facm.files import save_csv, save_json
from facm.work import located

LATENTS, OUT = Path("data/latents"), Path("data/teacher")


def main() -> None:
    p, raw = check.read(), params.raw()
    check.writable("data", "metrics")
    dist.setup(p.runtime.threads)
    if dist.is_main():
        i, latents = p.imported, LatentSet.open(LATENTS)
        (name, constants), precond = check.backbone(p), check.precond(p)
        source = convert.Source(
            path=located(i.source or ""),
            format=i.format or "",
            which=i.which,
            profile=i.profile,
            trust=i.trust_pickle,
            sha256=i.sha256,
        )
        stats = None if i.stats is None else located(i.stats)
        space = convert.space(source.format, codec=latents.codec, stats=stats)
        weights, config = convert.convert(source, space, constants, expected=(name, precond[0]))
        tracked = params.tracked(raw, "teacher")
        config = place(config, latents, p.teacher.conditioning, precond[1], source.path)
        tracked["imported"] |= config.params["imported"]
        checkpoint.save(OUT, weights, replace(config, params=tracked))
        save_json(Path("metrics/teacher.json"), {"teacher_training": {"steps": 0, "skipped": 0, "stable": True}})
        save_csv(Path("metrics/teacher/imported.csv"), {"step": [0], "tensors": [len(weights)]})
    dist.teardown()


if __name__ == "__main__":
    main()
