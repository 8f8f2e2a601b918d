"""What a checkpoint says of its own training is translated or refused; so are its null label and its layout."""

import argparse
import json
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import edm_pickle, inputs, network, stats_file, theirs, transformer_file
from miniature import ROOT, SCRATCH, parsed, randomised, write_latents, write_params
from safetensors.torch import load_file, save_file

import facm
from facm import check, convert
from facm.check import inputs as foresight
from facm.convert import settings
from facm.export import folder as exported
from facm.networks import backbones, checkpoint
from facm.networks.checkpoint import CheckpointError, Config
from facm.runtime.foreign import ForeignError
from facm.runtime.params import ParamsError
from stages import distill, import_teacher

CLASSES, TABLE = 5, "y_embedder.embedding_table.weight"
SIT = {"path_type": "Linear", "prediction": "velocity", "num_classes": CLASSES}
REPA = {"path_type": "linear", "prediction": "v", "num_classes": CLASSES, "cfg_prob": 0.1, "encoder_depth": 2}
LIGHTNINGDIT: dict[str, Any] = {  # as its yaml is
    "data": {"image_size": 128, "num_classes": CLASSES, "latent_norm": True, "latent_multiplier": 1.0},
    "model": {"model_type": "LightningDiT-Tiny", "use_qknorm": True, "use_swiglu": True, "use_rope": True},
    "optimizer": {"lr": 2e-4},
    "transport": {"path_type": "Linear", "prediction": "velocity", "loss_weight": None},
}
LIGHTNINGDIT["model"] |= {"use_rmsnorm": True, "wo_shift": False}


def file(path: Path, told: Any, entry: str = "args", *, rows: int = 6) -> Path:
    """A training file of SiT's layout: random weights with a table of some rows, and settings."""
    weights = torch.load(transformer_file(path, answered=4), weights_only=True)
    table = torch.cat([weights[TABLE], weights[TABLE] + 1])
    torch.save({"ema": weights | {TABLE: table[:rows].clone()}, "opt": {"state": {}}, entry: told}, path)
    return path


def lightningdit_file(path: Path, told: Any, **left_out: bool) -> Path:
    state = {k: w for k, w in network("lightningdit").state_dict().items() if not (left_out and "feat_rope" in k)}
    torch.save({"ema": state, "opt": {}, "config": told}, path)
    return path


def converted(
    path: Path, format: str = "sit", stats: Path | None = None, codec: str = "identity", **given: Any
) -> Config:
    """The description that a file becomes, after a round trip through the folder."""
    source = convert.Source(path, format, trust=True)
    given = ({} if format == "lightningdit" else {"heads": 2}) | given
    weights, config = convert.convert(source, convert.space(format, codec=codec, stats=stats), given)
    checkpoint.save(path.parent / "out", weights, config)
    return checkpoint.read_config(path.parent / "out")


