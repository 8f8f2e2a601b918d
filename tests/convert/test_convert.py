"""FACM and LightningDiT checkpoints become our folders and go back, bit for bit; what does not fit is told."""

import argparse
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import inputs, network, release_file, stats_file, training_file, transformer_file
from ldm_reference import random_weights
from miniature import write_checkpoint, write_latents
from oracle import golden, golden_network
from safetensors.torch import load_file, save_file

import facm
from facm import convert
from facm.convert import __main__ as command
from facm.convert import weights
from facm.convert.export import read_statistics
from facm.data.codecs.sd_vae import SdVae
from facm.data.codecs.va_vae import VaVae
from facm.networks import checkpoint
from facm.runtime import foreign
from facm.runtime.foreign import ForeignError

STUDENT = golden("expanded/student/")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    """The command, in an empty folder with a latents_stats.pt and a codec that the small files can name."""
    monkeypatch.chdir(tmp_path)
    stats_file(Path("latents_stats.pt"))

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["convert", *arguments])
        command.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run):
    """The message with which the command ends."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert not Path("out").exists(), "nothing is left where a source is refused"
        return str(ended.value)

    return call


FACM = ("--from", "facm", "--stats", "latents_stats.pt", "--codec", "identity", "--out", "out")
LDIT = ("--from", "lightningdit", *FACM[2:])
FIVE = ("--set", "classes=5")  # of the small files, whose six labels may be six classes


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# FACM


def test_a_released_student_answers_as_the_authors_code_recorded(run) -> None:
    told = run(str(release_file(Path("x.pt"), STUDENT)), *FACM, "--kind", "student")
    loaded, config = checkpoint.load("out")
    assert same(load_file("out/model.safetensors"), STUDENT)
    assert f"out: sha256 {config.sha256}" in told
    g = golden()
    x1, t, y = g["x1"], g["t"], g["y"]
    torch.testing.assert_close(loaded(x1, t, y), g["expanded/out_cm"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded(x1, 2 - t, y), g["expanded/out_fm"], rtol=1e-5, atol=1e-5)
    assert (config.kind, config.objective, config.conditioning) == ("student", "facm", "expanded")
    assert config.samplers[0] == "consistency" and config.knows_fm_format
    assert facm.load("out").generate([1, 2], nfe=2, seed=0).shape == (2, 4, 4, 4)


def test_config_json_tells_what_the_source_was_and_what_is_not_known(run) -> None:
    path = release_file(Path("x.pt"), STUDENT)
    run("x.pt", *FACM)
    config = checkpoint.read_config("out")
    assert (config.kind, config.objective, config.codec) == ("teacher", "fm", "identity")
    assert (config.shape, config.num_classes, config.fraction) == ((4, 4, 4), 1000, 0.5)
    assert config.mean == pytest.approx([-0.3, -0.0667, 0.1667, 0.4], abs=1e-4)
    assert config.std == pytest.approx([0.5, 1.0, 1.5, 2.0])
    told = {"source": "x.pt", "format": "facm", "sha256": checkpoint.sha256(path), "averaged": True, "step": None}
    assert config.params == {"imported": told | {"settings": {}}}
    assert (config.sigma_rel, config.step) == (0.2, 0)
    found = {"patch_size": 1, "hidden": 32, "depth": 2, "heads": 2, "mlp_ratio": 4.0, "shift": True}
    assert found | {"qk_norm": True, "rms_norm": True, "swiglu": True, "rope": True} == config.constants


@pytest.mark.parametrize(("profile", "role"), [("0.2", "student"), ("0.05", "teacher")])
def test_of_a_training_file_the_average_asked_for_is_taken(profile: str, role: str, run) -> None:
    run(str(training_file(Path("x.pt"))), *FACM, "--trust-pickle", "--profile", profile)
    assert same(load_file("out/model.safetensors"), golden(f"expanded/{role}/"))
    config = checkpoint.read_config("out")
    assert (config.sigma_rel, config.step) == (float(profile), 7)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", ""])
def test_raw_weights_lose_the_prefixes_of_wrappers(prefix: str, run) -> None:
    training_file(Path("x.pt"), prefix=prefix)
    run("x.pt", *FACM, "--trust-pickle", "--which", "model")
    assert same(load_file("out/model.safetensors"), {name: tensor + 1 for name, tensor in STUDENT.items()})
    assert checkpoint.read_config("out").sigma_rel is None


def test_a_prefix_within_a_name_is_dropped_and_a_name_that_is_there_twice_refused() -> None:
    found = weights.stripped({"blocks.0._orig_mod.attn.w": torch.ones(1)}, Path("x"))
    assert list(found) == ["blocks.0.attn.w"]
    with pytest.raises(ForeignError, match="x has 'a' twice, with and without the prefix"):
        weights.stripped({"a": torch.ones(1), "module.a": torch.ones(1)}, Path("x"))


def test_an_auxiliary_network_is_known_by_its_second_embedder(run) -> None:
    run(str(release_file(Path("x.pt"), golden("aux/student/"))), *FACM)
    loaded, config = checkpoint.load("out")
    g = golden()
    torch.testing.assert_close(
        loaded(g["x1"], g["t"], g["y"], torch.ones_like(g["t"])), g["aux/out_cm"], rtol=1e-5, atol=1e-5
    )
    assert config.conditioning == "auxiliary"


def test_buffers_that_a_file_lacks_are_made_anew_and_nothing_else_is(run) -> None:
    lacking = {name: w for name, w in STUDENT.items() if not name.startswith(("pos_embed", "feat_rope."))}
    run(str(release_file(Path("x.pt"), lacking)), *FACM, "--set", "side=4", "--set", "rope=true")
    stored = load_file("out/model.safetensors")
    assert stored.keys() == STUDENT.keys()
    for name in STUDENT:
        torch.testing.assert_close(stored[name], STUDENT[name], rtol=0, atol=1e-6)


def test_sCMs_loss_weights_are_dropped(run) -> None:
    run(str(release_file(Path("x.pt"), STUDENT | {"AdaLoss.logvar.1.weight": torch.ones(1)})), *FACM)
    assert same(load_file("out/model.safetensors"), STUDENT)


# LightningDiT


def test_lightningdit_without_qk_norm_is_a_plain_teacher(run) -> None:
    theirs = network("lightningdit", qk_norm=False)
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"model": state, "ema": state, "opt": {}, "config": {"lr": 2e-4}}, "x.pt")
    run("x.pt", *LDIT, *FIVE)
    loaded, config = checkpoint.load("out")
    assert config.constants["qk_norm"] is False and config.conditioning == "plain" and not config.knows_fm_format
    x, t, y = inputs()
    assert torch.equal(loaded(x, t, y), theirs(x, t, y)), "t = 1 is data there, too: nothing is changed"


def test_other_switches_and_half_precision_are_read_from_the_shapes(run) -> None:
    sizes = {"rms_norm": False, "swiglu": False, "shift": False, "mlp_ratio": 3.0, "qk_norm": False}
    theirs = network("lightningdit", **sizes)
    save_file({name: tensor.half() for name, tensor in theirs.state_dict().items()}, "x.safetensors")
    run("x.safetensors", *LDIT, *FIVE)
    loaded, config = checkpoint.load("out")
    assert config.constants.items() >= sizes.items()
    x, t, y = inputs()
    torch.testing.assert_close(loaded(x, t, y), theirs(x, t, y), rtol=2e-2, atol=2e-2)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())


def test_a_file_without_ropes_tables_needs_to_be_told_whether_there_is_rope(run, refused) -> None:
    """With and without, the same weights are two functions."""
    release_file(Path("x.pt"), {name: w for name, w in STUDENT.items() if not name.startswith("feat_rope.")})
    told = refused("x.pt", *FACM)
    assert "x.pt has no feat_rope.*" in told and "--set rope=true or --set rope=false (in params.yaml: backb" in told
    for rope in (True, False):
        told = run("x.pt", *FACM, "--set", f"rope={str(rope).lower()}")
        assert f"'rope': {rope}" in told and checkpoint.read_config("out").constants["rope"] is rope
        assert ("feat_rope.freqs_cos" in load_file("out/model.safetensors")) == rope


def test_tables_of_rope_are_not_dropped_where_it_is_said_to_be_absent(refused) -> None:
    told = refused(str(release_file(Path("x.pt"), STUDENT)), *FACM, "--set", "rope=false")
    assert "\n  unexpected: feat_rope.freqs_cos" in told


# Codec


def test_a_network_of_other_channels_than_its_codec_is_refused(refused, run) -> None:
    architecture = VaVae.architecture
    weights = random_weights(32, architecture.multipliers, architecture.channels, architecture.attention)
    save_file(weights, "vae.safetensors")
    sit = (str(transformer_file(Path("x.pt"))), "--from", "sit", "--set", "heads=2", *FIVE, "--out", "out")
    told = refused(*sit, "--codec", "va_vae", "--vae", "vae.safetensors")
    assert "x.pt has latents of 4 channels, codec 'va_vae' makes 32: set --codec" in told
    told = run(*sit, "--codec", "identity")
    assert "codec identity: sit was published with sd_vae; no file tells its codec" in told


def test_the_codecs_weights_travel_with_a_converted_network(run, refused) -> None:
    architecture = SdVae.architecture
    save_file(random_weights(32, architecture.multipliers, 4, architecture.attention), "vae.safetensors")
    transformer_file(Path("x.pt"))
    sit = ("x.pt", "--from", "sit", "--set", "heads=2", *FIVE, "--out", "out")
    assert "--vae None: codec 'sd_vae' needs its weights (folder, hub name or file)" in refused(*sit)
    told = refused(*sit, "--codec", "identity", "--vae", "vae.safetensors")
    assert "--vae vae.safetensors: codec 'identity' has no weights" in told
    run(*sit, "--vae", "vae.safetensors")
    config = checkpoint.read_config("out")
    assert convert.other_codec("sit", "sd_vae") is None
    assert config.codec == "sd_vae" and config.codec_options["vae_sha256"] == checkpoint.sha256("vae.safetensors")
    assert facm.load("out").generate([1, 4], nfe=1, sampler="euler").shape == (2, 64, 64, 3)


# Refused


def test_every_name_that_does_not_fit_is_told(refused) -> None:
    changed = dict(STUDENT)
    gone = [name for name in STUDENT if name.startswith("blocks.1.attn")]
    for name in gone:
        del changed[name]
    changed |= {f"extra.{i}": torch.ones(1) for i in range(7)}
    changed["blocks.0.mlp.w3.bias"] = torch.ones(3)
    told = refused(str(release_file(Path("x.pt"), changed)), *FACM)
    assert all(f"\n  missing: {name}" in told for name in gone) and len(gone) == 6
    assert all(f"\n  unexpected: extra.{i}" in told for i in range(7))
    assert "\n  of another shape: blocks.0.mlp.w3.bias: (3,), needed (32,)" in told
    assert len(told.splitlines()) == 1 + 6 + 7 + 1


REFUSED: list[tuple[str, Any, tuple[str, ...], str]] = [
    ("raw alone", {"model": STUDENT}, (), "has no 'ema', it has model; --which model takes its raw weights"),
    ("no raw ones", {"ema": STUDENT}, ("--which", "model"), "has no 'model', it has ema"),
    ("bare", STUDENT, ("--which", "model"), "holds one set of weights without telling which"),
    ("a list", [1], (), "x.pt holds a list, no checkpoint"),
    ("no tensors", {"ema": {"w": 1}}, (), "x.pt, 'ema' is no state dict"),
    ("one average", {"emas": {"ema_models.0.ema_model.w": torch.ones(1)}}, (), "has averages ['0'], known are 0 and 1"),
    ("another network", {"ema": {"conv.weight": torch.ones(1)}}, (), "x.pt lacks x_embedder.proj.weight, y_embedder."),
    ("nan", {"ema": STUDENT | {"pos_embed": STUDENT["pos_embed"] * torch.nan}}, (), "not finite in pos_embed: fetch"),
    ("channels", {"ema": STUDENT}, ("--stats", "three.pt"), "latents of 4 channels, the statistics are of 3"),
    ("pin", {"ema": STUDENT}, ("--sha256", "0" * 64), f"pinned is {'0' * 64}: it is another file than the pinned one"),
    ("constant", {"ema": STUDENT}, ("--set", "hedas=2"), "unknown 'hedas' (did you mean 'heads'?)"),
    ("no value", {"ema": STUDENT}, ("--set", "heads"), "--set 'heads': write NAME=VALUE, such as heads=16"),
    ("codec", {"ema": STUDENT}, ("--codec", "identiti"), "unknown 'identiti' (did you mean 'identity'?)"),
    ("format", {"ema": STUDENT}, ("--from", "fcam"), "unknown 'fcam' (did you mean 'facm'?)"),
    ("kind", {"ema": STUDENT}, ("--from", "sit", "--kind", "student"), "'sit' publishes no few-step students"),
]


@pytest.mark.parametrize(("content", "arguments", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_converted_is_refused(content: Any, arguments: tuple[str, ...], message: str, refused) -> None:
    torch.save(content, "x.pt")
    stats_file(Path("three.pt"), channels=3)
    assert message in refused("x.pt", *FACM, *arguments)


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("x_embedder.proj.weight", torch.ones(32, 4), "(32, 4), needed (hidden, channels, patch, patch)"),
        ("x_embedder.proj.weight", torch.ones(32, 4, 0, 0), "(32, 4, 0, 0), needed (hidden, channels, patch, patch)"),
        ("final_layer.linear.weight", torch.tensor(1.0), "(), needed (patch patch channels, hidden)"),
        ("pos_embed", torch.ones(16), "(16,), needed (1, tokens, hidden)"),
        ("feat_rope.freqs_cos", torch.ones(0, 16), "(0, 16), needed (tokens, head)"),
        ("blocks.0.attn.q_norm.weight", torch.tensor(1.0), "(), needed (head)"),
        ("blocks.0.mlp.w3.weight", torch.ones(3), "(3,), needed (hidden, width)"),
        ("blocks.0.adaLN_modulation.1.bias", torch.tensor(1.0), "(), needed (parts hidden)"),
    ],
)
def test_a_weight_that_tells_sizes_and_is_misshapen_is_told(name: str, tensor: Any, told: str, refused) -> None:
    message = refused(str(release_file(Path("x.pt"), STUDENT | {name: tensor})), *FACM)
    assert "x.pt has weights of another shape" in message and f"\n  {name}: {told}, each at least 1" in message


def test_blocks_without_a_number_are_unexpected(refused) -> None:
    changed = STUDENT | {"blocks.x.attn.qkv.weight": torch.ones(1), "blocks.": torch.ones(1)}
    told = refused(str(release_file(Path("x.pt"), changed)), *FACM).splitlines()
    assert told[1:] == ["  unexpected: blocks.x.attn.qkv.weight", "  unexpected: blocks."]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda w: w.to(torch.int8), "int8, strided"),
        (lambda w: w.to(torch.complex64), "complex64, strided"),
        (lambda w: w.to(torch.float8_e4m3fn), "float8_e4m3fn, strided"),
        (lambda w: w > 0, "bool, strided"),
        (lambda w: w.to_sparse(), "float32, sparse_coo"),
        (lambda w: w.to("meta"), "float32, strided, without values"),
    ],
)
def test_a_tensor_that_is_no_dense_float_is_told_by_name(changed: Any, told: str, refused) -> None:
    names = ("blocks.1.mlp.w3.weight", "t_embedder.mlp.0.weight", "final_layer.linear.bias")
    state = STUDENT | {name: changed(STUDENT[name]) for name in names}
    lines = refused(str(release_file(Path("x.pt"), state)), *FACM).splitlines()
    rest = f"{told}; needed one of float16, bfloat16, float32, float64, strided (dense)"
    assert sorted(lines[1:]) == sorted(f"  of another kind: {name}: {rest}" for name in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_floats_in_which_weights_are_published_are_taken(dtype: torch.dtype, run) -> None:
    run(str(release_file(Path("x.pt"), {name: w.to(dtype) for name, w in STUDENT.items()})), *FACM)
    assert same(load_file("out/model.safetensors"), {name: w.to(dtype).float() for name, w in STUDENT.items()})


@pytest.mark.parametrize("name", ["side", "depth", "heads"])
@pytest.mark.parametrize("value", ["many", "0", "true", "none"])
def test_constants_that_are_reckoned_with_are_whole_numbers(name: str, value: str, refused) -> None:
    told = refused(str(release_file(Path("x.pt"), STUDENT)), *FACM, "--set", f"{name}={value}")
    assert f"x.pt: {name} {command.constant(f'a={value}')[1]!r} must be a whole number of at least 1" in told


def test_a_width_that_tells_no_heads_needs_them(refused, run) -> None:
    theirs = network("lightningdit", qk_norm=False, rope=False)
    torch.save(theirs.state_dict(), "x.pt")
    assert "has width 32, and nothing in it tells the number of heads: --set heads=N" in refused("x.pt", *LDIT)
    run("x.pt", *LDIT, *FIVE, "--set", "heads=2", "--set", "rope=false")
    x, t, y = inputs()
    assert torch.equal(checkpoint.load("out")[0](x, t, y), theirs(x, t, y))


def test_statistics_are_needed_where_the_authors_normalise(refused) -> None:
    release_file(Path("x.pt"), STUDENT)
    told = refused("x.pt", "--from", "facm", "--codec", "identity", "--out", "out")
    assert "'facm' normalises its latents: give the latents_stats.pt that belongs to the checkpoint" in told
    torch.save({"mean": torch.zeros(4)}, "latents_stats.pt")
    assert "latents_stats.pt holds no 'mean' and 'std'" in refused("x.pt", *FACM)
    torch.save({"mean": torch.zeros(4), "std": torch.zeros(4)}, "latents_stats.pt")
    assert "which must be as many and above 0" in refused("x.pt", *FACM)
    torch.save({"mean": torch.zeros(4), "std": torch.full((4,), torch.inf)}, "latents_stats.pt")
    assert "latents_stats.pt: 'std' is not finite, [inf, " in refused("x.pt", *FACM)
    torch.save({"mean": "abc", "std": torch.ones(4)}, "latents_stats.pt")
    assert "latents_stats.pt: 'mean' is a str, not numbers" in refused("x.pt", *FACM)
    for std in (torch.ones(2, 2), torch.ones(4) * 1j, torch.ones(4, dtype=torch.bool)):
        torch.save({"mean": torch.zeros(4), "std": std}, "latents_stats.pt")
        told = refused("x.pt", *FACM)
        assert f"'std' is {std.dtype} {tuple(std.shape)}, it must be a real number per channel" in told
    for std, message in ((1e-60, "4 stds, which must be as many and above 0"), (1e60, "'std' is not finite")):
        torch.save({"mean": torch.zeros(4), "std": torch.full((4,), std, dtype=torch.float64)}, "latents_stats.pt")
        assert message in refused("x.pt", *FACM), "in float32, in which it is used"


def test_a_missing_source_and_a_folder_of_something_else_are_told(run, refused) -> None:
    assert "x.pt is missing: check the path" in refused("x.pt", *FACM)
    release_file(Path("x.pt"), STUDENT)
    Path("photos").mkdir()
    told = refused("x.pt", *FACM[:-1], "photos")
    assert "photos is there and no checkpoint folder: choose another --out" in told and Path("photos").is_dir()
    run("x.pt", *FACM)
    run("x.pt", *FACM)  # one of ours is replaced
    Path("dvc.yaml").write_text("stages:\n  teacher:\n    outs:\n    - out\n")
    with pytest.raises(SystemExit, match="--out out belongs to out, which is made by a stage of .*dvc.yaml"):
        run("x.pt", *FACM)


# Pickles


class Evil:
    """What a hostile file holds."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.ran),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_names_code_is_refused_and_even_trusted_none_of_it_runs(zipped: bool, refused, run) -> None:
    ran = Path("ran").absolute()
    content = {"ema": STUDENT, "args": argparse.Namespace(lr=1), "evil": Evil(ran)}
    torch.save(content, "x.pt", _use_new_zipfile_serialization=zipped)
    told = refused("x.pt", *FACM)
    assert "x.pt holds more than tensors and plain values (" in told and "add --trust-pickle" in told
    run("x.pt", *FACM, "--trust-pickle")
    assert same(load_file("out/model.safetensors"), STUDENT) and not ran.exists()


