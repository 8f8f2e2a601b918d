"""`python -m facm.generate data/student --labels 0-9 --nfe 2 --out digits.png`: images from a checkpoint.

A sheet, an animation of the refinement, or arrays; from a folder, a repository or the hub, as `facm.load` takes them:

    python -m facm.generate data/student --labels 0-9 --nfe 1,2,4 --out steps.png     # a row per NFE, the same noise
    python -m facm.generate data/student --labels 3 --seed 0-9 --nfe 2 --out seeds.npz
    python -m facm.generate data/teacher --sampler heun --steps 8 --w 1.25 --t-low 0.125 --out guided.png
    python -m facm.generate data/teacher --sampler euler --steps 40 --w 1.25 --out refinement.gif
    python -m facm.generate https://host/repository.git --rev student@v1.0.0 --out digits.png
"""

import argparse
import re
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import facm
from facm import samplers
from facm.export import frames
from facm.flow.noise import SEED
from facm.inference import grid
from facm.inference.generator import Generator, refuse_not_finite
from facm.inference.samples import saving_arrays
from facm.runtime.files import refuse_no_target
from facm.runtime.log import say

PER_LABEL, NFE, BATCH = 8, 2, 256
ENDINGS = (".png", ".npz", ".gif")
FLOW = ("steps", "w", "t_low", "t_high", "shift")  # fields of the samplers that follow the flow
SHEET = 5000  # images of a .png or .gif, at most
ARRAYS = 10_000_000  # of a .npz
STEPS = 10_000  # of a sampler, or its evaluations
NUMBERS = 1_000_000  # in a list of labels or seeds
RANGE = re.compile(r" *([0-9]{1,30}) *(?:- *([0-9]{1,30}) *)?")  # \d would take digits of other scripts


@dataclass(frozen=True)
class Plan:
    """What is to be sampled, checked before it is."""

    generator: Generator
    rules: list[Any]  # a sampler for each NFE
    y: Tensor | None  # (num,) labels of a row, None without classes
    num: int  # images of one sampler and one seed
    seeds: list[int]
    columns: int  # of a sheet

    @property
    def total(self) -> int:
        return len(self.rules) * len(self.seeds) * self.num


