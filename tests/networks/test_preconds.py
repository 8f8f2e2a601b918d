"""Preconditionings: the published formulas, what the network is told, tangents, training, checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import SHALLOW, UNET, Points, parsed, plain, randomised, write_checkpoint, write_latents, write_params
from torch import Tensor, nn

import facm
from facm import check
from facm.flow.derivative import METHODS, total_derivative
from facm.flow.guidance import Guidance
from facm.flow.interface import Query
from facm.networks import backbones, checkpoint, preconds
from facm.networks.checkpoint import CheckpointError
from facm.networks.preconds import ddpm, simple_edm
from facm.objectives.facm import FACM
from facm.runtime.resume import Work
from facm.training import loop as train
from facm.training import target_velocity
from facm.training.passes import Plan, prepare

NAMES = [name for name in preconds.PRECONDS if name != "none"]
UNIT = {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
UNITS = {"mean": [0.25, -0.5], "std": [0.5, 0.5]}
CM = torch.tensor([0.0, 0.05, 0.3, 0.62, 0.9, 0.985, 1.0], dtype=torch.float64)


class G(nn.Module):
    """A network that notes what it is asked; channels beyond x's are a learned sigma."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.extra, self.asked = extra, list[tuple[Any, ...]]()

    def forward(self, x: Any, c: Any, y: Any = None, r: Any = None, key: Any = None) -> Any:
        self.asked.append((x, c, y, r, key))
        answer = torch.sin(1.3 * x) + (torch.cos(c / 3) + (0 if r is None else r))[:, None]
        return torch.cat([answer, answer + 9], 1) if self.extra else answer


def wrapped(name: str, model: nn.Module | None = None, units: Any = UNIT, **constants: Any) -> Any:
    return preconds.build(name, constants, G() if model is None else model, **units)


def points(rows: int = len(CM), seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, bound: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


# simple_edm


def test_simple_edm_is_the_head_whose_jump_is_the_published_one() -> None:
    network, x, t = wrapped("simple_edm"), points(), CM[:, None]
    F, S = network(x, CM), t**2 + (1 - t) ** 2
    answer = G()(x / S.sqrt(), CM)
    close(x + (1 - t) * F, t / S * x - (1 - t) / S.sqrt() * answer)
    close(F, (2 * t - 1) / S * x - answer / S.sqrt())
    for s in (0.2, 0.7):  # any other jump along the flow, IMM's
        jump = (s * t + (1 - s) * (1 - t)) / S * x - (s * (1 - t) - t * (1 - s)) / S.sqrt() * answer
        close(x + (s - t) * F, jump)


@pytest.mark.parametrize("sd", [1.0, 0.5])
def test_simple_edm_is_trigflow(sd: float) -> None:
    network, x, t = wrapped("simple_edm", sigma_data=sd), points(), CM[:, None]
    phi = torch.atan2(1 - t, sd * t)
    turned = sd * x / (sd**2 * t**2 + (1 - t) ** 2).sqrt()
    f = phi.cos() * turned - phi.sin() * sd * G()(turned / sd, CM)
    close(x + (1 - t) * network(x, CM), f)


def test_simple_edm_is_imms_whose_noise_is_as_small_as_its_data() -> None:
    x, t, sd = points(), CM[:, None], 0.5
    S = t**2 + (1 - t) ** 2
    theirs = (2 * t - 1) / S * (sd * x) - sd / S.sqrt() * G()(sd * x / (sd * S.sqrt()), CM)
    close(sd * wrapped("simple_edm")(x, CM), theirs)


@pytest.mark.parametrize("sd", [1.0, 0.7])
def test_simple_edm_leaves_its_network_inputs_and_targets_of_variance_one(sd: float) -> None:
    c_skip, c_out, c_in = simple_edm.coefficients(CM, sd)
    variance, covariance = sd**2 * CM**2 + (1 - CM) ** 2, sd**2 * CM - (1 - CM)
    close(c_in**2 * variance, torch.ones_like(CM))
    close(c_skip, covariance / variance)  # so that what remains is not correlated with x_t
    close(c_out**2, sd**2 + 1 - covariance**2 / variance)


# edm


def denoised(x: Tensor, sigma: Tensor, sd: float = 0.5) -> Tensor:
    """EDMPrecond with G."""
    total = sigma**2 + sd**2
    answer = G()(x / total.sqrt(), sigma[:, 0].log() / 4)
    return sd**2 / total * x + sigma * sd / total.sqrt() * answer


@pytest.mark.parametrize(("units", "scale"), [(UNIT, 1.0), (UNITS, 1.0), (UNITS, 3.0)])
def test_edm_is_the_velocity_of_the_published_denoiser(units: Any, scale: float) -> None:
    inside = CM[1:-1]
    x, t = points(len(inside)), inside[:, None]
    a, b = scale * torch.tensor(units["mean"], dtype=torch.float64), scale * units["std"][0]
    x1 = (denoised(a + b * x / t, b * (1 - t) / t) - a) / b
    close(wrapped("edm", units=units, scale=scale)(x, inside), (x1 - x) / (1 - t), 1e-10)


def test_edm_of_an_exact_denoiser_is_the_exact_velocity_of_a_gaussian() -> None:
    """Data N(m, s^2) in our units; v = m + (t s^2 - (1 - t)) / S (x - t m)."""
    a, b, sd, m, s = 0.25, 0.5, 0.5, 0.6, 0.8

    class Exact(nn.Module):
        def forward(self, x: Any, c_noise: Any, y: Any = None, r: Any = None, key: Any = None) -> Any:
            sigma = (4 * c_noise).exp()[:, None]
            x = x * (sigma**2 + sd**2).sqrt()
            mean, variance = a + b * m, (b * s) ** 2
            D = (variance * x + sigma**2 * mean) / (variance + sigma**2)
            total = sigma**2 + sd**2
            return (D - sd**2 / total * x) * total.sqrt() / (sigma * sd)

    t = CM[1:-1, None]
    x = points(len(t))
    v = m + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * m)
    close(wrapped("edm", Exact(), {"mean": [a, a], "std": [b, b]})(x, CM[1:-1]), v, 1e-9)