def changed(told: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    block, _, name = place.rpartition(".")
    return told | ({block: told[block] | {name: value}} if block else {name: value})


# Read


class Node:
    """A value of OmegaConf's."""

    def __init__(self, value: Any) -> None:
        self._val = value


class Prediction(Enum):
    """An object of which nothing can be read."""

    VELOCITY = 1


class DictConfig:
    """A mapping of OmegaConf's."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = {k: DictConfig(v) if isinstance(v, dict) else Node(v) for k, v in content.items()}


@pytest.mark.parametrize("entry", ["args", "config", "opt_", "hyper_parameters"])
@pytest.mark.parametrize("kind", [dict, lambda d: argparse.Namespace(**d), DictConfig, lambda d: {"a": {"b": d}}])
def test_settings_are_read_wherever_they_are(entry: str, kind: Any, tmp_path: Path) -> None:
    path = file(tmp_path / "x.pt", kind(SIT | {"lr": 1e-4, "epochs": 80, "data_path": "/data"}), entry)
    told = converted(path).params["imported"]["settings"]
    assert {name.rpartition(".")[2]: value for name, value in told.items()} == SIT
    assert all(name.startswith(entry) for name in told)
    file(path, kind(SIT | {"path_type": "GVP"}), entry)
    with pytest.raises(ForeignError, match=r"x\.pt says .*path_type 'GVP', of which --from sit"):
        converted(path)


def test_the_files_own_settings_leave_the_answers_as_they_were(tmp_path: Path) -> None:
    path = transformer_file(tmp_path / "x.pt", answered=4)
    x, t, y = inputs()
    expected = theirs(path, x, t, y)
    file(path, SIT)
    converted(path)
    torch.testing.assert_close(checkpoint.load(tmp_path / "out")[0](x, t, y).double(), expected, rtol=1e-4, atol=1e-4)


def test_what_was_read_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from facm.convert import __main__ as command

    monkeypatch.chdir(tmp_path)
    file(Path("x.pt"), SIT, rows=5)
    arguments = ["convert", "x.pt", "--from", "sit", "--codec", "identity", "--set", "heads=2", "--out", "out"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    told = capsys.readouterr().out
    assert "args.path_type 'Linear', args.prediction 'velocity', args.num_classes 5; no null label" in told


# Refused


@pytest.mark.parametrize(
    ("format", "place", "value"),
    [
        *(("sit", "path_type", path) for path in ("GVP", "VP", "linear", "Curved")),
        *(("sit", "prediction", prediction) for prediction in ("noise", "score", "v", "x1")),
        ("repa", "path_type", "cosine"),
        ("repa", "path_type", "Linear"),
        ("repa", "prediction", "velocity"),
        ("lightningdit", "transport.path_type", "GVP"),
        ("lightningdit", "transport.prediction", "noise"),
        ("dit", "path_type", "Linear"),
        ("dit", "predict_xstart", True),
        ("dit", "noise_schedule", "squaredcos_cap_v2"),
        ("dit", "diffusion_steps", 4000),
        ("sit", "use_rope", True),
        ("sit", "wo_shift", True),
    ],
)
def test_what_a_format_does_not_translate_is_refused_by_name(
    format: str, place: str, value: Any, tmp_path: Path
) -> None:
    told = {"sit": SIT, "repa": REPA, "dit": {"num_classes": 5}, "lightningdit": LIGHTNINGDIT}[format]
    build = lightningdit_file if format == "lightningdit" else file
    stats = stats_file(tmp_path / "stats.pt") if format == "lightningdit" else None
    converted(build(tmp_path / "x.pt", told), format, stats)
    with pytest.raises(ForeignError, match=rf"x\.pt says .*{place} {value!r}, of which --from {format}"):
        converted(build(tmp_path / "x.pt", changed(told, place, value)), format, stats)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"path_type": 3}, "says args.path_type 3, which must be a word"),
        ({"num_classes": "many"}, "says args.num_classes 'many', which must be a whole number"),
        ({"use_rope": "no"}, "says args.use_rope 'no', which must be true or false"),
        ({"cfg_prob": 2}, r"says args.cfg_prob 2, which must be a number in \[0, 1\]"),
        ({"model": {"num_classes": 5}, "num_classes": 10}, "contradicts itself: args.model.num_classes 5, args.num_cl"),
        ({"model": "DiT-XL/2"}, "says args.model 'DiT-XL/2', which is no network of --from sit"),
        ({"prediction": Prediction.VELOCITY}, "prediction '<test_settings.Prediction>', of which"),
        ({"num_classes": Path("x")}, "says args.num_classes '<pathlib.PosixPath>', which must be a whole number"),
        ({"model": "SiT-B/2"}, "says args.model 'SiT-B/2', heads 12, and heads is set to 2"),
        ({"num_classes": 10}, "its table has 6 labels; 10 classes"),
    ],
)
def test_settings_that_cannot_be_are_refused(told: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=message):
        converted(file(tmp_path / "x.pt", told))


def test_settings_that_hold_themselves_or_go_deep_end_the_search() -> None:
    told: dict[str, Any] = {"path_type": "Linear"}
    told["again"] = told
    for _ in range(5000):
        told = {"deeper": told}
    assert settings.read({"args": told}, Path("x")).told == {}
    while "again" not in told:
        told = told["deeper"]
    assert settings.read({"args": told}, Path("x")).told == {"args.path_type": "Linear"}


def test_a_models_name_gives_its_sizes(tmp_path: Path) -> None:
    found = settings.read({"args": {"model": "SiT-S/2"}}, Path("x"))
    told = settings.constants(found, {"qk_norm": False}, settings.PLAIN, Path("x"))
    assert told == {"qk_norm": False, "hidden": 384, "depth": 12, "heads": 6, "patch_size": 2}
    assert settings.constants(settings.read({"args": {"model": "Own-S/2"}}, Path("x")), {}, {}, Path("x")) == {}


# LightningDiT's config


def test_rope_is_known_from_the_settings_where_its_tables_are_missing(tmp_path: Path) -> None:
    stats = stats_file(tmp_path / "stats.pt")
    for rope in (True, False):
        told = changed(LIGHTNINGDIT, "model.use_rope", rope)
        path = lightningdit_file(tmp_path / "x.pt", told, tables=False)
        assert converted(path, "lightningdit", stats, side=8).constants["rope"] is rope
        with pytest.raises(ForeignError, match=rf"says config.model.use_rope {rope}, and rope is set to {not rope}"):
            converted(path, "lightningdit", stats, side=8, rope=not rope)


def test_switches_that_the_weights_contradict_are_refused(tmp_path: Path) -> None:
    stats = stats_file(tmp_path / "stats.pt")
    for place in ("model.use_qknorm", "model.use_swiglu", "model.use_rmsnorm"):
        path = lightningdit_file(tmp_path / "x.pt", changed(LIGHTNINGDIT, place, False))
        with pytest.raises(ForeignError, match=r"x\.pt does not fit lightningdit with"):
            converted(path, "lightningdit", stats)
    path = lightningdit_file(tmp_path / "x.pt", changed(LIGHTNINGDIT, "model.wo_shift", True))
    with pytest.raises(ForeignError, match="'shift': False"):
        converted(path, "lightningdit", stats)


def test_latents_are_normalised_as_the_settings_say(tmp_path: Path) -> None:
    stats, multiplied = stats_file(tmp_path / "stats.pt"), changed(LIGHTNINGDIT, "data.latent_multiplier", 0.5)
    plain = converted(lightningdit_file(tmp_path / "x.pt", LIGHTNINGDIT), "lightningdit", stats)
    scaled = converted(lightningdit_file(tmp_path / "x.pt", multiplied), "lightningdit", stats)
    assert scaled.mean == plain.mean and scaled.std == [2 * value for value in plain.std], "z' = m (z - mean)/std"
    path = lightningdit_file(tmp_path / "x.pt", changed(multiplied, "data.latent_norm", False))
    with pytest.raises(ForeignError, match=r"latent_norm False, and its statistics .* or give mean 0 and std 2 for"):
        converted(path, "lightningdit", stats)
    torch.save({"mean": torch.zeros(4), "std": torch.full((4,), 2.0)}, stats)
    config = converted(path, "lightningdit", stats)
    assert (config.mean, config.std) == ([0.0] * 4, [2.0] * 4)


def test_a_multiplier_is_the_codecs_scale_or_goes_into_std(tmp_path: Path) -> None:
    path = file(tmp_path / "x.pt", SIT | {"latent_multiplier": 0.18215})
    assert converted(path, codec="sd_vae").std == [1.0] * 4
    path = file(tmp_path / "x.pt", SIT | {"latent_multiplier": 0.5})
    assert converted(path).std == [2.0] * 4
    with pytest.raises(ForeignError, match=r"args\.latent_norm True: give the latents_stats\.pt"):
        converted(file(tmp_path / "x.pt", SIT | {"latent_norm": True}))


# The null label


@pytest.mark.parametrize(
    ("told", "rows", "given", "classes", "null"),
    [
        ({"num_classes": 5}, 6, {}, 5, True),
        ({"num_classes": 5}, 5, {}, 5, False),
        ({"class_dropout_prob": 0.1}, 6, {}, 5, True),
        ({"class_dropout_prob": 0.0}, 5, {}, 5, False),
        ({"class_dropout_prob": 0}, 6, {"classes": 5}, 5, False),  # the row is there, and was never trained
        ({}, 6, {"classes": 5}, 5, True),
        ({}, 6, {"classes": 6}, 6, False),
    ],
)
def test_settings_or_the_user_tell_the_null_label(
    told: dict[str, Any], rows: int, given: dict[str, Any], classes: int, null: bool, tmp_path: Path
) -> None:
    path = file(tmp_path / "x.pt", told, rows=rows)
    config = converted(path, **given)
    assert (config.num_classes, config.null_label) == (classes, null)
    table = load_file(tmp_path / "out/model.safetensors")[TABLE]
    own = torch.load(path, weights_only=True)["ema"][TABLE]
    assert len(table) == classes + 1 and torch.equal(table[:classes], own[:classes]), "no class is lost"


@pytest.mark.parametrize(
    ("told", "rows", "given", "message"),
    [
        ({}, 6, {}, "table of 6 labels, and nothing tells .*: say --set classes=5 or --set classes=6"),
        ({}, 6, {"classes": 4}, "its table has 6 labels; 4 classes"),
        ({}, 6, {"classes": "many"}, "classes 'many' must be a whole number of at least 1"),
        ({"num_classes": 5}, 6, {"classes": 6}, "says args.num_classes 5, and classes is set to 6: leave out --set cl"),
        (
            {"num_classes": 6, "class_dropout_prob": 0.1},
            6,
            {},
            "class_dropout_prob 0.1, which needs a null label beside",
        ),
    ],
)
def test_an_ambiguous_table_is_refused(
    told: Any, rows: int, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ForeignError, match=message):
        converted(file(tmp_path / "x.pt", told, rows=rows), **given)


def test_the_published_number_of_rows_needs_no_telling() -> None:
    read = convert.transformer.labels.read
    assert read(1001, {}, settings.Settings(), Path("x")) == (1000, True)
    with pytest.raises(ForeignError, match="classes=999 or --set classes=1000"):
        read(1000, {}, settings.Settings(), Path("x"))


def test_repa_without_label_dropout_keeps_the_row_and_never_trained_it(tmp_path: Path) -> None:
    config = converted(file(tmp_path / "x.pt", REPA | {"cfg_prob": 0.0}), "repa")
    assert (config.num_classes, config.null_label) == (5, False)
    assert converted(file(tmp_path / "x.pt", REPA), "repa").null_label


@pytest.mark.parametrize("dropout", [None, 0, 0.1])
def test_edms_networks_with_classes_are_guided_only_where_labels_were_dropped(dropout: Any, tmp_path: Path) -> None:
    sizes = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    unet = randomised(backbones.build("ddpmpp", sizes, shape=(3, 8, 8), num_classes=5))
    if dropout is not None:
        unet.label_dropout = dropout
    path = edm_pickle(tmp_path / "x.pkl", unet, tmp_path / "ran")
    source = convert.Source(path, "edm", trust=True)
    assert convert.convert(source, convert.space("edm"), {})[1].null_label is (dropout == 0.1)
    with pytest.raises(ForeignError, match=r"x\.pkl knows 5 classes, not 4"):
        convert.convert(source, convert.space("edm"), {"classes": 4})


def test_a_network_without_a_null_label_is_not_guided(tmp_path: Path) -> None:
    config = converted(file(tmp_path / "x.pt", SIT, rows=5))
    assert json.loads((tmp_path / "out/config.json").read_text())["null_label"] is False
    generator = facm.load(str(tmp_path / "out"))
    told = "this teacher was trained without label dropout .* set w .baseline.w. to 1, not 2"
    with pytest.raises(CheckpointError, match=told):
        generator.generate([0, 4], sampler="heun", steps=2, w=2.0)
    assert generator.generate([0, 4], sampler="heun", steps=2, w=1.0).shape == (2, 8, 8, 4)
    written = exported.write(tmp_path / "export", *checkpoint.load(tmp_path / "out"))
    assert exported.read_config(tmp_path / "export") == written and not written.null_label
    older = json.loads((tmp_path / "export/network/config.json").read_text())
    del older["null_label"]
    assert exported.described(older, "x").null_label and config.num_classes == 5


def test_a_network_with_a_null_label_is_described_as_before(tmp_path: Path) -> None:
    assert converted(file(tmp_path / "x.pt", SIT)).null_label
    assert "null_label" not in json.loads((tmp_path / "out/config.json").read_text())


# In the pipeline

STAGE = {
    "teacher__stage": "import_teacher",
    "teacher__conditioning": "plain",
    "imported__code": "facm/convert",
    "imported__source": "x.pt",
    "imported__format": "sit",
    "backbone__name": "sit",
    "latents__normalise": "none",
    "imported__sha256": "0" * 64,
    **{
        f"backbones__sit__{k}": v
        for k, v in {
            "variant": None,
            "patch_size": 2,
            "hidden": 32,
            "heads": 2,
            "depth": 2,
            "learn_sigma": False,
        }.items()
    },
}
UNGUIDED = {"distill__w": 1.0, "baseline__w": 1.0}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty repository with latents of five classes, which are not normalised."""
    monkeypatch.chdir(tmp_path)
    write_latents(Path("data/latents"), channels=4, side=8, classes=5, num=20, normalise="none")
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def written(**changes: Any) -> dict[str, Any]:
    """params.yaml for x.pt as it is."""
    return STAGE | {"imported__sha256": checkpoint.sha256("x.pt")} | changes


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (SIT | {"path_type": "VP"}, r"args\.path_type 'VP', of which --from sit \(in params\.yaml: imported\.format\)"),
        (SIT | {"qk_norm": True}, r"args\.qk_norm True, and qk_norm is set to False: .* the block of backbone\.name"),
        (SIT | {"model": "SiT-B/2"}, r"args\.model 'SiT-B/2', .*is set to .*"),
        (SIT | {"latent_multiplier": 2.0}, "was made on latents of std"),
        (SIT | {"num_classes": 6}, r"args\.num_classes 6, and classes is set to 5: .* the dataset's classes"),
    ],
)
def test_stages_refuse_what_the_file_contradicts(told: Any, message: str, here: Path) -> None:
    file(Path("x.pt"), told)
    p = parsed(**written(**UNGUIDED))
    with pytest.raises(ValueError, match=message):
        foresight.refuse_missing(p)
        foresight.refuse_unfit(p, foresight.expected(p, (4, 8, 8), 5, codec_options={}, given=None))
    write_params(here, **written(**UNGUIDED))
    with pytest.raises(ValueError, match=message):
        import_teacher.main()
    assert not Path("data/teacher").exists()


