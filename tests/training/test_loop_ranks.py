"""The whole loop on several processes: weights, averages and curves of one process, and saves that fit any plan."""

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from miniature import NETWORK, parsed, randomised, write_latents
from torch import Tensor

from facm.data.latents.store import LatentSet
from facm.flow.guidance import Guidance
from facm.networks import backbones
from facm.objectives.cd import CD
from facm.objectives.facm import FACM
from facm.runtime import dist
from facm.runtime.resume import Work
from facm.training import loop as train
from facm.training import target_velocity
from facm.training.passes import Plan

STEPS, SLOW = 6, pytest.mark.slow
AIMING = CD(target="target", decay=0.7)


def loop(folder: Path, plan: Plan, key: str, objective: Any = FACM()) -> train.Loop:  # noqa: B008
    """A student of a guided teacher, with dropout; no batch of five can be shared evenly."""
    changes: dict[str, Any] = {"distill__steps": STEPS, "distill__batch_size": 5, "distill__dropout": 0.2}
    p, latents = parsed(**changes, distill__ema__snapshots=2), LatentSet.open(folder / "latents")

    def network(seed: int) -> Any:
        return randomised(backbones.build("lightningdit", NETWORK, shape=(1, 4, 4), num_classes=3, dropout=0.2), seed)

    teacher = target_velocity.teacher(network(1), Guidance(w=2.0, null=3), plan)
    job = train.Job("distill", network(2), objective, latents, p.distill, teacher, p.runtime, plan)
    return train.Loop(job, Work("distill", key, folder), str(folder / "metrics" / key))


def trained(folder: Path, plans: tuple[Plan, Plan], key: str) -> None:
    """On each rank: three steps under one plan, a save, a kill, and the rest under another; rank 0 writes the end."""
    first = loop(folder, plans[0], key)
    for _ in range(3):
        first.advance()
    first.save(wait=True)
    first.advance()  # lost
    first.work.close()
    dist.barrier()
    finish(loop(folder, plans[1], key), folder, key)


def finish(run: train.Loop, folder: Path, key: str) -> None:
    """Train to the end and write averages, snapshots' names and rows."""
    while run.state.step < STEPS:
        run.advance()
    end = run.finish()
    if run.log is not None:
        names = [path.name for path in end.snapshots]
        torch.save({"weights": end.weights, "rows": run.log.rows, "snapshots": names}, folder / f"{key}.pt")
        run.work.close()


def assert_equal_to_rounding(found: dict[str, Any], expected: dict[str, Any]) -> None:
    def flat(weights: dict[str, Tensor]) -> Tensor:
        return torch.cat([weights[name].flatten() for name in sorted(weights)])

    error = (flat(found["weights"]) - flat(expected["weights"])).norm() / flat(expected["weights"]).norm()
    assert float(error) < 1e-4
    assert found["snapshots"] == expected["snapshots"] and len(found["snapshots"]) == 4
    assert [row["step"] for row in found["rows"]] == list(range(1, STEPS + 1))
    for row, other in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-3), "losses are means over the global batch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents, and `single.pt`: what one process trains without a kill."""
    made = tmp_path_factory.mktemp("ranks")
    write_latents(made / "latents")
    finish(loop(made, Plan(), "single"), made, "single")
    return made


@pytest.mark.parametrize(
    ("num", "plans"),
    [
        (3, (Plan(), Plan(parallel="fsdp"))),
        pytest.param(2, (Plan(parallel="fsdp", checkpoint=True), Plan(parallel="fsdp", lean=True)), marks=SLOW),
        pytest.param(3, (Plan(parallel="fsdp"), Plan()), marks=SLOW),
    ],
    ids=["ddp then fsdp", "fsdp", "fsdp then ddp"],
)
def test_several_processes_train_as_one_and_resume_under_any_plan(num: int, plans: Any, folder: Path) -> None:
    key = f"{num}-{plans[0].parallel}-{plans[1].parallel}"
    ranks.run(num, trained, folder, plans, key)
    assert_equal_to_rounding(torch.load(folder / f"{key}.pt"), torch.load(folder / "single.pt"))


@pytest.mark.slow
def test_what_two_processes_saved_one_process_finishes(folder: Path) -> None:
    ranks.run(2, saved, folder)
    finish(loop(folder, Plan(accumulate=2), "shared"), folder, "shared")
    assert_equal_to_rounding(torch.load(folder / "shared.pt"), torch.load(folder / "single.pt"))


def saved(folder: Path) -> None:
    run = loop(folder, Plan(parallel="fsdp"), "shared")
    for _ in range(3):
        run.advance()
    run.save(wait=True)
    run.work.close()


@pytest.mark.slow
def test_two_processes_keep_the_target_network_of_one_and_resume_it(folder: Path) -> None:
    single = loop(folder, Plan(), "one target", AIMING)
    for _ in range(STEPS):
        single.advance()
    ranks.run(2, aimed, folder)
    found = torch.load(folder / "target.pt")
    assert single.state.averages.target is not None and found.keys() == single.state.averages.target.weights.keys()
    moved = single.state.network.state_dict()
    for name, weight in single.state.averages.target.weights.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(found[name], weight, rtol=1e-2, atol=1e-3) for name, weight in moved.items())


def aimed(folder: Path) -> None:
    """On each rank: three steps, a save, a kill, and the rest; rank 0 writes the target network."""
    for last in (3, STEPS):
        run = loop(folder, Plan(), "targets", AIMING)
        while run.state.step < last:
            run.advance()
        run.save(wait=True)
        run.work.close()
        dist.barrier()
    assert run.state.averages.target is not None
    if dist.is_main():
        torch.save(run.state.averages.target.weights, folder / "target.pt")