def test_edm_tells_a_clamped_log_sigma_and_its_mirror_image() -> None:
    network, b = wrapped("edm", units=UNITS), 0.5
    sigma = (b * (1 - CM) / CM).clamp(0.002, 80)
    close(network.c_noise(CM), sigma.log() / 4)
    close(network.c_noise(2 - CM), 2 * math.log(0.002) / 4 - sigma.log() / 4)
    around = torch.tensor([1 - 1e-9, 1.0, 1 + 1e-9], dtype=torch.float64)
    close(network.c_noise(around), torch.full_like(around, math.log(0.002) / 4))
    assert network(points(), CM).isfinite().all() and network(points(), 2 - CM).isfinite().all()


# ddpm


def schedule() -> Tensor:
    """abar_k of DiT."""
    return torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)


@pytest.mark.parametrize(("units", "scale"), [(UNIT, 1.0), (UNITS, 1.0), (UNITS, 3.0)])
def test_ddpm_is_the_velocity_of_the_published_noise_prediction(units: Any, scale: float) -> None:
    k = torch.tensor([0, 1, 250, 700, 998, 999])
    alpha, sigma = schedule()[k].sqrt()[:, None], (1 - schedule()[k]).sqrt()[:, None]
    a, b = scale * torch.tensor(units["mean"], dtype=torch.float64), scale * units["std"][0]
    t = b * alpha / (b * alpha + sigma)  # where noise / data is sigma / (alpha b)
    x = points(len(k))
    x_k = (a + b * x / t) * alpha  # alpha (a + b x1) + sigma x0
    eps = G()(x_k, k.double())
    v = ((x_k - sigma * eps) / alpha - a) / b - eps
    network = wrapped("ddpm", G(extra=True), units, scale=scale)
    close(network(x, t[:, 0]), v, 1e-8)
    close(network.model.asked[0][1], k.double(), 1e-7)
    close(network.model.asked[0][0], x_k)
    if scale == 1.0 and units is UNIT:
        close(t, alpha / (alpha + sigma))
        close(v, (x - eps) / t, 1e-10)