def test_the_stage_prints_and_records_what_was_read_and_the_data_tell_the_classes(here: Path, capsys) -> None:
    file(Path("x.pt"), {"path_type": "Linear"})
    write_params(here, **written())
    foresight.refuse_missing(parsed(**written()))
    import_teacher.main()
    assert "data/teacher: settings in the file: args.path_type 'Linear'" in capsys.readouterr().out
    config = checkpoint.read_config("data/teacher")
    assert (config.num_classes, config.null_label) == (5, True)
    assert config.params["imported"]["settings"] == {"args.path_type": "Linear"}


@pytest.mark.parametrize("changes", [{"baseline__w": 1.5}, {"distill__w": 1.5}, {"distill__label_dropout": 0.1}])
def test_a_teacher_without_a_null_label_is_neither_guided_nor_asked_at_it(changes: dict, here: Path) -> None:
    file(Path("x.pt"), {}, rows=5)
    place = next(iter(changes)).replace("__", ".")
    message = rf"x\.pt was trained without label dropout .* set (params\.yaml, )?{place} to"
    p = parsed(**written(**UNGUIDED | changes))
    foresight.refuse_missing(p)  # the classes are not known yet
    with pytest.raises(CheckpointError, match=message):
        foresight.refuse_unfit(p, foresight.expected(p, (4, 8, 8), 5, codec_options={}, given=None))
    file(Path("x.pt"), SIT, rows=5)
    with pytest.raises(CheckpointError, match=message):
        foresight.refuse_missing(parsed(**written(**UNGUIDED | changes)))
    write_params(here, **written(**UNGUIDED | changes))
    import_teacher.main()
    if "baseline__w" not in changes:
        with pytest.raises(CheckpointError, match=f"data/teacher was trained without label dropout .* set {place} to"):
            distill.main()