def test_a_whole_module_is_read_as_its_tensors(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    module[1].register_buffer("passing", torch.ones(1), persistent=False)
    path, ran = tmp_path / "x.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"ema": module, "evil": Evil(ran)}))
    with pytest.raises(ForeignError, match=r"x\.pkl holds more than .* \(it is a pickle of Python objects\)"):
        foreign.read(path)
    content = foreign.read(path, trust=True)
    found = weights.module_state(content["ema"])
    assert found is not None and same(found, dict(module.state_dict())) and not ran.exists()
    assert content["evil"].name in ("posix.mkdir", "nt.mkdir") and content["evil"].arguments == (str(ran),)


class Writes(torch.nn.Module):
    """A program that writes a file as soon as torch.jit.load makes it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state
        self.training = bool(torch.from_file(self.path, True, 4, dtype=torch.uint8).fill_(65).sum() > 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("trust", [False, True])
def test_a_program_is_refused_trusted_or_not_and_does_not_run(trust: bool, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Writes(str(tmp_path / "ran"))), tmp_path / "x.pt")
    with pytest.raises(ForeignError, match=r"x\.pt is a TorchScript archive, whose code torch would run"):
        foreign.read(tmp_path / "x.pt", trust=trust)
    assert not (tmp_path / "ran").exists()
    torch.jit.load(tmp_path / "x.pt")
    assert (tmp_path / "ran").exists(), "torch would have run it"


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("content", [b"", b"<html>", b"version https://git-lfs", b"PK\x03\x04", b"\x80\x04x"])
def test_a_damaged_file_is_named(content: bytes, trust: bool, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    pickled = content.startswith(b"\x80") and not trust
    told = "holds more than tensors" if pickled else "is damaged, or no checkpoint"
    with pytest.raises(ForeignError, match=rf"x\.pt {told}"):
        foreign.read(tmp_path / "x.pt", trust=trust)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_file_with_changed_bytes_is_read_or_refused_and_nothing_else_happens(kind: str, tmp_path: Path) -> None:
    content = {"ema": {"w": torch.ones(3)}, "args": argparse.Namespace(x=1)}
    path, random = tmp_path / "x.pt", np.random.default_rng(0)
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"ema": torch.nn.Linear(2, 2)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        changed = bytearray(whole[: None if random.random() < 0.7 else random.integers(len(whole))])
        if changed:
            changed[random.integers(len(changed))] = random.integers(256)
        path.write_bytes(changed)
        for trust in (False, True):
            try:
                weights.choose(foreign.read(path, trust=trust), path)
            except ForeignError:
                refused += 1
    assert refused > 60


# Export


@pytest.mark.parametrize("case", ["expanded", "aux"])
def test_a_student_goes_to_the_authors_layout_and_back_bit_for_bit(case: str, run, tmp_path: Path) -> None:
    theirs = golden(f"{case}/student/")
    run(str(release_file(Path("x.pt"), theirs)), *FACM, "--kind", "student")
    told = run("out", "--to", "facm", "--out", "back.pt", "--stats", "stats.pt")
    content = torch.load("back.pt", weights_only=True)
    assert content.keys() == {"ema", "_extracted_from"} and same(content["ema"], theirs)
    assert read_statistics(Path("stats.pt")) == read_statistics(Path("latents_stats.pt"))
    assert "use_qknorm: True" in told and f"auxiliary_time_cond: {case == 'aux'}" in told
    first = Path("out/model.safetensors").read_bytes()
    run("back.pt", *FACM, "--kind", "student")
    assert Path("out/model.safetensors").read_bytes() == first
    assert checkpoint.read_config("out").sigma_rel == 0.2, "as the file tells"


def test_a_trained_students_names_and_shapes_are_those_of_the_authors(run, tmp_path: Path) -> None:
    latents = write_latents(Path("latents"), channels=4, classes=1000, num=8)
    sizes = {"patch_size": 1, "hidden": 32, "depth": 2, "heads": 2}
    changes = {f"backbones__lightningdit__{name}": size for name, size in sizes.items()}
    write_checkpoint(Path("student"), latents, kind="student", **changes)
    run("student", "--to", "facm", "--out", "x.pt", "--sigma-rel", "0.1")
    exported = torch.load("x.pt", weights_only=True)["ema"]
    assert {name: w.shape for name, w in exported.items()} == {name: w.shape for name, w in STUDENT.items()}
    synthesised = checkpoint.synthesize("student", 0.1)
    assert same(exported, synthesised)
    authors = golden_network("expanded", "student")
    authors.load_state_dict(exported, strict=True)


def test_what_the_authors_code_does_not_have_is_not_exported(run, refused) -> None:
    latents = write_latents(Path("latents"), classes=0)
    write_checkpoint(Path("student"), latents, kind="student", backbones__lightningdit__pos_embed=False)
    told = refused("student", "--to", "facm", "--out", "x.pt")
    assert told.endswith("code: it has no classes; it has no pos_embed, which theirs always adds")
    assert not Path("x.pt").exists()
    assert re.search("x is no checkpoint", refused("x", "--to", "facm", "--out", "x.pt"))


def test_a_source_within_the_folder_that_would_be_replaced_is_refused(run) -> None:
    run(str(release_file(Path("x.pt"), STUDENT)), *FACM)
    Path("x.pt").rename("out/x.pt")
    with pytest.raises(SystemExit, match="out/x.pt lies in out, which is replaced as a whole"):
        run("out/x.pt", *FACM)
    assert Path("out/x.pt").is_file()


def test_an_export_overwrites_neither_its_source_nor_what_a_stage_makes(run) -> None:
    run(str(release_file(Path("x.pt"), STUDENT)), *FACM)
    whole = Path("out/model.safetensors").read_bytes()
    Path("dvc.yaml").write_text("stages:\n  latents:\n    outs:\n    - data/latents\n")
    for option, path, told in (
        ("--out", "out/model.safetensors", "lies in the checkpoint's own folder"),
        ("--stats", "out/model.safetensors", "lies in the checkpoint's own folder"),
        ("--stats", "data/latents/stats.safetensors", "belongs to data/latents, which is made by a stage"),
        ("--stats", "y.pt", "is --out, too"),
    ):
        with pytest.raises(SystemExit, match=f"{option} {path} {told}"):
            run(*("out", "--to", "facm", "--out", "y.pt", option, path))
    assert Path("out/model.safetensors").read_bytes() == whole and not Path("y.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("out", "--to", "facm", "--out", "y.pt", "--which", "model"), "--which goes with --from, not with --to"),
        (("out", "--to", "facm", "--out", "y.pt", "--set", "heads=2"), "--set goes with --from, not with --to"),
        (("x.pt", *FACM, "--sigma-rel", "0.1"), "--sigma-rel goes with --to, not with --from"),
    ],
)
def test_an_option_that_would_say_nothing_is_refused(arguments: tuple[str, ...], told: str, run, capsys) -> None:
    with pytest.raises(SystemExit):
        run(*arguments)
    assert told in capsys.readouterr().err


def test_what_no_weight_tells_cannot_be_claimed_of_a_published_network(refused) -> None:
    transformer = str(training_file(Path("x.pt")))
    told = refused(transformer, *LDIT, "--trust-pickle", "--set", "pixel_norm=true")
    assert "no published lightningdit network has pixel_norm True" in told


def test_an_average_that_a_released_file_lacks_is_refused(refused, tmp_path: Path) -> None:
    Path("x.pt").write_bytes(release_file(tmp_path / "y.pt", STUDENT).read_bytes())
    content = torch.load("x.pt", weights_only=True)
    length = weights.EXTRACTED.get(str(content.get("_extracted_from")))
    assert length == 0.2
    assert "has the average of sigma_rel 0.2 alone, not that of 0.05" in refused("x.pt", *FACM, "--profile", "0.05")
    torch.save(STUDENT, "bare.pt")
    assert "without telling which: leave out --profile 0.05" in refused("bare.pt", *FACM, "--profile", "0.05")
    torch.save({"ema": STUDENT}, "untold.pt")
    assert "has weights of no told sigma_rel, not that of 0.05" in refused("untold.pt", *FACM, "--profile", "0.05")


def test_a_learned_position_embedding_is_missed(refused) -> None:
    lacking = {name: weight for name, weight in STUDENT.items() if name != "pos_embed"}
    release_file(Path("x.pt"), lacking)
    told = refused("x.pt", *FACM, "--set", "pos_learned=true", "--set", "side=4")
    assert told.splitlines()[1:] == ["  missing: pos_embed"]
