"""Published checkpoints of every format, our own folders, exported folders: mutated, truncated, of other content."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import miniature
import pytest
import torch
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import (
    DEEP,
    as_json,
    edited,
    edits,
    plain,
    retensored,
    retensorings,
    rewritings,
    rewritten,
)
from safetensors.torch import load_file, save
from torch import Tensor

from facm import convert
from facm.convert import settings
from facm.convert.export import read_statistics
from facm.data.latents import statistics as normalise
from facm.export import folder as exported
from facm.networks import checkpoint
from facm.runtime import files
from facm.runtime import weights as feature_weights

pytestmark = pytest.mark.slow

CLASSES = 5  # of tests/foreign.py's networks
SIZES = {"hidden": 16, "heads": 2, "depth": 1}


def network(name: str, **constants: Any) -> dict[str, Tensor]:
    """Weights of a tiny network with its authors' names."""
    return dict(foreign.network(name, **SIZES | constants).state_dict())


def state(format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in a format's layout, and the constants that a user gives with them."""
    if format in ("sit", "dit"):
        return network(format, learn_sigma=True), {"heads": 2, "depth": 1, "classes": CLASSES}
    if format == "repa":
        return network("repa", encoder_depth=1, projector=False), {"heads": 2, "depth": 1, "classes": CLASSES}
    if format == "edm":
        made = foreign.randomised(
            miniature.checkpoint.backbones.build("ddpmpp", miniature.SHALLOW, shape=(3, 4, 4), num_classes=0)
        )
        return {f"model.{name}": tensor for name, tensor in made.state_dict().items()}, {}
    return network("lightningdit", rope=True, qk_norm=True), {"depth": 1, "classes": CLASSES}


CONTAINERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda weights: weights,
    "ema": lambda weights: {"ema": weights, "_extracted_from": "PostHocEMA"},
    "training": lambda weights: {
        "model": {f"module.{name}": tensor for name, tensor in weights.items()},
        "ema": weights,
        "opt": {"state": {}, "param_groups": []},
        "steps": 7,
        "config": {"model": {"use_rope": True}},
    },
    "emas": lambda weights: {
        "emas": {f"ema_models.{i}.ema_model.{name}": tensor for i in (0, 1) for name, tensor in weights.items()},
        "model": weights,
        "step": 7,
    },
}
"""How publishers wrap weights."""

CASES = {
    "facm": ("facm", "ema"),
    "facm training": ("facm", "emas"),
    "lightningdit": ("lightningdit", "training"),
    "sit": ("sit", "bare"),
    "dit": ("dit", "bare"),
    "repa": ("repa", "ema"),
    "edm": ("edm", "bare"),
}


def convert_file(
    path: Path, format: str, given: dict[str, Any], *, trust: bool, pin: str | None = None
) -> dict[str, Tensor]:
    """The weights that the package makes of a file."""
    return converted(path, format, given, trust=trust, pin=pin)[0]


def converted(
    path: Path, format: str, given: dict[str, Any], *, trust: bool, pin: str | None = None
) -> tuple[dict[str, Tensor], checkpoint.Config]:
    """Weights and description that the package makes of a file, which must fit each other."""
    space = convert.Space(convert.load_format(format).codec, [], [])
    source = convert.Source(path, format, trust=trust, sha256=pin)
    found, config = convert.convert(source, space, given)
    with torch.device("meta"):
        expected = config.build().state_dict()
    if {name: t.shape for name, t in found.items()} != {name: t.shape for name, t in expected.items()}:
        raise Wrong("the weights are not those of the network that config.json would describe")
    if not all(bool(t.isfinite().all()) for t in found.values()):
        raise Wrong("weights that are not finite")
    return found, config