def test_a_teacher_without_a_null_label_is_distilled_unguided(here: Path) -> None:
    file(Path("x.pt"), SIT, rows=5)
    write_params(here, **written(**UNGUIDED))
    foresight.refuse_missing(parsed(**written(**UNGUIDED)))
    import_teacher.main()
    distill.main()
    assert not checkpoint.read_config("data/student").null_label


def test_a_start_without_a_null_label_is_known_before_anything_is_encoded(here: Path) -> None:
    converted(file(Path("x.pt"), SIT, rows=5))
    shown = {"backbone__name": "sit", "latents__normalise": "none"} | {k: v for k, v in STAGE.items() if "sit" in k}
    start = {"init": "out", "init_sha256": checkpoint.sha256("out/model.safetensors"), "label_dropout": 0.0}
    for stage, place, more in (("teacher", "baseline.w", {}), ("distill", "distill.w", SCRATCH)):
        p = parsed(**shown | more | {f"{stage}__{name}": value for name, value in start.items()})
        with pytest.raises(
            CheckpointError, match=rf"^out was trained without label dropout .* set params.yaml, {place}"
        ):
            foresight.refuse_unfit(p, foresight.expected(p, (4, 8, 8), 5, codec_options={}, given=None))


def test_a_training_without_label_dropout_has_no_null_label(here: Path) -> None:
    def described(**changes: Any) -> Config:
        p = parsed(**changes)
        latents = checkpoint.LatentSet.open("data/latents")
        objective = check.build_objective(p)
        return checkpoint.describe("teacher", latents, check.backbone(p), objective, p.teacher, {}, check.precond(p))

    assert described().null_label and not described(teacher__label_dropout=0.0).null_label
    converted(file(Path("x.pt"), SIT, rows=5))
    start = {"teacher__init": "out", "teacher__init_sha256": "0" * 64}
    assert described(**start).null_label and not described(**start, teacher__label_dropout=0.0).null_label
    with pytest.raises(
        ParamsError, match=r"teacher\.label_dropout: 0 never trains the null label, .* baseline\.w 1\.75"
    ):
        check.check(parsed(teacher__label_dropout=0.0, distill__w=1.0))


