"""What can be refused before any work: names against registries, blocks against classes, one choice against another."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from miniature import MIXTURE, ROOT, SCRATCH, parsed, plain, write_params

from facm import check, preset
from facm.check.__main__ import main as check_main
from facm.runtime import params
from facm.runtime.params import ParamsError

PUBLISHED = {"reference__features": "inception", "reference__source": "adm.npz", "reference__sha256": "0" * 64}


def refused(**changes) -> str:
    """The message of `check` for params with these changes."""
    with pytest.raises(ValueError) as caught:
        check.check(parsed(**changes))
    return str(caught.value)


ONE_BLOCK = {"variant": None, "patch_size": 2, "hidden": 32, "depth": 1, "heads": 2}
UNBUILDABLE = [
    *(
        (name, key, value, message)
        for name in ("lightningdit", "dit", "sit", "repa")
        for key, value, message in (
            ("heads", 3, "hidden: must be a multiple of 4 x heads .*, got 32 with 3 heads"),
            ("hidden", 30, "hidden: must be a multiple of 4 x heads .*, got 30 with 2 heads"),
            ("depth", 0, r"depth: 0 is outside \[1, inf\)"),
            ("mlp_ratio", -1.0, r"mlp_ratio: -1.0 is outside \(0, inf\)"),
            ("mlp_ratio", 0.0, r"mlp_ratio: 0.0 is outside \(0, inf\)"),
            ("mlp_ratio", 1e308, "no network has these constants"),
            ("hidden", 8 * 10**11, "no network has these constants"),
            ("t_std", [0.5, -1.0], r"t_std\[1\]: -1.0 is outside \[0, inf\)"),
            ("label_std", -1.0, r"label_std: -1.0 is outside \[0, inf\)"),
        )
    ),
    ("repa", "encoder_depth", 2, "encoder_depth: 2 must be one of the blocks 1..1"),
    ("repa", "coefficient", -1.0, r"coefficient: -1.0 is outside \[0, inf\)"),
    ("mlp", "hidden", 10**12, "no network has these constants"),
    ("mlp", "hidden", 0, r"hidden: 0 is outside \[1, inf\)"),
    ("ddpmpp", "model_channels", 10, "model_channels: must be a multiple of 4"),
    ("ddpmpp", "channel_mult", [], "channel_mult: must be a list of whole numbers"),
    ("ddpmpp", "attn_resolutions", [3], "attn_resolutions: must be a list of some of the levels' sides"),
    ("ddpmpp", "attn_resolutions", [64, 2], "attn_resolutions: must be a list of some of the levels' sides"),
    ("ddpmpp", "resample_filter", [1, 2, 1], "resample_filter: must be a list of an even number of taps"),
    ("ddpmpp", "resample_filter", [1, -1], "resample_filter: must be a list of an even number of taps"),
    ("ddpmpp", "time_scale", 0.0, "time_scale: 0 leaves the network without its time"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), UNBUILDABLE)
def test_constants_that_make_no_network_are_refused_before_any_data(tmp_path, monkeypatch, name, key, value, message):
    small = ONE_BLOCK | ({"encoder_depth": 1} if name == "repa" else {}) if name not in ("mlp", "ddpmpp") else {}
    changes = {f"backbones__{name}__{k}": v for k, v in (small | {key: value}).items()} | {"backbone__name": name}
    if name == "repa":
        changes |= {"latents__tokens__encoder": "e", "latents__tokens__weights": "w", "latents__tokens__sha256": "0"}
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, **(MIXTURE if name == "mlp" else {}) | changes)
    monkeypatch.setattr(sys, "argv", ["check"])
    with pytest.raises(SystemExit, match=f"error: params.yaml, backbones.{name}.?.?{message}"):
        check_main()


@pytest.mark.parametrize("name", ["digits", "cifar10", "imagenet256", "imagenet256 sd_vae sit", "mixture"])
def test_every_presets_network_can_be_built(name: str) -> None:
    mapping = params.mapping_of(preset.render(name.split(), ROOT / "presets"), name)
    check.buildable(params.parse(mapping))


@pytest.mark.parametrize("side", [8, 28, 32, 64, 256])
def test_a_network_for_one_side_can_be_built(side: int) -> None:
    shape = {"channel_mult": [1, 1], "attn_resolutions": [side, side // 2]}
    check.buildable(parsed(backbone__name="ddpmpp", **{f"backbones__ddpmpp__{k}": v for k, v in shape.items()}))


@pytest.mark.parametrize(
    ("steps", "warmup", "fine"), [(50, 100, False), (50, 50, False), (50, 49, True), (1, 0, True), (1, 1, False)]
)
def test_a_training_that_never_reaches_its_learning_rate_is_refused(steps: int, warmup: int, fine: bool) -> None:
    for name in ("teacher", "distill"):
        changes = {f"{name}__steps": steps, f"{name}__optimizer__warmup": warmup}
        if fine:
            check.check(parsed(**changes))
        else:
            rule = (
                f"params.yaml, {name}.optimizer.warmup: {warmup} must be below {name}.steps {steps}, or the learning "
            )
            assert rule in refused(**changes)


def test_the_warmup_of_a_teacher_that_is_not_trained_is_not_asked() -> None:
    check.check(parsed(**SCRATCH, teacher__optimizer__warmup=100))


def test_compiling_without_a_compiler_is_refused_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = parsed(train__compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        FileNotFoundError, match=r"train.compile: true needs a C\+\+ compiler on a CPU, and there is no no-"
    ):
        check.at_hand(asked)
    check.at_hand(parsed(train__compile=False))
    check.compilable(torch.device("cuda"))
    monkeypatch.setenv("CXX", sys.executable)
    check.at_hand(asked)
    monkeypatch.setattr(check.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(
        FileNotFoundError, match="Python's headers on a CPU, and there is no /nowhere/Python.h: install"
    ):
        check.at_hand(asked)


@pytest.mark.parametrize(
    "names", [["digits"], ["digits", "scratch"], ["mixture"], ["mixture", "scratch"]], ids=" ".join
)
def test_every_preset_is_in_order(names: list[str]) -> None:
    from facm import preset
    from facm.runtime.params import parse

    check.check(parse(yaml.safe_load(preset.render(names, ROOT / "presets"))))


@pytest.mark.parametrize(
    "changes",
    [
        {"distill__objective": "fm", "sample__sampler": "euler"},
        {"distill__objective": "fm", "sample__sampler": "heun", "sample__nfe": [1, 3]},
        {
            "distill__conditioning": "auxiliary",
            "teacher__conditioning": "auxiliary",
            "distill__teacher_condition": "fm",
        },
        {"teacher__conditioning": "plain"},
        {"teacher__fraction": 0.0},
        {"sample__t_grid": [[0.0, 0.7]]},
        {"sample__t_grid": [[0.0, 0.7], [0.0, 0.5, 0.7]], "sample__nfe": [1]},
        {
            "distill__mode": "scratch",
            "distill__teacher": "data/latents",
            "report__pictures": "data/samples",
            "report__curves": "metrics/distill",
            "distill__scratch_source": "ema",
            "distill__label_dropout": 0.1,
        },
        SCRATCH | {"distill__objective": "scm", "distill__w": 1.0},
        SCRATCH | {"distill__objective": "meanflow"},
        SCRATCH | {"distill__objective": "scm", "latents__labels": False},
        SCRATCH | {"teacher__fraction": 1.0},
        {"distill__objective": "imm"},
        {"objectives__facm__clamp": None, "distill__alpha": "one"},
        {"data__name": "folder", "data__root": "pictures", "data__side": 256, "data__max_bad": 0.001},
        {"data__name": "folder", "data__root": "pictures", "latents__codec": "va_vae", "latents__vae": "va.pt"},
        {"latents__codec": "sd_vae", "latents__vae": "stabilityai/sd-vae-ft-ema", "latents__vae_sha256": "0" * 64},
        MIXTURE,
        MIXTURE | {"distill__objective": "fm", "sample__sampler": "euler"},
        {"reference__also": ["inception", "dinov2"], "sample__rounding": "floor"},
        PUBLISHED,
        PUBLISHED | {"data__name": "precomputed", "data__root": "extracted", "evaluate__copies": False},
        {"baseline__sampler": "edm", "baseline__steps": 2},
        {"backbone__name": "ddpmpp", "backbones__ddpmpp__augment_dim": 9},
    ],
    ids=str,
)
def test_what_goes_together_is_accepted(changes: dict) -> None:
    check.check(parsed(**changes))


UNKNOWN = [
    ({"data__name": "digit"}, "params.yaml, data.name: unknown 'digit' (did you mean 'digits'?); known: cifar10, "),
    ({"reference__features": "vgg"}, "params.yaml, reference.features: unknown 'vgg'; known: digits_cnn, dinov2"),
    (
        {"latents__codec": "vae"},
        "params.yaml, latents.codec: unknown 'vae' (did you mean 'va_vae'?); known: identity, points",
    ),
    (
        {"backbone__name": "lightningdot"},
        "backbone.name: unknown 'lightningdot' (did you mean 'lightningdit'?); known: ",
    ),
    (
        {"distill__objective": "facn"},
        "params.yaml, distill.objective: unknown 'facn' (did you mean 'facm'?); known: cd",
    ),
    ({"sample__sampler": "eular"}, "params.yaml, sample.sampler: unknown 'eular' (did you mean 'euler'?); known: "),
    ({"teacher__time__sampler": "normal"}, "params.yaml, teacher.time.sampler: unknown 'normal'"),
    ({"distill__time__sampler": "logitnormal"}, "distill.time.sampler: unknown 'logitnormal' (did you mean 'logit_no"),
    ({"distill__alpha": "sin"}, "params.yaml, distill.alpha: 'sin' is not one of one, power, cos"),
    ({"distill__beta": "coz"}, "params.yaml, distill.beta: 'coz' is not one of one, power, cos (did you mean 'cos'?)"),
    (
        {"objectives__facm__clampp": 1.0},
        "params.yaml, objectives.facm: unknown 'clampp' (did you mean 'clamp'?); known: ",
    ),
    ({"objectives__facn": {}}, "params.yaml, objectives: unknown 'facn' (did you mean 'facm'?); known: cd, ect, "),
    ({"backbones__lightningdot": {}}, "params.yaml, backbones: unknown 'lightningdot' (did you mean 'lightningdit'?)"),
    ({"objectives__facm__reduction": "means"}, "objectives.facm.reduction: 'means' is not one of mean, sum (did you"),
]


@pytest.mark.parametrize(("changes", "message"), UNKNOWN, ids=[next(iter(changes)) for changes, _ in UNKNOWN])
def test_an_unknown_name_is_told_with_its_place_the_nearest_name_and_the_list(changes: dict, message: str) -> None:
    assert message in refused(**changes)


CONFLICTS = [
    ({"teacher__label_dropout": 0.0}, "params.yaml, teacher.label_dropout: 0 never trains the null label, from which"),
    (
        {"distill__mode": "scratch", "distill__teacher": "data/latents"},
        "params.yaml, report: pictures 'data/baseline' and curves 'metrics/teacher' with distill.mode scratch",
    ),
    (
        {"distill__mode": "scratch", "distill__teacher": "data/latents", "report__pictures": "data/samples"},
        "params.yaml, report: pictures 'data/samples' and curves 'metrics/teacher' with distill.mode scratch",
    ),
    (
        {"distill__mode": "scratch", "distill__teacher": "data/latents"}
        | {"report__pictures": "data/samples", "report__curves": "metrics/distill"},
        "params.yaml, distill.label_dropout: 0 never trains the null label, from which distill.w 1.75 guides away",
    ),
    (
        {"teacher__conditioning": "auxiliary"},
        "params.yaml, distill.conditioning: the teacher is auxiliary, its network",
    ),
    (
        {"distill__objective": "fm"},
        "params.yaml, sample.sampler: 'consistency' does not fit objective 'fm', which has euler, heun, dpmpp",
    ),
    ({"sample__sampler": "heun"}, "sample.nfe: 2 is not 2 N - 1, what Heun takes for N steps: set 1 or 3"),
    ({"sample__t_grid": [[0.1, 0.7]]}, "params.yaml, sample.t_grid: [0.1, 0.7] must start at 0 (noise), increase"),
    ({"sample__t_grid": [[0.0, 0.5], [0.0, 0.7]]}, "sample.t_grid: two grids are as long as each other ([2, 2]): one"),
    ({"distill__t_low": 0.9, "distill__t_high": 0.5}, "params.yaml, distill: t_low 0.9, t_high 0.5 must satisfy"),
    ({"baseline__t_low": 0.9, "baseline__t_high": 0.5}, "params.yaml, baseline: t_low 0.9 must not exceed t_high 0.5"),
    (
        {"distill__mode": "scratch"},
        "params.yaml, distill: mode 'scratch' with teacher 'data/teacher': mode scratch has",
    ),
    ({"distill__teacher": "data/latents"}, "distill: mode 'distill' with teacher 'data/latents'"),
    (
        {"distill__teacher_condition": "fm", "teacher__fraction": 0.0},
        "params.yaml, distill.teacher_condition: 'fm' needs a mixed teacher (teacher.fraction above 0)",
    ),
    (
        {"backbone__name": "mlp"},
        "params.yaml, backbone.name: 'mlp' is for points, and data.name 'digits' has pictures: set it to ",
    ),
    (
        MIXTURE | {"backbone__name": "lightningdit"},
        "params.yaml, backbone.name: 'lightningdit' is for pictures, and data.name 'mixture' has points: set it to mlp",
    ),
    (
        {"latents__codec": "points"},
        "params.yaml, latents.codec: 'points' is for points, and data.name 'digits' has pic",
    ),
    (
        MIXTURE | {"reference__features": "inception"},
        "params.yaml, reference.features: 'inception' is for pictures, and data.name 'mixture' has points: set it to e",
    ),
    (
        {"data__name": "mixture"},
        "params.yaml, reference.features: 'digits_cnn' is for pictures, and data.name 'mixture'",
    ),
    (
        MIXTURE | {"latents__flip": True},
        "params.yaml, latents.flip: is for pictures, and data.name 'mixture' has points",
    ),
    (
        MIXTURE | {"evaluate__copies": True},
        "params.yaml, evaluate.copies: is for pictures, and data.name 'mixture' has",
    ),
    (MIXTURE | {"sample__rounding": "floor"}, "params.yaml, sample.rounding: points are not rounded: set it to round"),
    (
        MIXTURE | {"reference__also": ["dinov2"]},
        "params.yaml, reference.also: 'dinov2' is for pictures, and data.name 'mixture' has points",
    ),
    ({"reference__also": ["dino"]}, "params.yaml, reference.also: unknown 'dino' (did you mean 'dinov2'?); known: "),
    ({"reference__also": ["digits_cnn"]}, "params.yaml, reference.also: digits_cnn, digits_cnn: each network once"),
    (
        {"reference__features": "inception", "reference__source": "adm.npz"},
        "params.yaml, reference: source 'adm.npz' with sha256 None: an npz goes with its sha256",
    ),
    ({"reference__sha256": "0" * 64}, "params.yaml, reference: source 'dataset' with sha256 0000"),
    (
        {"reference__source": "adm.npz", "reference__sha256": "0" * 64},
        "reference.source: statistics in 'adm.npz' are of a published network, 'digits_cnn' is trained here",
    ),
    ({"data__side": 8}, "params.yaml, data.side: 'digits' comes in its own size, got 8; set it to null"),
    (MIXTURE | {"data__side": 8}, "params.yaml, data.side: 'mixture' comes in its own size, got 8; set it to null"),
    (
        {"latents__codec": "va_vae"},
        "latents.vae: codec 'va_vae' needs weights: a folder, a hub name or a file, got No",
    ),
    ({"latents__vae": "va.pt"}, "latents.vae: codec 'identity' has no weights (sd_vae, va_vae have), got 'va.pt'; set"),
    ({"latents__vae_sha256": "0" * 64}, "latents.vae_sha256: pins weights, and latents.vae names none; set it to null"),
    (
        MIXTURE | {"latents__codec": "sd_vae"},
        "params.yaml, latents.codec: 'sd_vae' is for pictures, and data.name 'mi",
    ),
    ({"teacher__ema__sigma_rel": 0.1}, "params.yaml, teacher.ema.sigma_rel: 0.1 must be one of sigma_rels"),
    ({"teacher__init": "data/older"}, "params.yaml, teacher: init and init_sha256 go together; the sha256 stands in"),
    ({"distill__init_sha256": "0" * 64}, "params.yaml, distill: init and init_sha256 go together"),
    (
        {"distill__objective": "cd", "objectives__cd__target": "target", "train__parallel": "fsdp"},
        "params.yaml, train.parallel: 'fsdp' does not fit objective 'cd' with these constants, which asks copies of",
    ),
    (
        SCRATCH | {"distill__objective": "scm"},
        "params.yaml, distill.w: 1.75 from scratch guides by the network's own velocity, which objective 'scm' with",
    ),
    (
        SCRATCH | {"objectives__facm__anchor": 0.0},
        "params.yaml, distill.w: 1.75 from scratch guides by the network's own velocity, which objective 'facm' with",
    ),
    (
        {"objectives__facm__anchor": 0.0, "sample__sampler": "anchored"},
        "params.yaml, sample.sampler: 'anchored' does not fit objective 'facm', which has consistency",
    ),
    (
        {"distill__objective": "fm", "sample__sampler": "euler", "objectives__fm__fraction": 0.0},
        "params.yaml, objectives.fm.fraction: 0 never trains the FM format, at which a student is drawn: set it above",
    ),
    (
        {"teacher__conditioning": "auxiliary", "distill__conditioning": "auxiliary", "teacher__fraction": 0.0},
        "params.yaml, teacher.fraction: 0 with conditioning 'auxiliary' never trains where baseline and distill ask",
    ),
    (
        {"teacher__fraction": 1.0},
        "params.yaml, teacher.fraction: 1 with conditioning 'expanded' never trains where baseline and distill ask",
    ),
    (
        {"distill__objective": "imm", "distill__batch_size": 6},
        "params.yaml, distill.batch_size: 6 must hold whole groups of 4 (the objective's `group`), at least 1, one for",
    ),
    (
        {"train__accumulate": 8},
        "params.yaml, teacher.batch_size: 4 must be at least 8, one for each of 1 processes (FACM_NPROC) and 8",
    ),
    (
        {"sample__sigma_rel": 0.1, "distill__ema__snapshots": 1}
        | {"distill__ema__sigma_rels": [0.05], "distill__ema__sigma_rel": 0.05},
        "params.yaml, sample.sigma_rel: 0.1 is made from two snapshots or more, and distill.ema keeps 1 of 1 average",
    ),
    (
        {"data__name": "precomputed", "data__root": "extracted", "evaluate__copies": False},
        "params.yaml, reference.source: data.name 'precomputed' has latents and no pictures to measure: name an npz of",
    ),
    (
        PUBLISHED | {"data__name": "precomputed", "data__root": "extracted", "evaluate__copies": True},
        "params.yaml, evaluate.copies: is for pictures, and data.name 'precomputed' has latents without them: set it",
    ),
    (
        {"baseline__sampler": "edm", "baseline__steps": 1},
        "params.yaml, baseline or sample: steps 1 must be at least 2 for edm",
    ),
    ({"baseline__sampler": "edm", "baseline__shift": 0.5}, "shift 0.5 has no part in edm: set it to 0"),
    ({"sample__num": 3}, "params.yaml, sample.num: 3 must be at least 4, or nothing can be scored"),
    ({"objectives__facm__norm_q": 2.0}, "params.yaml, objectives.facm.norm_q: 2.0 is outside [0, 1]"),
    ({"objectives__facm__clamp": -1.0}, "params.yaml, objectives.facm.clamp: -1.0 is outside (0, inf) or null"),
]


@pytest.mark.parametrize(("changes", "message"), CONFLICTS, ids=[str(changes) for changes, _ in CONFLICTS])
def test_choices_that_do_not_go_together_are_refused_with_the_way_out(changes: dict, message: str) -> None:
    assert message in refused(**changes)


def test_all_broken_rules_are_told_at_once_the_first_one_first(tmp_path: Path, monkeypatch) -> None:
    changes = {"data__side": 8, "teacher__ema__sigma_rel": 0.1, "sample__num": 3, "baseline__num": 2}
    messages = list(check.broken(parsed(**changes)))
    assert [message.split(": ")[0].removeprefix("params.yaml, ") for message in messages] == [
        "data.side",
        "teacher.ema.sigma_rel",
        "sample.num",
        "baseline.num",
    ]
    assert refused(**changes) == messages[0]
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, **changes)
    monkeypatch.setattr(sys, "argv", ["check"])
    with pytest.raises(SystemExit) as told:
        check_main()
    assert told.value.code == "\n".join(f"error: {message}" for message in messages), "a text is exit code 1"


@pytest.mark.parametrize("changes", [{"data__name": "digit"}, {"objectives__facm__norm_q": 2.0}], ids=str)
def test_what_depends_on_a_broken_rule_is_not_told(changes: dict) -> None:
    assert len(list(check.broken(parsed(**changes, sample__num=3)))) == 1


CONSTANTS = [
    ({"backbones__lightningdit__hiden": 64}, "backbones.lightningdit: unknown 'hiden' (did you mean 'hidden'?); known"),
    (
        {"backbones__lightningdit__hidden": "64"},
        "lightningdit.hidden: must be a whole number, got '64' (in quotes it is text: leave",
    ),
    (
        {"backbones__lightningdit__hidden": None},
        "params.yaml, backbones.lightningdit: 'hidden' is missing; presets/base",
    ),
    (
        {"backbones__lightningdit__depth": 0},
        "backbones.lightningdit.depth: 0 is outside [1, inf)",
    ),
    ({"backbones__lightningdit__depth": 2.5}, "lightningdit.depth: must be a whole number, got 2.5"),
    ({"backbones__lightningdit__mlp_ratio": "4"}, "backbones.lightningdit.mlp_ratio: must be a number, got '4'"),
    ({"backbones__lightningdit__mlp_ratio": None}, "backbones.lightningdit.mlp_ratio: must be a number, got None"),
    ({"backbones__lightningdit__qk_norm": 1}, "backbones.lightningdit.qk_norm: must be true or false, got 1"),
    ({"backbones__lightningdit__label_std": "a"}, "backbones.lightningdit.label_std: must be a number, got 'a'"),
    ({"backbones__lightningdit__gate_bias": float("nan")}, "lightningdit.gate_bias: must be a finite number, got nan"),
    (
        {"backbones__lightningdit__t_std": [0.5, "a"]},
        "backbones.lightningdit.t_std[1]: must be a number, got 'a'",
    ),
    (
        {"backbone__name": "repa", "backbones__repa__coefficient": "a"},
        "params.yaml, backbones.repa.coefficient: must be a number, got 'a'",
    ),
    (
        {"backbone__name": "ddpmpp", "backbones__ddpmpp__augment_dim": "9"},
        "backbones.ddpmpp.augment_dim: must be a whole number or null, got '9'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CONSTANTS, ids=[str(changes) for changes, _ in CONSTANTS])
def test_constants_of_the_chosen_backbone_are_checked_without_a_shape(changes: dict, message: str) -> None:
    assert message in refused(**changes)


def test_constants_of_other_backbones_are_left_alone() -> None:
    check.check(parsed(backbones__sit__hidden="64", backbones__mlp__depth=0))


@pytest.mark.parametrize(("place", "name"), [("objectives", "facm"), ("backbones", "lightningdit")])
def test_a_chosen_name_without_its_block_is_told(place: str, name: str) -> None:
    from facm.runtime.params import parse

    mapping = plain()
    del mapping[place][name]
    with pytest.raises(ParamsError, match=rf"params.yaml, {place}: no block '{name}' for"):
        check.check(parse(mapping))


def test_a_teacher_stage_without_its_script_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    assert refused(teacher__stage="teacher") == "params.yaml, teacher.stage: there is no stages/teacher.py"


def test_a_teacher_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    elsewhere = parsed(distill__teacher="data/other")
    for made in (parsed(), parsed(**SCRATCH)):
        check.at_hand(made)
    (tmp_path / "data/other").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"params.yaml, distill.teacher: data/other is no checkpoint folder"):
        check.at_hand(elsewhere)
    (tmp_path / "data/other/config.json").touch()
    check.at_hand(elsewhere)


def test_whatever_is_refused_is_a_params_error(tmp_path: Path) -> None:
    write_params(tmp_path, distill__alpha="sin")
    with pytest.raises(ParamsError, match="params.yaml, distill.alpha: 'sin' is not one of one, power, cos"):
        check.read(tmp_path / "params.yaml")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    check.writable("data/teacher", "metrics", ".work")
    monkeypatch.setattr(check.os, "access", lambda path, mode: Path(path) != Path("data"))
    check.writable("metrics")
    with pytest.raises(PermissionError, match="data cannot be written, but data/teacher must be made there"):
        check.writable("data/teacher")
    (tmp_path / "metrics").write_text("a file")
    with pytest.raises(PermissionError, match="metrics cannot be written, but metrics/plots must be made there"):
        check.writable("metrics/plots")