def damaged_file(path: Path, content: bytes, right: Callable[[], Any]) -> Callable[[Any], Callable[[], Any]]:
    """A trial of damage to a file's bytes; what is read of bytes that did not change must be what it was."""
    original = right()

    def trial(changes: Any) -> Callable[[], Any]:
        damaged = edited(content, changes)
        path.write_bytes(damaged)

        def read() -> None:
            found = right()
            if damaged == content and not same(found, original):
                raise Wrong("an intact file is misread")

        return read

    return trial


def same(a: Any, b: Any) -> bool:
    """Whether two mappings of tensors are equal, bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def written(value: Any, path: Path, form: str) -> bytes:
    """A file of torch's or of safetensors' form."""
    if form == "safetensors":
        return save({name: tensor.contiguous() for name, tensor in value.items()})
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("case", CASES)
def test_damaged_published_checkpoints(case: str, form: str, folder: Path) -> None:
    format, container = CASES[case]
    weights, given = state(format)
    path = folder / ("w.safetensors" if form == "safetensors" else "w.pt")
    content = written(weights if form == "safetensors" else CONTAINERS[container](weights), path, form)
    path.write_bytes(content)
    trial = damaged_file(path, content, lambda: convert_file(path, format, given, trust=False))
    campaign(f"{form} checkpoint", edits(len(content)), trial, 45, folder=folder, names=[path.name])


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_damaged_checkpoints_that_are_trusted(form: str, folder: Path) -> None:
    path = foreign.training_file(folder / "w.pt")
    if form == "legacy":
        torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    trial = damaged_file(path, content, lambda: convert_file(path, "facm", {"depth": 2}, trust=True))
    campaign(f"trusted {form} checkpoint", edits(len(content)), trial, 100, folder=folder, names=[path.name])


def test_damaged_pickles_of_edm(folder: Path) -> None:
    net = foreign.randomised(
        miniature.checkpoint.backbones.build("ddpmpp", miniature.SHALLOW, shape=(3, 4, 4), num_classes=0)
    )
    path = foreign.edm_pickle(folder / "w.pkl", net, folder / "ran")
    content = path.read_bytes()
    trial = damaged_file(path, content, lambda: convert_file(path, "edm", {}, trust=True))
    campaign("edm pickle", edits(len(content)), trial, 120, folder=folder, names=[path.name])
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("case", CASES)
def test_published_checkpoints_of_other_tensors(case: str, folder: Path) -> None:
    format, _ = CASES[case]
    weights, given = state(format)
    path = folder / "w.safetensors"
    path.write_bytes(save(weights))
    convert_file(path, format, given, trust=False)

    def trial(changes: Any) -> Callable[[], Any]:
        path.write_bytes(save(retensored(weights, changes)))
        return lambda: convert_file(path, format, given, trust=False)

    campaign("checkpoint of other tensors", retensorings(), trial, 60, folder=folder, names=[path.name])


@pytest.mark.parametrize("case", ["facm training", "lightningdit", "sit"])
def test_published_checkpoints_of_other_content(case: str, folder: Path) -> None:
    """What is beside the weights, and the weights' places: other types, other names, other nesting."""
    format, _ = CASES[case]
    weights, given = state(format)
    few = dict(list(weights.items())[:6])
    path = folder / "w.pt"

    def trial(drawn: Any) -> Callable[[], Any]:
        changes, which, all_of_them = drawn
        content = CONTAINERS[which](weights if all_of_them else few)
        torch.save(rewritten(content, changes), path)
        return lambda: convert_file(path, format, given, trust=False)

    inputs = st.tuples(rewritings(), st.sampled_from(sorted(CONTAINERS)), st.booleans())
    campaign("checkpoint of other content", inputs, trial, 100, folder=folder, names=[path.name])