# Layouts that are not read


def test_layouts_of_diffusers_and_sharded_ones_are_told_for_what_they_are(tmp_path: Path) -> None:
    index, model = tmp_path / "x.safetensors.index.json", tmp_path / "transformer"
    index.write_text(
        json.dumps({"weight_map": {"a": "x-00001-of-00002.safetensors", "b": "x-00002-of-00002.safetensors"}})
    )
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"_class_name": "DiTTransformer2DModel"}))
    shard = tmp_path / "x-00001-of-00002.safetensors"
    keys = tmp_path / "diffusion_pytorch_model.safetensors"
    for path in (shard, keys):
        save_file(
            {"transformer_blocks.0.attn1.to_q.weight": torch.ones(2), "pos_embed.proj.weight": torch.ones(2)}, path
        )
    pipeline, distributed, plain = (tmp_path / name for name in ("pipeline", "distributed", "plain"))
    for folder in (pipeline, distributed, plain):
        folder.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    (distributed / ".metadata").write_text("")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "odd.json").write_text('{"weight_map": {"a": ["x"], "b": {}}}')
    told = {
        index: "is the index of a sharded checkpoint of 2 files, it is in several files: merge them",
        tmp_path: r"is a sharded checkpoint \(x\.safetensors\.index\.json\), it is in several files",
        shard: "is one of 2 files of a sharded checkpoint",
        model: "describes a DiTTransformer2DModel of diffusers: .* take the authors' own file",
        pipeline: "is the folder of a pipeline of diffusers: .* take the authors' own file",
        distributed: "is a distributed checkpoint of torch: .* dcp_to_torch",
        tmp_path / "deep.json": "holds no weights: name the file that does",
        tmp_path / "odd.json": "is the index of a sharded checkpoint of 2 files",
        tmp_path / "broken.json": "holds no weights: name the file that does",
        keys: r"is a network of diffusers \(DiTTransformer2DModel or a like one: transformer_blocks\.0\.attn1",
    }
    for path, message in told.items():
        with pytest.raises(ForeignError, match=message):
            converted(path, "dit")
    with pytest.raises(FileNotFoundError, match="plain is a folder: name a file"):
        converted(plain, "dit")


def test_the_stages_say_so_too(here: Path) -> None:
    Path("x.pt").write_bytes(pickle.dumps({}))
    Path("transformer").mkdir()
    Path("transformer/config.json").write_text(json.dumps({"_class_name": "DiTTransformer2DModel"}))
    with pytest.raises(ForeignError, match=r"params\.yaml, imported\.source: .*describes a DiTTransformer2DModel"):
        foresight.refuse_missing(parsed(**written(imported__source="transformer")))


def test_the_page_on_weights_names_every_setting_that_is_read() -> None:
    page = (ROOT / "docs/weights.md").read_text()
    assert [name for name in settings.NAMES if f"`{name}`" not in page] == []
