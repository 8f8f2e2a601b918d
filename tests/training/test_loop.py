"""The training loop: what is drawn, what survives a kill, what a step that is not finite does, what is written."""

import dataclasses
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import CONSTANTS, NETWORK, Points, parsed, plain, randomised, write_latents
from torch import nn

from facm import check
from facm.data.latents.store import LatentSet
from facm.flow import path as flow
from facm.flow.guidance import Guidance
from facm.flow.interface import Progress, Query
from facm.networks import backbones, checkpoint, ema
from facm.networks.lpips import LPIPS, Distance
from facm.objectives.cd import CD
from facm.objectives.facm import FACM
from facm.objectives.fm import FM
from facm.objectives.tract import TRACT
from facm.runtime import dist
from facm.runtime.params import Optimizer
from facm.runtime.resume import Work
from facm.training import loop as train
from facm.training import target_velocity
from facm.training.batch import Batch, draw
from facm.training.passes import Plan

KEEP_WEIGHTS = 1e-30  # a learning rate that moves no float32 weight


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> LatentSet:
    return write_latents(tmp_path_factory.mktemp("latents"))


def network(latents: Any, name: str = "lightningdit", *, auxiliary: bool = False, dropout: float = 0.0, seed: int = 0):
    sizes = {"shape": latents.shape, "num_classes": latents.num_classes}
    return randomised(backbones.build(name, CONSTANTS[name], **sizes, auxiliary=auxiliary, dropout=dropout), seed)


def guidance(latents: Any, **fields: Any) -> Guidance:
    return Guidance(w=2.0, t_low=0.1, null=latents.num_classes or None, **fields)


def job(latents: Any, objective: Any = None, *, seed: int = 0, dropout: float = 0.0, **options: Any) -> train.Job:
    """A job on these latents; `options` are fields of Job, or, with `__`, changes of params.yaml under `distill`."""
    changes = {name: options.pop(name) for name in list(options) if "__" in name}
    p = parsed(distill__dropout=dropout, **changes)
    objective = FM() if objective is None else objective
    built = network(latents, auxiliary=objective.conditioning == "auxiliary", dropout=dropout, seed=seed)
    fields = {"name": "distill", "network": built, "velocity": target_velocity.Data(), "runtime": p.runtime} | options
    return train.Job(objective=objective, latents=latents, settings=p.distill, **fields)


def loop(job: train.Job, folder: Path, key: str = "k") -> train.Loop:
    return train.Loop(job, Work(job.name, key, folder), str(folder / "metrics" / key))


def drawn(run: train.Loop, step: int) -> Batch:
    """What the loop drew in a step."""
    return draw(run.job.latents, run.job.settings, run.job.objective.normals, step)