SETTINGS: dict[str, dict[str, Any]] = {
    "sit": {"path_type": "Linear", "prediction": "velocity", "num_classes": CLASSES, "lr": 1e-4},
    "repa": {"path_type": "linear", "prediction": "v", "num_classes": CLASSES, "cfg_prob": 0.1, "qk_norm": False},
    "lightningdit": {
        "data": {"num_classes": CLASSES, "latent_norm": False, "latent_multiplier": 1.0},
        "model": {"use_qknorm": True, "use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "wo_shift": False},
        "transport": {"path_type": "Linear", "prediction": "velocity", "loss_weight": None},
    },
}
"""What authors store beside their weights; latents are not normalised here, so that no statistics are needed."""
SWITCHED = {"use_swiglu": "swiglu", "use_qknorm": "qk_norm", "qk_norm": "qk_norm", "use_rope": "rope"}
WORDS = ["Linear", "linear", "GVP", "VP", "cosine", "velocity", "v", "noise", "score", "SiT-XL/2", "DiT-B/2", "x-y"]


def leaves(value: dict[Any, Any]) -> list[tuple[str, Any]]:
    """Last names and values of what is no mapping."""
    found = []
    for name, inner in value.items():
        found += leaves(inner) if isinstance(inner, dict) else [(str(name).rpartition(".")[2], inner)]
    return found


@pytest.mark.parametrize("format", SETTINGS)
def test_checkpoints_that_tell_their_settings(format: str, folder: Path) -> None:
    """What a file says of its path, prediction, classes and switches holds for what is made of it, or it is refused."""
    weights, given = state(format)
    given = {name: value for name, value in given.items() if name != "classes"}
    path, described = folder / "w.pt", SETTINGS[format]
    torch.save({"ema": weights, "args": described}, path)
    convert_file(path, format, given, trust=False)

    def trial(drawn: Any) -> Callable[[], Any]:
        entry, namespace, more, changes = drawn
        told = rewritten(described | more, changes)
        named = namespace and isinstance(told, dict) and all(isinstance(name, str) for name in told)
        torch.save({"ema": weights, entry: argparse.Namespace(**told) if named else told}, path)

        def read() -> None:
            _, config = converted(path, format, given, trust=named)
            for name, value in leaves({entry: told}):
                if value is None:
                    continue
                if name == "path_type" and value not in ("Linear", "linear"):
                    raise Wrong(f"a path {value!r} is read as straight")
                if name == "prediction" and value not in ("velocity", "v"):
                    raise Wrong(f"a prediction of {value!r} is read as the velocity")
                if name == "num_classes" and value != config.num_classes:
                    raise Wrong(f"{config.num_classes} classes of {value!r}")
                if name in SWITCHED and config.constants.get(SWITCHED[name], False) is not value:
                    raise Wrong(f"{name} {value!r} makes {SWITCHED[name]} {config.constants.get(SWITCHED[name])!r}")

        return read

    value = st.one_of(st.sampled_from(WORDS), plain(), st.sampled_from([0, 1, CLASSES, CLASSES + 1, True, False, 0.0]))
    more = st.dictionaries(st.sampled_from(sorted(settings.NAMES)), value, max_size=2)
    entry = st.sampled_from(["args", "config", "opt", "hparams"])
    changes = st.one_of(st.just([]), rewritings(1), rewritings())
    inputs = st.tuples(entry, st.booleans(), more, changes)
    campaign("checkpoint's settings", inputs, trial, 100, folder=folder, names=[path.name])


def test_a_pinned_checkpoint_is_refused_after_any_damage(folder: Path) -> None:
    weights, given = state("sit")
    path = folder / "w.safetensors"
    content = save(weights)
    path.write_bytes(content)
    pin = files.sha256(path)

    def trial(changes: Any) -> Callable[[], Any]:
        damaged = edited(content, changes)
        path.write_bytes(damaged)

        def read() -> None:
            convert_file(path, "sit", given, trust=False, pin=pin)
            if damaged != content:
                raise Wrong("damage that the sha256 tells is passed over")

        return read

    campaign("pinned checkpoint", edits(len(content)), trial, 250, folder=folder, names=[path.name])


@pytest.fixture
def own(folder: Path) -> Path:
    """A checkpoint folder of ours."""
    data = miniature.write_latents(folder / "latents")
    miniature.write_checkpoint(folder / "own", data)
    shutil.rmtree(folder / "own-snapshots")
    return folder / "own"


def read_own(folder: Path) -> dict[str, Tensor]:
    """The weights of one of our folders; its description must hold together."""
    made, config = checkpoint.load(folder)
    if len(config.mean) != config.shape[0] or len(config.std) != config.shape[0]:
        raise Wrong("statistics of other channels than the latents")
    if not all(s > 0 and s < float("inf") for s in config.std) or not all(abs(m) < float("inf") for m in config.mean):
        raise Wrong("statistics that are not finite, or a std that is not above 0")
    return dict(made.state_dict())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files_of_our_own_checkpoints(name: str, own: Path) -> None:
    path = own / name
    content = path.read_bytes()
    before = read_own(own)

    def trial(changes: Any) -> Callable[[], Any]:
        damaged = edited(content, changes)
        path.write_bytes(damaged)

        def read() -> None:
            found = read_own(own)
            if not same(found, before):
                raise Wrong("other weights than those whose sha256 config.json has")

        return read

    campaign(f"own {name}", edits(len(content)), trial, 300, folder=own, names=[str(own)])


def test_config_json_of_other_values(own: Path) -> None:
    path, before = own / "config.json", read_own(own)
    described = json.loads(path.read_text())

    def trial(drawn: Any) -> Callable[[], Any]:
        path.write_bytes(drawn if isinstance(drawn, bytes) else as_json(rewritten(described, drawn)))

        def read() -> None:
            if not same(read_own(own), before):
                raise Wrong("other weights than those that are there")

        return read

    inputs = st.one_of(rewritings(), rewritings(), rewritings(1), st.sampled_from(DEEP))
    campaign("own config.json values", inputs, trial, 120, folder=own, names=[str(own)])


def test_top_level_values_of_config_json(own: Path) -> None:
    path, before = own / "config.json", read_own(own)
    described = json.loads(path.read_text())
    names = [name for name in described if name != "params"]

    def trial(drawn: Any) -> Callable[[], Any]:
        path.write_bytes(as_json(described | drawn))

        def read() -> None:
            if not same(read_own(own), before):
                raise Wrong("other weights than those that are there")

        return read

    inputs = st.dictionaries(st.sampled_from(names), plain(), min_size=1, max_size=2)
    campaign("own config.json values", inputs, trial, 250, folder=own, names=[str(own)])


def test_own_checkpoints_of_other_tensors(own: Path) -> None:
    path, weights = own / "model.safetensors", load_file(own / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    described = json.loads((own / "config.json").read_text())

    def trial(changes: Any) -> Callable[[], Any]:
        path.write_bytes(save(retensored(weights, changes)))
        (own / "config.json").write_text(json.dumps(described | {"sha256": files.sha256(path)}))
        return lambda: read_own(own)

    campaign("own weights", retensorings(), trial, 90, folder=own, names=[str(own)])


def test_snapshots_of_other_tensors_and_names(own: Path) -> None:
    path = sorted((own / "ema").iterdir())[0]
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    content, kept = path.read_bytes(), path.name
    names = st.sampled_from(
        [
            kept,
            "step1_sigma.safetensors",
            "stepx_sigmay.safetensors",
            "step00000002_sigma0.05.safetensors",
            "step_sigma0.1_sigma0.2.safetensors",
            "step9_sigmanan.safetensors",
            "step-3_sigma0.1.safetensors",
            "step00000003_sigma9.safetensors",
            "step0_sigma0.1.safetensors",
            "step٣_sigma0.1.safetensors",
        ]
    )

    def trial(drawn: Any) -> Callable[[], Any]:
        changes, name, damage = drawn
        for old in (own / "ema").iterdir():
            if old.name not in others:
                old.unlink()
        (own / "ema" / name).write_bytes(edited(content, damage) if damage else save(retensored(weights, changes)))

        return lambda: checkpoint.load(own, 0.1)

    others = {other.name for other in (own / "ema").iterdir()} - {kept}
    inputs = st.tuples(retensorings(), names, st.one_of(st.just([]), edits(len(content))))
    campaign("own snapshots", inputs, trial, 200, folder=own, names=[str(own)])


@pytest.fixture
def out(own: Path) -> Path:
    """An exported folder, without the page around it."""
    pytest.importorskip("diffusers")
    made, config = checkpoint.load(own)
    target = own.parent / "out"
    target.mkdir()
    exported.write(target, made, config)
    return target


@pytest.mark.parametrize("name", [exported.INDEX, "network/config.json", f"network/{exported.WEIGHTS}"])
def test_exported_folders(name: str, out: Path) -> None:
    path = out / name
    content = path.read_bytes()
    before = dict(exported.load(out).network.state_dict())
    value = json.loads(content) if name.endswith(".json") else None

    def trial(drawn: Any) -> Callable[[], Any]:
        kind, changes = drawn
        damaged = (
            changes
            if isinstance(changes, bytes)
            else edited(content, changes)
            if kind == "bytes"
            else as_json(rewritten(value, changes))
        )
        path.write_bytes(damaged)

        def read() -> None:
            found = dict(exported.load(out).network.state_dict())
            if name.endswith(".json") and not same(found, before):
                raise Wrong("other weights than those that are there")

        return read

    damage = st.tuples(st.just("bytes"), st.one_of(edits(len(content)), edits(len(content)), st.sampled_from(DEEP)))
    values = st.tuples(st.just("values"), rewritings())
    inputs = st.one_of(damage, values, values) if value is not None else damage
    campaign("exported folder", inputs, trial, 160, folder=out, names=[str(out)])


@pytest.mark.parametrize("reader", ["convert", "latents"])
def test_latents_stats(reader: str, folder: Path) -> None:
    path = folder / "latents_stats.pt"
    stats = {"mean": torch.randn(1, 4, 1, 1), "std": torch.rand(1, 4, 1, 1) + 0.1}
    torch.save(stats, path)
    content = path.read_bytes()

    def trial(drawn: Any) -> Callable[[], Any]:
        kind, changes = drawn
        if kind == "bytes":
            path.write_bytes(edited(content, changes))
        elif kind == "tensors":
            torch.save(retensored(stats, changes, safe=False), path)
        else:
            torch.save(rewritten(stats, changes), path)

        def read() -> None:
            if reader == "convert":
                mean, std = (torch.tensor(values) for values in read_statistics(path))
            else:
                found = normalise.read(path)
                mean, std = found["mean"], found["std"]
            if mean.shape != std.shape or mean.ndim != 1 or not mean.isfinite().all() or not std.isfinite().all():
                raise Wrong("statistics that are not finite, or of two lengths")
            if not (std > 0).all():
                raise Wrong("a std that is not above 0")

        return read

    inputs = st.one_of(
        st.tuples(st.just("bytes"), edits(len(content))),
        st.tuples(st.just("tensors"), retensorings()),
        st.tuples(st.just("values"), rewritings()),
    )
    campaign("latents_stats.pt", inputs, trial, 300, folder=folder, names=[path.name])


def test_which_feature_weights(folder: Path) -> None:
    path, pinned = folder / "network.safetensors", "ab" * 32
    feature_weights.save(path, pinned)
    content, tensors = path.read_bytes(), {name: t.clone() for name, t in load_file(path).items()}

    def trial(drawn: Any) -> Callable[[], Any]:
        kind, changes = drawn
        path.write_bytes(edited(content, changes) if kind == "bytes" else save(retensored(tensors, changes)))
        return lambda: feature_weights.check(path, "inception", pinned)

    inputs = st.tuples(st.just("bytes"), edits(len(content))) | st.tuples(st.just("tensors"), retensorings())
    campaign("feature weights", inputs, trial, 250, folder=folder, names=[path.name])