def test_the_table_of_ddpm_is_dits_and_is_clamped_at_its_ends() -> None:
    times, network = ddpm.table(1e-4, 2e-2, 1000), wrapped("ddpm")
    assert times[0].item() == pytest.approx(0.9901, abs=5e-5) and times[-1].item() == pytest.approx(0.00631, abs=5e-6)
    middle = (times[300] + times[301]) / 2
    asked = torch.stack([torch.zeros(()).double(), times[-1], middle, times[0], torch.ones(()).double()])
    close(network.c_noise(asked), torch.tensor([999, 999, 300.5, 0, 0]).double(), 1e-7)
    close(network.c_noise(2 - asked), -torch.tensor([999, 999, 300.5, 0, 0]).double(), 1e-7)
    x = points(2)
    low = times[-1].expand(2)
    close(network(x, torch.zeros_like(low)), network(x, low), 1e-7)  # pure noise is taken for the noisiest step
    assert network(points(), CM).isfinite().all()


# All of them


@pytest.mark.parametrize("name", NAMES)
def test_the_condition_alone_tells_the_formats_apart(name: str) -> None:
    network, x, (y, r, key) = wrapped(name, units=UNITS), points(), (torch.ones(7), torch.rand(7), torch.arange(7))
    cm, fm = (network(x, t, y, r, key) for t in (CM, 2 - CM))
    asked = network.model.asked
    close(asked[0][0], asked[1][0])
    for given, *seen in zip((y, r, key), asked[0][2:], asked[1][2:], strict=True):
        assert seen[0] is given and seen[1] is given
    apart = (asked[0][1] - asked[1][1]).abs()
    assert (apart[:4] > 0.05).all() and apart[-1] < 1e-12
    close(cm[-1], fm[-1])
    order = torch.cat([asked[0][1], asked[1][1].flip(0)]).diff()
    assert (order >= 0).all() or (order <= 0).all(), "from noise to data in one format, and back in the other"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fm", [False, True], ids=["cm", "fm"])
@pytest.mark.parametrize("name", NAMES)
def test_the_tangent_is_the_limit_of_differences_on_both_sides(name: str, fm: bool, method: str) -> None:
    times = ddpm.table(1e-4, 2e-2, 1000)
    t = (times[[900, 500, 100]] + times[[901, 501, 101]]) / 2  # between two entries
    t = 2 - t if fm else t
    network, x, v, h = wrapped(name, units=UNIT), points(3), points(3, seed=1), 1e-7
    r, dt = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    tangent = total_derivative(network, x, t, None, r, dx=v, dt=dt, dr=dt / 2, method=method)[1]
    ends = [network(x + s * v, t + s * dt, None, r + s * dt / 2) for s in (h, -h)]
    difference = (ends[0] - ends[1]) / (2 * h)
    assert ((tangent - difference).norm() / difference.norm()).item() < 1e-6
    without = total_derivative(network, x, t, None, r, dx=v, dt=0.0, method=method)[1]
    assert (without - tangent).norm() > 1e-2