def parse_labels(text: str, option: str = "--labels", largest: int = SEED) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]; ValueError, naming the option, for anything else, or more than NUMBERS of them."""
    ranges: list[range] = []
    for part in text.split(","):
        found = RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if last < first:
            raise ValueError(f"{option} {text!r}: write numbers and rising ranges such as 0-3,7")
        if last > largest:
            raise ValueError(f"{option} {text!r}: {last} is too large, the largest is {largest}")
        ranges.append(range(first, last + 1))
    if (num := sum(part.stop - part.start for part in ranges)) > NUMBERS:
        raise ValueError(f"{option} {text!r}: {num} numbers, at most {NUMBERS} at once")
    return [*chain.from_iterable(ranges)]


def main() -> None:
    """Draw images from a checkpoint: a sheet (.png), an animation of the refinement (.gif), or arrays (.npz).

    With several NFEs a sheet has a row for each, of the same noise. Arrays are arr_0 images and arr_1 labels, NFE by
    NFE, in each seed by seed, in each label by label; they are written as they are drawn.
    """
    arguments = _parser().parse_args()
    try:
        _check(arguments)
        plan = _plan(arguments)
        nfe = _draw(plan, Path(arguments.out))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    say(f"{arguments.out}: {plan.total} pictures, NFE {', '.join(map(str, nfe))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m facm.generate", description=main.__doc__)
    parser.add_argument("where", help="checkpoint or exported folder, git repository with DVC, or hf://OWNER/NAME")
    parser.add_argument("--path", help="of the checkpoint in a repository (default data/student)")
    parser.add_argument("--rev", help="of the repository: branch, tag or commit")
    parser.add_argument("--labels", help="classes, such as 0-9 or 3,7 (default all); not for models without classes")
    parser.add_argument("--per-label", type=int, help=f"pictures per class (default {PER_LABEL}; with several NFEs 1)")
    parser.add_argument("--nfe", help=f"function evaluations per picture, such as 2 or 1,2,4 (default {NFE})")
    parser.add_argument("--seed", default="0", help="of the noise, such as 0 or 0-3 (default 0)")
    parser.add_argument("--sampler", help="consistency | anchored | jumps | euler | heun | dpmpp | edm; default: the "
                        "checkpoint's first")  # fmt: skip
    parser.add_argument("--t-grid", help="times of consistency's and jumps' evaluations, such as 0,0.7")
    parser.add_argument("--steps", type=int, help="of the flow's samplers, in place of NFE; needed with guidance")
    parser.add_argument("--w", type=float, help="guidance scale of the flow's samplers (default 1: none)")
    parser.add_argument("--t-low", type=float, help="guided only from this time on (default 0)")
    parser.add_argument("--t-high", type=float, help="guided only up to this time (default 1)")
    parser.add_argument("--shift", type=float, help="of the flow's time grid")
    parser.add_argument("--sigma-rel", type=float, help="post-hoc EMA length instead of the stored one")
    parser.add_argument("--vae", help="where the codec's weights are, if not where the checkpoint's config.json says")
    parser.add_argument("--out", required=True, help=f"file to write: {', '.join(ENDINGS)}")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for what can be refused before the checkpoint is loaded."""
    out = Path(arguments.out)
    if out.suffix not in ENDINGS:
        raise ValueError(f"--out {arguments.out!r} must end in {', '.join(ENDINGS)}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {arguments.out!r}: there is no folder {out.parent}")
    refuse_no_target(out)
    for name, most in (("per_label", ARRAYS), ("steps", STEPS)):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 1 and at most {most}")
    if arguments.labels is not None:
        parse_labels(arguments.labels)
    given = [name for name in ("nfe", "steps", "t_grid") if getattr(arguments, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join('--' + name.replace('_', '-') for name in given)}: give one of them")
    if min(nfes := _nfes(arguments)) < 1:
        raise ValueError(f"--nfe {min(nfes)} must be at least 1")
    if len(nfes) > 1 and out.suffix == ".gif":
        raise ValueError(f"--nfe {arguments.nfe}: a .gif shows one NFE; write several as .png, a row each")
    parse_labels(arguments.seed, "--seed")
    if arguments.t_grid is not None:
        _times(arguments.t_grid)


def _plan(arguments: argparse.Namespace) -> Plan:
    """Load the checkpoint and build every sampler; raises for what cannot be sampled."""
    generator = facm.load(
        arguments.where, arguments.sigma_rel, path=arguments.path, rev=arguments.rev, vae=arguments.vae
    )
    fields = _fields(arguments, arguments.sampler or generator.config.samplers[0])
    nfes = _nfes(arguments)
    rules = [generator.sampler(arguments.sampler, nfe=nfe, **fields) for nfe in nfes]
    per_label = arguments.per_label or (PER_LABEL if len(nfes) == 1 else 1)
    classes = generator.config.num_classes
    if classes:
        named = parse_labels(f"0-{classes - 1}" if arguments.labels is None else arguments.labels)
        generator.labels(named)
        num = len(named) * per_label
    else:
        named, num = [], per_label if len(nfes) > 1 else per_label**2
    seeds = parse_labels(arguments.seed, "--seed")
    total, arrays = len(rules) * len(seeds) * num, arguments.out.endswith(".npz")
    if total > (ARRAYS if arrays else SHEET):
        cure = f"a file takes {ARRAYS}: write several" if arrays else f"a sheet takes {SHEET}: write a .npz"
        raise ValueError(f"--out {arguments.out!r}: {total} pictures, {cure}")
    y = generator.labels([label for label in named for _ in range(per_label)] if classes else arguments.labels, num)
    return Plan(generator, rules, y, num, seeds, num * len(seeds) if len(nfes) > 1 else per_label)


def _fields(arguments: argparse.Namespace, sampler: str) -> dict[str, Any]:
    """What is given of a sampler's fields; raises ValueError for those that it does not have."""
    given = {name: getattr(arguments, name) for name in (*FLOW, "t_grid") if getattr(arguments, name) is not None}
    if not given:
        return given
    length, _ = samplers.length(sampler)
    wrong = given.keys() - {"steps": set(FLOW), "t_grid": {"t_grid"}}.get(length, set())
    if wrong:
        flags = ", ".join("--" + name.replace("_", "-") for name in sorted(wrong))
        raise ValueError(
            f"{flags}: sampler '{sampler}' has no such setting; steps, guidance and shift belong to the flow's "
            "samplers (euler, heun, dpmpp, edm), times to consistency and jumps; a student's guidance is in its weights"
        )
    if "t_grid" in given:
        given["t_grid"] = _times(given["t_grid"])
    return given


def _draw(plan: Plan, out: Path) -> list[int]:
    """Sample and write; returns the NFE that each sampler counted."""
    if out.suffix == ".gif":
        (rule,) = plan.rules
        each = [frames.frames(plan.generator, rule, plan.y, plan.num, seed) for seed in plan.seeds]
        parts = zip(*(shown for shown, _ in each), strict=True)
        frames.save_gif(out, [np.concatenate(part) for part in parts], plan.columns)
        return [each[0][1]]
    if out.suffix == ".npz":
        labels = None if plan.y is None else np.tile(plan.y.numpy(), len(plan.rules) * len(plan.seeds))
        with saving_arrays(out, plan.total, labels) as take:
            return _draw_into(plan, take)
    drawn: list[np.ndarray] = []
    nfe = _draw_into(plan, drawn.append)
    grid.save(grid.sheet(np.concatenate(drawn), plan.columns), out)
    return nfe


def _draw_into(plan: Plan, take: Any) -> list[int]:
    nfe = {}
    for (row, rule), seed in product(enumerate(plan.rules), plan.seeds):
        what = f"sampling {row + 1}/{len(plan.rules)}, seed {seed}"
        drawn = plan.generator.draw_into(take, rule, plan.y, plan.num, seed, batch_size=BATCH, what=what)
        refuse_not_finite(drawn.not_finite, plan.num, what)
        nfe[row] = drawn.nfe
    return list(nfe.values())


def _nfes(arguments: argparse.Namespace) -> list[int]:
    """NFEs; a single one that is not read where steps or times are given."""
    return parse_labels(arguments.nfe, "--nfe", STEPS) if arguments.nfe is not None else [NFE]


def _times(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--t-grid {text!r}: write times with commas, such as 0,0.7") from None


if __name__ == "__main__":
    main()