def everything(run: train.Loop) -> dict[str, Any]:
    """All that a step may change, as plain tensors and values."""
    moments, averages = run.state.optimizer.state_dict()["state"], run.state.averages
    return {
        **{f"network.{name}": value.clone() for name, value in run.state.network.state_dict().items()},
        **{
            f"ema.{s}.{name}": v.clone()
            for s, average in averages.ema.state_dict().items()
            for name, v in average.items()
        },
        **{f"adam.{i}.{name}": v.clone() for i, values in moments.items() for name, v in values.items()},
        **{f"target.{name}": v.clone() for name, v in (averages.target.weights if averages.target else {}).items()},
        "rows": [dict(row) for row in run.log.rows],
        "skipped": run.state.skipped,
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


def optimizer(**changes: Any) -> Optimizer:
    return dataclasses.replace(parsed().teacher.optimizer, lr=2.0, **changes)


def test_float32_on_a_gpu_is_not_tf32(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    dist.setup(torch.get_num_threads())
    torch.set_flush_denormal(False)
    assert not torch.backends.cudnn.allow_tf32


def test_the_learning_rate_warms_up_linearly_and_stays_or_falls_as_a_cosine() -> None:
    def rates(o: Optimizer) -> list[float]:
        return [train.learning_rate(step, o, 10) for step in range(1, 11)]

    assert rates(optimizer()) == [2.0] * 10
    assert rates(optimizer(warmup=4)) == [0.5, 1.0, 1.5] + [2.0] * 7
    cosine = rates(optimizer(schedule="cosine", warmup=2))
    assert cosine[:2] == [1.0, 2.0] and abs(cosine[-1]) < 1e-15
    assert cosine[5] == pytest.approx(1.0) and cosine[4] + cosine[6] == pytest.approx(2.0)
    assert rates(optimizer(schedule="cosine", warmup=20))[-1] == pytest.approx(1.0), "a warm-up longer than the run"


# A kill


def scratch(which: str, conditioning: str = "expanded"):
    return lambda latents: target_velocity.Scratch(guidance(latents, conditioning=conditioning), which)


RESUMED = {
    "flow matching": (FM(), {}, lambda latents: target_velocity.Data()),
    "flow matching with dropout": (FM(), {"dropout": 0.3}, lambda latents: target_velocity.Data()),
    "FACM guided by itself, with dropout": (FACM(), {"dropout": 0.3}, scratch("online")),
    "FACM guided by its average, with dropout": (
        FACM(conditioning="auxiliary"),
        {"dropout": 0.3},
        scratch("ema", "auxiliary"),
    ),
    "TRACT by its target network, with dropout": (TRACT(), {"dropout": 0.3}, lambda latents: target_velocity.Data()),
    "consistency distillation to its target network": (CD(target="target"), {}, lambda latents: target_velocity.Data()),
}


@pytest.mark.parametrize("name", RESUMED)
def test_five_steps_a_kill_and_five_steps_are_ten_steps_bit_for_bit(name: str, latents, tmp_path) -> None:
    objective, options, make = RESUMED[name]
    settings = {"distill__steps": 10, "runtime__log_every": 3, "distill__optimizer__schedule": "cosine"}
    settings |= {"distill__label_dropout": 0.2, **options, "velocity": make(latents)}
    whole = loop(job(latents, objective, **settings), tmp_path, "whole")
    for _ in range(10):
        whole.advance()
    torch.manual_seed(11)
    first = loop(job(latents, objective, **settings), tmp_path, "parts")
    for _ in range(5):
        first.advance()
    first.save()
    for _ in range(2):
        first.advance()  # lost: kill -9 comes after step 7
    first.work.close()
    torch.manual_seed(12)
    second = loop(job(latents, objective, seed=9, **settings), tmp_path, "parts")
    assert second.state.step == 5
    for _ in range(5):
        second.advance()
    assert_same(everything(whole), everything(second))
    for run, key in ((whole, "whole"), (second, "parts")):
        run.finish()
        assert (
            len((tmp_path / f"metrics/{key}/plots/metrics/loss_{objective.terms[0]}.tsv").read_text().splitlines())
            == 1 + 4
        )
    assert not (tmp_path / "metrics/parts/metrics.json").exists()


class Signalled:
    """An objective during whose k-th step the process is told to end."""

    def __init__(self, objective: Any, step: int, kind: int):
        self.objective, self.step, self.kind = objective, step, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, F_theta: Any, point: Any) -> Any:
        if point.progress.step == self.step:
            os.kill(os.getpid(), self.kind)
        return self.objective(F_theta, point)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_a_signal_saves_and_ends_and_the_same_command_goes_on(kind: int, latents, tmp_path, capsys) -> None:
    settings = {"distill__steps": 6, "runtime__log_every": 2}
    handler = signal.getsignal(kind)
    expected = train.train(job(latents, **settings), Work("distill", "whole", tmp_path), str(tmp_path / "a"))
    stopped = Work("distill", "k", tmp_path)
    with pytest.raises(SystemExit) as ended:
        train.train(job(latents, Signalled(FM(), 3, kind), **settings), stopped, str(tmp_path / "b"))
    assert ended.value.code == 130 and signal.getsignal(kind) is handler
    assert "distill: stopped by signal at step 3, saved; the same command goes on from there" in capsys.readouterr().out
    stopped.close()
    resumed = train.train(job(latents, seed=5, **settings), Work("distill", "k", tmp_path), str(tmp_path / "b"))
    assert "distill: resumed at step 3 from " in capsys.readouterr().out
    assert_same(dict(expected.weights), dict(resumed.weights))
    assert expected.figures == resumed.figures and expected.figures["steps"] == 6
    assert [path.name for path in expected.snapshots] == [path.name for path in resumed.snapshots]
    for a, b in zip(expected.snapshots, resumed.snapshots, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_saves_come_at_their_interval_and_not_after_the_last_step(latents, tmp_path) -> None:
    run = loop(job(latents, distill__steps=6, runtime__save_every=2), tmp_path)
    saved = []
    for _ in range(6):
        run.advance()
        run.work.flush()
        state = run.work.load()
        saved.append(state["step"] if state else 0)
    assert saved == [0, 2, 2, 4, 4, 4] and run.last_save == 4


# A step that is not finite


class Sick:
    """An objective whose loss or gradient is not finite in some steps."""

    def __init__(self, objective: Any, steps: set[int], how: str = "nan"):
        self.objective, self.steps, self.how = objective, steps, how

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, F_theta: Any, point: Any) -> Any:
        losses = self.objective(F_theta, point)
        if point.progress.step not in self.steps:
            return losses
        if self.how == "gradient":
            return {name: (0 * loss).sqrt() for name, loss in losses.items()}  # 0, with an infinite derivative
        return {name: loss * float(self.how) for name, loss in losses.items()}


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted_and_changes_nothing(how: str, latents, tmp_path) -> None:
    run = loop(job(latents, Sick(FM(), {3}, how), distill__steps=5), tmp_path)
    run.advance()
    run.advance()
    before = everything(run)
    run.advance()
    after = everything(run)
    assert (before.pop("skipped"), after.pop("skipped")) == (0, 1)
    assert_same(before, after)
    run.advance()
    run.advance()
    assert run.state.in_a_row == 0 and [row["step"] for row in run.log.rows] == [1, 2, 4, 5]
    assert run.log.rows[-1]["skipped"] == 1 and all(map(math.isfinite, run.log.rows[-1].values()))
    assert run.finish().figures["skipped"] == 1


def test_a_skipped_step_leaves_the_mean_of_its_interval_finite(latents, tmp_path) -> None:
    run = loop(job(latents, Sick(FM(), {2}), distill__steps=3, runtime__log_every=3), tmp_path)
    for _ in range(3):
        run.advance()
    (row,) = run.log.rows
    assert row["step"] == 3 and row["skipped"] == 1 and math.isfinite(row["loss_fm"])


def test_ten_in_a_row_stop_the_run_with_step_times_gradient_norm_and_last_save(latents, tmp_path) -> None:
    sick = job(latents, Sick(FM(), set(range(4, 99))), distill__steps=99, runtime__save_every=3)
    with pytest.raises(train.Diverged) as diverged:
        train.train(sick, Work("distill", "k", tmp_path), str(tmp_path / "metrics"))
    told = str(diverged.value)
    assert told.startswith(
        "distill: 10 steps in a row without a finite loss and gradient, the last at step 13, t in [0."
    )
    assert re.search(
        r"t in \[0\.\d{4}, 0\.\d{4}\], loss_fm nan, grad_norm nan; last save: step 12 in .*distill-k\. ", told
    )
    assert told.endswith("Lower distill.optimizer.lr in params.yaml, or look at the curves with `dvc plots show`")


def test_nine_in_a_row_do_not(latents, tmp_path) -> None:
    sick = job(latents, Sick(FM(), set(range(2, 11)) | set(range(12, 21))), distill__steps=21)
    figures = train.train(sick, Work("distill", "k", tmp_path), str(tmp_path / "metrics")).figures
    assert figures["skipped"] == 18 and figures["steps"] == 21


def test_the_count_of_steps_in_a_row_survives_a_kill(latents, tmp_path) -> None:
    sick = {"distill__steps": 99, "distill__seed": 0}
    first = loop(job(latents, Sick(FM(), set(range(1, 99))), **sick), tmp_path)
    for _ in range(6):
        first.advance()
    first.save()
    first.work.close()
    second = loop(job(latents, Sick(FM(), set(range(1, 99))), **sick), tmp_path)
    for _ in range(3):
        second.advance()
    with pytest.raises(train.Diverged, match="the last at step 10"):
        second.advance()


def test_a_run_that_diverges_can_be_a_result(latents, tmp_path, capsys) -> None:
    sick = job(latents, Sick(FM(), set(range(4, 99))), distill__steps=99, if_diverged="record")
    healthy = job(latents, FM(), distill__steps=99)
    trained = train.train(sick, Work("distill", "k", tmp_path), str(tmp_path / "metrics"))
    assert "10 steps in a row without a finite loss" in capsys.readouterr().out
    assert trained.figures["stable"] is False and trained.figures["steps"] == 13
    before = loop(healthy, tmp_path, "h")
    for _ in range(3):
        before.advance()
    kept = before.finish()
    assert kept.figures["stable"] is True
    for name, weight in kept.weights.items():
        assert torch.equal(trained.weights[name], weight), "the average of the steps before"


# What an objective may have: phases, groups of rows


class Phased(FM):
    """Flow matching that asks the copy of its phase, and remembers the answers."""

    def phase(self, progress):
        return (progress.step - 1) // 2

    def __call__(self, F_theta, point):
        self.__dict__.setdefault("seen", []).append(F_theta(Query(point.x_t, point.t, point.y, of="phase"))[0])
        return super().__call__(F_theta, point)


def test_queries_of_the_phase_are_answered_by_the_average_at_its_begin_also_after_a_kill(latents, tmp_path) -> None:
    undisturbed, killed = (loop(job(latents, Phased(), distill__steps=6), tmp_path, key) for key in ("a", "b"))
    averages = []
    for step in range(1, 6):
        averages.append({name: w.clone() for name, w in undisturbed.state.averages.ema.weights(0.2).items()})
        batch, objective = drawn(undisturbed, step), undisturbed.job.objective
        undisturbed.advance()
        network_then = network(latents)
        network_then.load_state_dict(averages[(step - 1) // 2 * 2])
        times = undisturbed.training_step.times(batch, Progress(step, 6))
        x_t = flow.interpolate(batch.x0, batch.x1, times["t"])
        torch.testing.assert_close(objective.seen[-1], network_then(x_t, times["t"], batch.y))
        assert not objective.seen[-1].requires_grad
    for _ in range(4):
        killed.advance()
    killed.save()
    killed.work.close()
    resumed = loop(job(latents, Phased(), distill__steps=6), tmp_path, "b")
    resumed.advance()
    assert torch.equal(resumed.job.objective.seen[-1], undisturbed.job.objective.seen[-1])


class Aiming(FM):
    """Flow matching that asks its target network, and remembers the answers."""

    target_decay = 0.75

    def __call__(self, F_theta, point):
        self.__dict__.setdefault("seen", []).append(F_theta(Query(point.x_t, point.t, point.y, of="target"))[0])
        return super().__call__(F_theta, point)


def test_queries_of_the_target_are_answered_by_weights_that_follow_with_its_decay(latents, tmp_path) -> None:
    run = loop(job(latents, Sick(Aiming(), {4}), distill__steps=6, distill__optimizer__lr=0.05), tmp_path)
    expected = {name: w.double() for name, w in run.state.network.state_dict().items()}
    for step in range(1, 7):
        batch, objective = drawn(run, step), run.job.objective.objective
        network_then = network(latents)
        network_then.load_state_dict({name: w.float() for name, w in expected.items()})
        run.advance()
        times = run.training_step.times(batch, Progress(step, 6))
        x_t = flow.interpolate(batch.x0, batch.x1, times["t"])
        torch.testing.assert_close(objective.seen[-1], network_then(x_t, times["t"], batch.y), rtol=1e-4, atol=1e-5)
        assert not objective.seen[-1].requires_grad
        if step != 4:  # a step that was skipped moves nothing
            expected = {name: 0.75 * w + 0.25 * run.state.network.state_dict()[name] for name, w in expected.items()}
    assert run.state.skipped == 1
    name = "final_layer.linear.weight"
    assert not torch.allclose(run.state.averages.target.weights[name], run.state.network.state_dict()[name], rtol=1e-2)


@pytest.mark.parametrize("plan", [Plan(accumulate=2), Plan(lean=True)], ids=["accumulate", "lean"])
def test_a_target_network_is_the_same_in_any_plan(plan: Plan, latents, tmp_path) -> None:
    def trained(key: str, plan: Plan) -> train.Loop:
        run = loop(job(latents, TRACT(segments=(4, 1), grid=16), distill__steps=4, plan=plan), tmp_path, key)
        for _ in range(4):
            run.advance()
        return run

    whole, parts = trained("whole", Plan()), trained("parts", plan)
    assert whole.state.averages.target is not None and parts.state.averages.target is not None
    for name, weight in whole.state.averages.target.weights.items():
        torch.testing.assert_close(parts.state.averages.target.weights[name], weight, rtol=1e-3, atol=1e-4)


def test_no_target_network_is_kept_or_saved_unless_the_objective_states_its_decay(latents, tmp_path) -> None:
    run = loop(job(latents, CD(), distill__steps=4), tmp_path)
    run.advance()
    run.save(wait=True)
    state = run.work.load()
    assert run.state.averages.target is None and state is not None and state["target"] == {}

    class Undecided(Aiming):
        target_decay = None

    with pytest.raises(ValueError, match="Undecided asks a target network, but states no `target_decay`: none is kept"):
        loop(job(latents, Undecided(), distill__steps=4), tmp_path, "undecided").advance()


class Grouped(FM):
    """Flow matching whose rows come in pairs."""

    group = 2

    def __call__(self, F_theta, point):
        assert len(point.t) % 2 == 0
        return super().__call__(F_theta, point)


def test_micro_batches_hold_whole_groups_and_an_odd_batch_is_refused(latents, tmp_path) -> None:
    run = loop(job(latents, Grouped(), distill__batch_size=6, plan=Plan(accumulate=2)), tmp_path)
    run.advance()
    assert run.log.rows[-1]["loss_fm"] > 0
    message = "distill.batch_size: 5 must hold whole groups of 2 (the objective's `group`), at least 1, one for each"
    with pytest.raises(ValueError, match=re.escape(message)):
        loop(job(latents, Grouped(), distill__batch_size=5), tmp_path, "odd")
    with pytest.raises(ValueError, match="at least 4, one for each"):
        loop(job(latents, Grouped(), distill__batch_size=6, plan=Plan(accumulate=4)), tmp_path, "few")


@pytest.mark.parametrize("objective", [FACM(), FACM(conditioning="auxiliary", anchor=0.0)])
def test_the_velocity_error_is_the_distance_at_c_fm_from_the_target(objective, latents, tmp_path) -> None:
    frozen = {"distill__optimizer__lr": KEEP_WEIGHTS, "distill__steps": 9, "runtime__log_every": 30}
    run = loop(job(latents, objective, **frozen), tmp_path)
    seen = [run.advance() or run.state.interval[-1].get("velocity_error") for _ in range(4)]
    assert [value is None for value in seen] == [True, True, False, True]
    batch = drawn(run, 3)
    t = run.training_step.times(batch, Progress(3, 9))["t"]
    c = flow.c_fm(t, objective.conditioning)
    error = run.state.network(flow.interpolate(batch.x0, batch.x1, t), c.t, batch.y, c.r) - (batch.x1 - batch.x0)
    assert seen[2] == pytest.approx(error.square().flatten(1).mean(1).sqrt().mean().item(), rel=1e-5)


# Every network and objective, in every way of training


def distilled(conditioning: str = "expanded", **fields: Any):
    """A teacher of this conditioning as the source."""

    def make(latents: Any, name: str) -> Any:
        teacher = network(latents, name, auxiliary=conditioning == "auxiliary", seed=7)
        return target_velocity.teacher(teacher, guidance(latents, conditioning=conditioning, **fields))

    return make


def by_itself(which: str, conditioning: str = "expanded", **fields: Any):
    """The student's own guidance as the source."""
    return lambda latents, name: target_velocity.Scratch(guidance(latents, conditioning=conditioning, **fields), which)


def of_data(latents: Any, name: str) -> Any:
    return target_velocity.Data()


WAYS = {
    "a plain teacher": (FM(conditioning="plain"), of_data, {}),
    "a mixed teacher, expanded": (FM(), of_data, {"label_dropout": 0.5}),
    "a mixed teacher, auxiliary": (FM(conditioning="auxiliary"), of_data, {}),
    "an expanded teacher of fraction 0": (FM(fraction=0.0), of_data, {}),
    "an auxiliary teacher of fraction 1": (FM(conditioning="auxiliary", fraction=1.0), of_data, {}),
    "continued flow matching as a student": (FM(), distilled(), {}),
    "expanded, teacher asked at t": (FACM(), distilled(), {}),
    "expanded, teacher asked at c_FM": (FACM(), distilled(teacher_condition="fm"), {}),
    "expanded, from a plain teacher": (FACM(), distilled("plain"), {}),
    "expanded, from an auxiliary teacher": (FACM(), distilled("auxiliary", teacher_condition="fm"), {}),
    "auxiliary, from an expanded teacher": (FACM(conditioning="auxiliary"), distilled(), {}),
    "auxiliary, from an auxiliary teacher": (FACM(conditioning="auxiliary"), distilled("auxiliary"), {}),
    "expanded, from scratch": (FACM(), by_itself("online"), {"label_dropout": 0.5}),
    "expanded, from scratch by the average": (FACM(), by_itself("ema"), {"label_dropout": 0.5}),
    "auxiliary, from scratch": (FACM(conditioning="auxiliary"), by_itself("online", "auxiliary"), {}),
    "auxiliary, from scratch by the average": (FACM(conditioning="auxiliary"), by_itself("ema", "auxiliary"), {}),
    "from scratch, the code's form": (FACM(), by_itself("online", scratch_form="code", scratch_condition="t"), {}),
    "flow matching from scratch with guidance": (FM(), by_itself("online"), {}),
    "without classes, distilled": (FACM(), distilled(), {"classes": 0}),
    "without classes, auxiliary": (FACM(conditioning="auxiliary"), distilled("auxiliary"), {"classes": 0}),
    "without classes, from scratch": (FACM(), by_itself("online"), {"classes": 0}),
    "without classes, a teacher": (FM(), of_data, {"classes": 0}),
    "with dropout, distilled": (FACM(), distilled(), {"dropout": 0.5}),
    "with dropout, from scratch by the average": (FACM(), by_itself("ema"), {"dropout": 0.5}),
    "without the anchor": (FACM(anchor=0.0), distilled(), {}),
    "by torch.func.jvp": (FACM(), distilled(), {"derivative": "func"}),
    "times from a logit-normal": (FACM(), distilled(), {"time": "logit_normal"}),
    "times from a uniform": (FACM(alpha="cos", beta="power"), distilled(), {"time": "uniform"}),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """What each backbone can be trained on, with classes and without."""
    pictures = {classes: write_latents(tmp_path_factory.mktemp(f"c{classes}"), classes=classes) for classes in (0, 3)}
    return {(name, c): Points(c) if name == "mlp" else pictures[c] for name in backbones.BACKBONES for c in (0, 3)}


@pytest.mark.parametrize("backbone", backbones.BACKBONES)
@pytest.mark.parametrize("way", WAYS)
def test_two_steps_train_every_network_in_every_way(way: str, backbone: str, sets, tmp_path) -> None:
    objective, make, options = WAYS[way]
    data, dropout = sets[backbone, options.get("classes", 3)], options.get("dropout", 0.0)
    p = parsed(
        distill__steps=2,
        distill__dropout=dropout,
        distill__time__sampler=options.get("time", "arctan_lognormal"),
        distill__label_dropout=options.get("label_dropout", 0.0),
        runtime__log_every=2,
    )
    built = network(data, backbone, auxiliary=objective.conditioning == "auxiliary", dropout=dropout)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    asked = train.Job(
        "distill",
        built,
        objective,
        data,
        p.distill,
        make(data, backbone),
        p.runtime,
        derivative=options.get("derivative", "dual"),
    )
    run = loop(asked, tmp_path)
    state = torch.get_rng_state()
    run.advance()
    run.advance()
    assert torch.equal(torch.get_rng_state(), state), "a step draws nothing from the global generator"
    (row,) = run.log.rows
    assert row["skipped"] == 0 and {f"loss_{name}" for name in objective.terms} <= row.keys()
    assert all(map(math.isfinite, row.values())) and row["grad_norm"] > 0
    parameters = dict(built.named_parameters())
    assert [name for name in parameters if torch.equal(before[name], parameters[name])] == []
    assert all(value.isfinite().all() for value in run.finish().weights.values())


# One step


def test_all_passes_of_a_step_share_their_dropout_masks_and_draw_nothing_from_the_global_generator(latents, tmp_path):
    handed: list[Any] = []

    def spy(x, t, y, *, u, online, ema):
        handed[:] = [online, ema]
        return u

    run = loop(job(latents, FACM(), dropout=0.5, velocity=spy, distill__optimizer__lr=KEEP_WEIGHTS), tmp_path)
    state = torch.get_rng_state()
    run.advance()
    batch = drawn(run, 1)
    question = (batch.x0, torch.full((4,), 0.3), batch.y)
    run.training_step.student.begin(batch.keys)
    (answer,) = run.training_step.student(Query(*question))
    for network_of_source in handed:
        assert torch.equal(network_of_source(*question), answer)  # the average of unmoved weights is those weights
        assert not network_of_source(*question).requires_grad
    twice = [torch.cat([part, part]) for part in question]
    assert torch.equal(handed[0](*twice), torch.cat([answer, answer])), "[cond; uncond] of one sample share a mask"
    assert not torch.equal(run.state.network(*question), answer), "without keys nothing is dropped"
    run.advance()
    assert not torch.equal(handed[0](*question), answer), "another step has other masks"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_averaged_network_that_a_source_is_handed_has_the_averaged_weights(latents, tmp_path) -> None:
    handed: list[Any] = []

    def spy(x, t, y, *, u, online, ema):
        handed[:] = [online, ema]
        return u

    run = loop(job(latents, FACM(), velocity=spy, distill__optimizer__lr=0.1), tmp_path)
    for _ in range(3):
        run.advance()
    batch = drawn(run, 3)
    question = (batch.x0, torch.full((4,), 0.3), batch.y)
    average = network(latents)
    average.load_state_dict(run.finish().weights)
    with torch.no_grad():
        torch.testing.assert_close(handed[1](*question), average(*question))
        torch.testing.assert_close(handed[0](*question), run.state.network(*question))
    assert not torch.allclose(handed[0](*question), handed[1](*question), rtol=1e-2)


def test_the_source_from_scratch_asks_the_student_and_its_average_with_the_masks_of_the_step(latents) -> None:
    u, t, y = torch.zeros(4, 1, 4, 4), torch.full((4,), 0.5), torch.tensor([0, 1, 2, 0])
    for which in ("online", "ema"):
        asked: list[str] = []

        def F(name: str, asked: list[str] = asked):
            return lambda x, t, y, r=None: asked.append(name) or (x + y.view(-1, 1, 1, 1))

        v = target_velocity.Scratch(guidance(latents), which)(u, t, y, u=u, online=F("online"), ema=F("ema"))
        assert asked == [which]
        torch.testing.assert_close(v, 2.0 * (y - 3.0).view(-1, 1, 1, 1).expand_as(u))


def test_the_optimizer_takes_the_rate_of_the_schedule(latents, tmp_path) -> None:
    """A cosine over two steps ends at zero, where nothing moves."""
    run = loop(job(latents, distill__steps=2, distill__optimizer__schedule="cosine"), tmp_path)
    weights = [{name: value.clone() for name, value in run.state.network.state_dict().items()}]
    for _ in range(2):
        run.advance()
        weights.append({name: value.clone() for name, value in run.state.network.state_dict().items()})
    assert [row["lr"] for row in run.log.rows] == pytest.approx([0.005, 0.0])
    name = "final_layer.linear.weight"
    assert (weights[1][name] - weights[0][name]).abs().max() == pytest.approx(0.005, rel=1e-2)  # Adam's first step
    assert_same(weights[1], weights[2])


def test_gradients_are_clipped_before_the_step(latents, tmp_path) -> None:
    run = loop(job(latents, distill__optimizer__clip=1e-3), tmp_path)
    run.advance()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in run.state.parameters))
    assert norm == pytest.approx(1e-3, rel=1e-3) and run.log.rows[0]["grad_norm"] > 1e-3


def test_a_module_of_the_objective_is_trained_saved_and_restored_too(latents, tmp_path) -> None:
    class Weighted:
        """An objective with a trained weight of its own, as sCM's."""

        def __init__(self) -> None:
            self.objective, self.module = FM(), nn.Linear(1, 1)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.objective, name)

        def __call__(self, F_theta: Any, point: Any) -> Any:
            w = self.module(point.t[:, None])[:, 0]
            return {name: loss * w.exp() - w for name, loss in self.objective(F_theta, point).items()}

    first = loop(job(latents, Weighted(), distill__steps=8), tmp_path)
    before = first.job.objective.module.weight.clone()
    first.advance()
    assert not torch.equal(first.job.objective.module.weight, before)
    first.save()
    first.work.close()
    second = loop(job(latents, Weighted(), distill__steps=8), tmp_path)
    assert torch.equal(second.job.objective.module.weight, first.job.objective.module.weight)


def test_the_averages_are_those_of_the_ema_module(latents, tmp_path) -> None:
    run = loop(job(latents, distill__steps=4), tmp_path)
    expected = ema.PowerEMA(run.state.network.state_dict(), (0.05, 0.2))
    for step in range(1, 5):
        run.advance()
        expected.update(run.state.network.state_dict(), step)
    for sigma_rel in (0.05, 0.2):
        assert_same(run.state.averages.ema.weights(sigma_rel), expected.weights(sigma_rel))
    assert_same(run.finish().weights, expected.weights(0.2))


# Snapshots


@pytest.mark.parametrize(
    ("steps", "num", "expected"),
    [(10, 3, {3, 7, 10}), (8, 8, set(range(1, 9))), (3, 8, {1, 2, 3}), (800, 4, {200, 400, 600, 800}), (1, 1, {1})],
)
def test_snapshots_are_spread_evenly_with_one_at_the_end(steps: int, num: int, expected: set[int]) -> None:
    found = train.snapshot_steps(steps, num)
    assert found | {0} == expected | {0} and 0 not in found and max(found) == steps


def test_snapshots_are_written_at_their_steps_and_synthesis_gives_stored_ones_back(latents, tmp_path) -> None:
    settings = {"distill__steps": 9, "distill__ema__snapshots": 3, "distill__optimizer__lr": 0.05}
    run = loop(job(latents, **settings), tmp_path)
    stored = {}
    for step in range(1, 10):
        run.advance()
        if step in (3, 6, 9):
            stored |= {
                (step, s): {k: v.clone() for k, v in run.state.averages.ema.weights(s).items()} for s in (0.05, 0.2)
            }
    trained = run.finish()
    assert [path.name for path in trained.snapshots] == [checkpoint.snapshot_name(*key) for key in sorted(stored)]
    for path, key in zip(trained.snapshots, sorted(stored), strict=True):
        assert_same(checkpoint.read_weights(path), stored[key])
    config = checkpoint.describe(
        "student", latents, ("lightningdit", NETWORK), FM(), run.job.settings, plain(), ("none", {})
    )
    checkpoint.save(tmp_path / "student", trained.weights, config, trained.snapshots)
    for sigma_rel in (0.05, 0.2):
        found = checkpoint.synthesize(tmp_path / "student", sigma_rel)
        for name, value in stored[9, sigma_rel].items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    between = checkpoint.synthesize(tmp_path / "student", 0.1)["final_layer.linear.weight"]
    ends = [stored[9, s]["final_layer.linear.weight"] for s in (0.05, 0.2)]
    assert not any(torch.allclose(between, end, atol=1e-4) for end in ends)


def test_the_stage_objectives_are_built_from_params_alone() -> None:
    assert check.build_objective(parsed()) == FACM()
    fm = parsed(distill__objective="fm", sample__sampler="euler", distill__conditioning="auxiliary")
    assert check.build_objective(fm) == FM(conditioning="auxiliary")
    assert dist.world_size() == 1


# A tool


def test_consistency_distillation_by_lpips_trains_through_the_tool_and_without_it_is_refused(latents, tmp_path) -> None:
    torch.manual_seed(0)
    distance = Distance(LPIPS(((4, 1), (4, 1))), torch.tensor([0.1]), torch.tensor([0.5]))
    objective = CD(distance="lpips", target="target", solver="euler")
    run = loop(job(latents, objective, distill__steps=2, tools={"lpips": distance}), tmp_path)
    before = {name: weight.clone() for name, weight in run.state.network.state_dict().items()}
    run.advance()
    run.advance()
    assert 0 < run.log.rows[-1]["loss_cd"] < 10 and run.log.rows[-1]["grad_norm"] > 0 and run.state.skipped == 0
    name = "final_layer.linear.weight"
    assert not torch.equal(run.state.network.state_dict()[name], before[name])
    with pytest.raises(ValueError, match="CD asks for the tools lpips: none were given"):
        loop(job(latents, objective, distill__steps=2), tmp_path, "without")