def test_at_the_data_end_the_tangent_is_that_of_the_cm_format() -> None:
    network, x, v = wrapped("simple_edm"), points(2), points(2, seed=1)
    end, before = (torch.full((2,), t, dtype=torch.float64) for t in (1.0, 1 - 1e-9))
    close(*(total_derivative(network, x, t, None, dx=v, dt=1.0)[1] for t in (end, before)), 1e-6)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_tangent_goes_through_a_whole_network(name: str, auxiliary: bool) -> None:
    unet = backbones.build("ddpmpp", UNET, shape=(2, 4, 4), num_classes=3, auxiliary=auxiliary)
    network = wrapped(name, randomised(unet), UNITS).double()
    x, v = points(3 * 16).reshape(3, 2, 4, 4), points(3 * 16, seed=1).reshape(3, 2, 4, 4)
    t, y = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64), torch.arange(3)
    r = torch.ones_like(t) if auxiliary else None
    dual, func = (total_derivative(network, x, t, y, r, dx=v, dt=1.0, method=method) for method in METHODS)
    close(dual[0], func[0])
    close(dual[1], func[1], 1e-8)
    assert dual[0].requires_grad and not dual[1].requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_its_blocks_are_found_and_its_weights_bear_edms_prefix(name: str) -> None:
    unet = backbones.build("ddpmpp", UNET, shape=(2, 4, 4), num_classes=0)
    network = wrapped(name, unet)
    assert network.blocks == unet.blocks
    assert list(network.state_dict()) == [f"model.{key}" for key in unet.state_dict()], "an EDMPrecond's own names"
    x, t = torch.randn(2, 2, 4, 4), torch.tensor([0.3, 1.6])
    before = network(x, t)
    recomputed = prepare(network, Plan(checkpoint=True)).network(x, t)
    torch.testing.assert_close(recomputed, before)
    recomputed.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_and_answers_stay_float32_under_bfloat16(name: str) -> None:
    x, v = points(3 * 16).reshape(3, 2, 4, 4).float(), points(3 * 16, seed=1).reshape(3, 2, 4, 4).float()
    t = torch.tensor([0.2, 0.6, 1.1])
    network = wrapped(name, randomised(backbones.build("ddpmpp", UNET, shape=(2, 4, 4), num_classes=0)), UNITS)
    asked = Query(x, t, None, None, v, torch.ones_like(t))
    ((value, slope),) = prepare(network, Plan(precision="bfloat16"))([asked])
    assert value.dtype == slope.dtype == torch.float32
    exact = network.double()(x.double(), t.double())
    assert 1e-6 < ((value - exact).norm() / exact.norm()).item() < 3e-2


def test_none_is_the_network_itself() -> None:
    model = G()
    assert preconds.build("none", {}, model, **UNIT) is model


# Training


@pytest.mark.parametrize(("backbone", "conditioning"), [("ddpmpp", "auxiliary"), ("mlp", "expanded")])
@pytest.mark.parametrize("name", preconds.PRECONDS)
def test_two_steps_of_facm_move_every_weight(name: str, backbone: str, conditioning: str, tmp_path: Path) -> None:
    data: Any = Points(3) if backbone == "mlp" else write_latents(tmp_path / "latents")
    constants = {"hidden": 16, "depth": 2} if backbone == "mlp" else SHALLOW
    sizes = {"shape": data.shape, "num_classes": 3}
    units = {"mean": [0.0] * data.shape[0], "std": [1.0] * data.shape[0]}

    def built(seed: int, auxiliary: bool = False) -> nn.Module:
        network = backbones.build(backbone, constants, **sizes, auxiliary=auxiliary)
        return preconds.build(name, {}, randomised(network, seed), **units)

    objective = FACM(conditioning=conditioning)
    velocity = target_velocity.teacher(built(1), Guidance(w=2.0, null=3, conditioning="plain"))
    network = built(0, conditioning == "auxiliary")
    before = {key: weight.clone() for key, weight in network.named_parameters()}
    p = parsed(distill__steps=2, runtime__log_every=2)
    job = train.Job("distill", network, objective, data, p.distill, velocity, p.runtime)
    loop = train.Loop(job, Work("distill", "k", tmp_path), str(tmp_path / "log"))
    loop.advance()
    loop.advance()
    assert loop.state.skipped == 0 and all(map(math.isfinite, loop.log.rows[-1].values()))
    assert [key for key, weight in network.named_parameters() if torch.equal(weight, before[key])] == []


# Checkpoints


