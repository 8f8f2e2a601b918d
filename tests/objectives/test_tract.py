"""TRACT: phases, the chain of jumps in a segment, closed forms on a Gaussian, then a hand evaluation."""

import pytest
import torch
from oracle import Gaussian

from facm.flow import path
from facm.flow.interface import Point, Progress
from facm.flow.time import TimeSampler
from facm.objectives.tract import TRACT

LAW = Gaussian()
FIRST, LAST = Progress(1, 10), Progress(10, 10)


def tensors(num: int, *shape: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)


def every_time(tract: TRACT, progress: Progress) -> dict[str, torch.Tensor]:
    """The times of all cells of the phase's grid, one sample each."""
    steps = (tract.grid, *tract.segments)[tract.phase(progress)]
    levels = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    return tract.times(torch.special.ndtri(levels)[:, None], TimeSampler(), progress)


def point_at(times, progress, velocity=None, y=None, seen=None) -> Point:
    """Points at given times; `seen` collects what is watched."""
    x0, x1 = tensors(2, len(times["t"]), 3)
    return Point(
        x0=x0,
        x1=x1,
        x_t=path.interpolate(x0, x1, times["t"]),
        y=y,
        times=times,
        velocity=velocity or (lambda x, t, y: x1 - x0),
        progress=progress,
        watch=(lambda name, values: seen.update({name: values})) if seen is not None else lambda name, values: None,
    )


def student(**networks):
    """F_theta whose weights, by name, are functions of (x, t, r); answers carry a graph where they may.

    The target network has the student's weights unless it is named.
    """
    networks = {"target": networks["student"]} | networks

    def F_theta(*queries):
        answers = [networks[query.of](query.x, query.t, query.r) for query in queries]
        return tuple(F if q.grad and q.of == "student" else F.detach() for F, q in zip(answers, queries, strict=True))

    return F_theta


def to_segment_end(segments: int):
    """The exact average velocity to the end of the segment in which t lies."""

    def F(x, t, r):
        e = (torch.floor(t * segments) + 1) / segments
        e = torch.where(t == 1, 2.0, e)  # nothing is asked there that counts
        return (LAW.flow_map(x, t, e) - x) / path.expand(e - t, x)

    return F


@pytest.mark.parametrize(("steps", "share"), [(10, [5, 5]), (7, [4, 3]), (2, [1, 1])])
def test_phases_take_equal_shares_of_the_training(steps, share):
    tract = TRACT()
    phases = [tract.phase(Progress(step, steps)) for step in range(1, steps + 1)]
    assert [phases.count(0), phases.count(1)] == share
    assert phases == sorted(phases)