def test_a_checkpoint_remembers_its_preconditioning(tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents", channels=2)
    options = {"backbone__precond": "simple_edm", "preconds__simple_edm__sigma_data": 0.8, "backbone__name": "ddpmpp"}
    write_checkpoint(tmp_path / "teacher", latents, **options)
    network, config = checkpoint.load(tmp_path / "teacher")
    assert (config.precond, config.precond_constants) == ("simple_edm", {"sigma_data": 0.8})
    assert isinstance(network, simple_edm.SimpleEDM) and network.sigma_data == 0.8


def test_a_checkpoint_from_before_there_were_preconditionings_has_none(tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents")
    written = write_checkpoint(tmp_path / "teacher", latents)
    path = tmp_path / "teacher/config.json"
    older = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("precond")}
    path.write_text(json.dumps(older))
    assert checkpoint.read_config(tmp_path / "teacher") == written
    checkpoint.load(tmp_path / "teacher")


def test_a_student_of_another_preconditioning_is_refused_and_an_auxiliary_one_is_not(tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents")
    options = {"backbone__name": "ddpmpp", "backbone__precond": "simple_edm"}
    write_checkpoint(tmp_path / "teacher", latents, **options)
    other = options | {"preconds__simple_edm__sigma_data": 0.5}
    config = write_checkpoint(tmp_path / "student", latents, kind="student", **other)
    with pytest.raises(CheckpointError, match="with precond simple_edm sigma_data 1.0, params.yaml, back"):
        checkpoint.start_from(config.build(), config, tmp_path / "teacher", None)
    auxiliary = options | {"distill__conditioning": "auxiliary"}
    config = write_checkpoint(tmp_path / "student", latents, kind="student", **auxiliary)
    network = config.build()
    checkpoint.start_from(network, config, tmp_path / "teacher", None)
    teacher = checkpoint.load(tmp_path / "teacher")[0].state_dict()
    assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in teacher.items())


def test_a_network_of_its_own_units_needs_one_std_for_all_channels() -> None:
    for name in ("edm", "ddpm"):
        with pytest.raises(ValueError, match=f"precond: '{name}' knows noise of one level .* from 0.5 to 0.52"):
            wrapped(name, units={"mean": [0.0, 0.0], "std": [0.5, 0.52]})
    wrapped("simple_edm", units={"mean": [0.0, 0.0], "std": [0.5, 0.52]})


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("simpel_edm", {}, r"backbone.precond: unknown 'simpel_edm' \(did you mean 'simple_edm'\?\)"),
        ("edm", {"sigma_dat": 1.0}, r"preconds.edm: unknown 'sigma_dat' \(did you mean 'sigma_data'\?\)"),
        ("edm", {"sigma_data": 0.0}, r"preconds.edm.sigma_data: 0.0 is outside \(0, inf\)"),
        ("edm", {"sigma_data": "1e-3"}, "preconds.edm.sigma_data: must be a number, got '1e-3'"),
        ("edm", {"sigma_min": 99.0}, "preconds.edm: sigma_min 99.0 must be below sigma_max 80.0"),
        ("ddpm", {"beta_end": 1.0}, "preconds.ddpm: needs beta_start <= beta_end < 1"),
        ("ddpm", {"steps": 10.5}, "preconds.ddpm.steps: must be a whole number, got 10.5"),
        ("none", {"sigma_data": 1.0}, "preconds.none: unknown 'sigma_data'"),
    ],
)
def test_what_cannot_be_built_is_refused_with_value_rule_and_place(name, constants, message) -> None:
    with pytest.raises(ValueError, match=message):
        wrapped(name, **constants)


def test_params_yaml_is_checked_before_any_work() -> None:
    from facm.runtime.params import parse

    for changes, message in [
        ({"backbone__precond": "edn"}, "backbone.precond: unknown 'edn'"),
        ({"preconds__edn": {}}, "params.yaml, preconds: unknown 'edn'"),
        ({"backbone__precond": "edm", "preconds": {"none": {}}}, "preconds: no block 'edm' for backbone.precond"),
        ({"backbone__precond": "edm", "preconds__edm__scale": -1}, r"preconds.edm.scale: -1 is outside \(0, inf\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            check.check(parse(plain(**changes)))


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_make_a_teacher_a_student_and_pictures(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    from stages import distill, sample, teacher

    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: None)  # of the process, other tests go on in it
    monkeypatch.chdir(tmp_path)
    write_latents(Path("data/latents"))
    write_params(tmp_path, backbone__name="ddpmpp", backbone__precond=name, latents__codec="identity")
    teacher.main()
    distill.main()
    sample.main()
    assert checkpoint.read_config("data/student").precond == name
    assert checkpoint.read_config("data/teacher").params["preconds"] == {name: preconds.defaults(name)}
    student = facm.load("data/student")
    for sampler in ("heun", "dpmpp", "edm"):
        assert student.generate([0, 1], nfe=3, seed=0, sampler=sampler).shape == (2, 4, 4, 1)