def test_all_phases_are_begun_in_order_and_the_last_is_not_overrun():
    tract = TRACT(grid=64, segments=(16, 4, 1))
    assert [tract.phase(Progress(step, 9)) for step in range(1, 10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("progress", "steps", "segments"), [(FIRST, 12, 4), (LAST, 4, 1)])
def test_t_lies_on_the_grid_of_the_phases_teacher_and_e_ends_its_segment(progress, steps, segments):
    times = every_time(TRACT(grid=12, segments=(4, 1)), progress)
    index = torch.arange(steps, dtype=torch.float64)
    torch.testing.assert_close(times["t"], index / steps, rtol=0, atol=0)
    torch.testing.assert_close(times["s"], (index + 1) / steps, rtol=0, atol=0)
    per = steps // segments
    want = torch.tensor([(i // per + 1) / segments for i in range(steps)], dtype=torch.float64)
    torch.testing.assert_close(times["e"], want, rtol=0, atol=0)
    assert (times["s"] <= times["e"]).all()
    assert (times["s"] == times["e"]).sum() == segments  # exactly: the loss compares them


@pytest.mark.parametrize("grid", [8, 40, 1000])
def test_a_step_ends_a_segment_exactly_in_single_precision_whatever_the_grid(grid):
    tract = TRACT(grid=grid, segments=(grid // 4, 1))
    levels = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    times = tract.times(torch.special.ndtri(levels)[:, None].float(), TimeSampler(), FIRST)
    assert (times["s"] == times["e"]).sum() == grid // 4
    assert times["e"].max() == 1


def test_extreme_normals_stay_on_the_grid():
    times = TRACT(grid=8, segments=(2, 1)).times(torch.tensor([[-40.0], [40.0]]), TimeSampler(), FIRST)
    assert times["t"].tolist() == [0, 0.875]
    assert times["e"].tolist() == [0.5, 1]


@pytest.mark.parametrize("conditioning", ["expanded", "auxiliary"])
@pytest.mark.parametrize("progress", [FIRST, Progress(5, 10), LAST])
def test_exact_jumps_to_the_segments_ends_have_no_loss_and_no_residual(conditioning, progress):
    tract = TRACT(conditioning=conditioning, grid=48, segments=(12, 4, 1))
    phase, seen = tract.phase(progress), {}
    times = every_time(tract, progress)
    steps, segments = (48, 12, 4, 1)[phase : phase + 2]

    def velocity(x, t, y):  # of the first phase's teacher: what makes its Euler step exact
        return (LAW.flow_map(x, t, t + 1 / 48) - x) * 48

    F_theta = student(student=to_segment_end(segments), phase=to_segment_end(steps))
    losses = tract(F_theta, point_at(times, progress, velocity, seen=seen))
    assert losses["tract"].abs().max() < 1e-20
    assert seen["g"].max() < 1e-10


def test_with_the_velocity_as_teacher_the_target_is_missed_by_the_square_of_the_step():
    misses = []
    for grid in (16, 32, 64):
        tract = TRACT(grid=grid, segments=(1,))
        times = {name: values[:: grid // 16] for name, values in every_time(tract, FIRST).items()}  # the same t
        point = point_at(times, FIRST, lambda x, t, y: LAW.velocity(x, t))
        misses.append(tract(student(student=lambda x, t, r: LAW.average_velocity(x, t)), point)["tract"].sqrt())
    for finer, coarser in zip(misses[1:], misses[:-1], strict=True):
        ratio = (coarser / finer)[:12]
        assert (ratio > 3.5).all()
        assert (ratio < 4.7).all()


def test_from_scratch_the_first_phases_step_is_interpolation():
    asked = []

    def F_theta(*queries):
        asked.append(queries)
        return tuple(torch.zeros_like(query.x) for query in queries)

    tract = TRACT(grid=8, segments=(2, 1))
    point = point_at(every_time(tract, FIRST), FIRST)
    tract(F_theta, point)
    ((query, self_query),) = asked
    torch.testing.assert_close(self_query.x, path.interpolate(point.x0, point.x1, point.times["s"]))
    torch.testing.assert_close(self_query.t, point.times["s"])
    assert query.x is point.x_t
    assert query.grad
    assert not self_query.grad


@pytest.mark.parametrize(("self_teacher", "of"), [("online", "student"), ("ema", "ema"), ("target", "target")])
def test_later_phases_ask_the_student_of_the_phase_before_and_the_self_teacher_that_is_named(self_teacher, of):
    asked = []

    def F_theta(*queries):
        asked.append([(query.of, query.grad) for query in queries])
        return tuple(torch.zeros_like(query.x) for query in queries)

    tract = TRACT(grid=8, segments=(2, 1), self_teacher=self_teacher)
    for progress in (FIRST, LAST):
        tract(F_theta, point_at(every_time(tract, progress), progress))
    first = [("student", True), (of, False)]
    assert asked == [first, [("phase", False)], first]
    assert tract.target_decay == (0.5 if self_teacher == "target" else None), "the published momentum"


@pytest.mark.parametrize("conditioning", ["expanded", "auxiliary"])
def test_every_query_is_at_c_cm(conditioning):
    asked = []

    def F_theta(*queries):
        asked.extend(queries)
        return tuple(torch.zeros_like(query.x) for query in queries)

    tract, y = TRACT(conditioning=conditioning, grid=8, segments=(2, 1)), torch.tensor([3, 1])
    times = every_time(tract, LAST)
    tract(F_theta, point_at(times, LAST, y=y))
    for query, t in zip(asked, (times["t"], times["t"], times["s"]), strict=True):
        want = path.c_cm(t, conditioning)
        assert torch.equal(query.t, want.t)
        assert query.r is want.r is None or torch.equal(query.r, want.r)
        assert query.y is y


@pytest.mark.parametrize("progress", [FIRST, LAST])
def test_the_loss_is_the_regression_of_x1_with_the_weight_max_1_snr_of_the_published_formula(progress):
    tract, seen = TRACT(grid=12, segments=(4, 1)), {}
    times = every_time(tract, progress)
    t, s, e = (times[name][:, None] for name in ("t", "s", "e"))
    point = point_at(times, progress, seen=seen)

    def F(x, t, r):
        return torch.sin(x + t[:, None])

    def F_teacher(x, t, r):
        return torch.cos(2 * x - t[:, None])

    def ddim(x, x1_hat, t, s):
        return s * x1_hat + (1 - s) / (1 - t) * (x - t * x1_hat)

    got = tract(student(student=F, phase=F_teacher), point)["tract"]
    v = F_teacher(point.x_t, times["t"], None) if progress is LAST else point.x1 - point.x0
    x_s = ddim(point.x_t, point.x_t + (1 - t) * v, t, s)
    later = (s < 1)[:, 0]  # at s = 1 the formula divides by 0, and x_s is the end
    x_e = x_s.clone()
    F_s = F(x_s, times["s"], None)
    x_e[later] = ddim(x_s, x_s + (1 - s) * F_s, s, e)[later]
    x_e = torch.where(s == e, x_s, x_e)
    x1_tar = (x_e * (1 - t) - point.x_t * (1 - e)) / (e * (1 - t) - t * (1 - e))
    x1_hat = path.endpoint(point.x_t, times["t"], F(point.x_t, times["t"], None))
    snr = (t / (1 - t)).square()
    want = snr.clamp(min=1) * (x1_hat - x1_tar).square()
    torch.testing.assert_close(got, want.mean(1))
    F_t = F(point.x_t, times["t"], None)
    g = (point.x_t + (e - t) * F_t - x_e) / (s - t)
    torch.testing.assert_close(seen["g"], g.square().mean(1).sqrt())
    tangent = torch.where(s == e, 0.0, (F_s - F_t) / (s - t))
    torch.testing.assert_close(seen["tangent"], tangent.square().mean(1).sqrt())


def test_a_gradient_reaches_the_students_answer_at_t_only():
    tract, weights = TRACT(grid=8, segments=(4, 1)), torch.ones(3, dtype=torch.float64, requires_grad=True)
    times, answers = every_time(tract, LAST), []

    def F_theta(*queries):
        given = [(weights * torch.sin(query.x + query.t[:, None])).clone() for query in queries]
        answers.extend(given)
        for answer in given:
            answer.retain_grad()
        return tuple(given)

    tract(F_theta, point_at(times, LAST))["tract"].sum().backward()
    teacher, F, F_s = answers
    assert F.grad.abs().min() > 0
    assert teacher.grad is None or not teacher.grad.any()
    assert F_s.grad is None or not F_s.grad.any()


def test_everything_is_finite_in_single_precision_up_to_the_last_step_of_a_fine_grid():
    tract, seen = TRACT(), {}
    for progress in (FIRST, LAST):
        times = {name: values.float() for name, values in every_time(tract, progress).items()}
        point = point_at(times, progress, seen=seen)
        F = student(student=lambda x, t, r: torch.sin(9 * x), phase=lambda x, t, r: x)
        loss = tract(F, point)["tract"]
        assert torch.isfinite(loss).all()
        assert torch.isfinite(seen["g"]).all()
        assert torch.isfinite(seen["tangent"]).all()
        assert loss.max() < 100


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"segments": (32, 2)}, r"objectives.tract.segments: \[32, 2\] must end in 1, the map to the data"),
        ({"segments": [32, 5, 1]}, r"segments: 5 must divide 32 and be smaller, .* objectives.tract.grid \(1024\)"),
        ({"segments": (1, 1)}, r"segments: 1 must divide 1 and be smaller"),
        ({"grid": 48}, r"segments: 32 must divide 48"),
        ({"grid": 32}, r"segments: 32 must divide 32 and be smaller"),
        ({"segments": ()}, r"segments: must be a list with at least one entry, got \(\)"),
        ({"segments": 32}, r"segments: must be a list with at least one entry, got 32"),
        ({"segments": (2.0, 1)}, r"segments\[0\]: must be a whole number, got 2.0 \(write 2\)"),
        ({"segments": ("32", 1)}, r"segments\[0\]: must be a whole number, got '32'"),
        ({"grid": 0}, r"objectives.tract.grid: 0 is outside \[1, inf\)"),
        ({"self_teacher": "emma"}, r"objectives.tract.self_teacher: 'emma' is not one of target, online, ema"),
        ({"decay": 1.0}, r"objectives.tract.decay: 1.0 is outside \[0, 0.9999\]"),
        ({"conditioning": "auxilary"}, r"distill.conditioning: 'auxilary' is not one of plain, expanded, auxiliary"),
    ],
)
def test_wrong_constants_are_refused_with_value_rule_and_key(constants, message):
    with pytest.raises(ValueError, match=message):
        TRACT(**constants)
