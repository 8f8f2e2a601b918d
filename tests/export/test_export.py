"""What `python -m facm.export` writes: loaded by facm and by diffusers with equal pictures, whole or not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import write_all
from miniature import truncate
from PIL import Image
from safetensors.torch import load_file, save_file

import facm
from facm import samplers
from facm.data import codecs
from facm.export import __main__, onnx
from facm.export import folder as exported
from facm.networks import checkpoint

NAMES = ("student", "teacher", "classless", "latent", "points")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints, and each of them exported as <name>-out."""
    folder = write_all(tmp_path_factory.mktemp("exported"))
    for name in NAMES:
        __main__.export(folder / name, folder / f"{name}-out")
    return folder


def pipeline(folder: Path) -> Any:
    from facm.pipeline import FACMPipeline

    return FACMPipeline.from_pretrained(folder)


def arguments(config: checkpoint.Config) -> tuple[list[int] | None, int | None]:
    """Labels, and the number where there are none."""
    return ([2, 0, 1], None) if config.num_classes else (None, 3)


def levels(images: list[Image.Image]) -> np.ndarray:
    arrays = np.stack([np.asarray(image) for image in images])
    return arrays if arrays.ndim == 4 else arrays[..., None]


@pytest.mark.parametrize("name", NAMES)
def test_facm_loads_an_export_as_the_checkpoint(name: str, folder: Path) -> None:
    before, after = facm.load(folder / name), facm.load(folder / f"{name}-out")
    labels, num = arguments(before.config)
    assert np.array_equal(before.generate(labels, nfe=2, num=num), after.generate(labels, nfe=2, num=num))
    assert after.config.sha256 == before.config.sha256, "of the checkpoint it comes from"
    assert after.config.params == before.config.params


@pytest.mark.parametrize("name", NAMES)
def test_the_pipeline_draws_the_pictures_of_facm(name: str, folder: Path) -> None:
    ours, theirs = facm.load(folder / name), pipeline(folder / f"{name}-out")
    labels, num = arguments(ours.config)
    for fields in ({}, {"sampler": "heun"}):
        length = {"nfe": 2} if not fields and ours.config.kind == "student" else {"steps": 2}
        want = ours.generate(labels, seed=4, num=num, **length, **fields)
        got = theirs(labels, 2, num_images=num, seed=4, output_type="np", **fields).images
        if name == "points":
            assert got.dtype == np.float32 and np.array_equal(got, want)
            continue
        assert got.dtype == np.float32 and np.array_equal(np.round(got * 255).astype(np.uint8), want)
        assert np.array_equal(levels(theirs(labels, 2, num_images=num, seed=4, **fields).images), want)
        tensors = theirs(labels, 2, num_images=num, seed=4, output_type="pt", return_dict=False, **fields)[0]
        assert np.array_equal(tensors.permute(0, 2, 3, 1).numpy(), got)


def test_guidance_and_the_noise_are_the_caller_s(folder: Path) -> None:
    ours, theirs = facm.load(folder / "teacher"), pipeline(folder / "teacher-out")
    guided = {"t_low": 0.1, "t_high": 0.9}
    want = ours.generate([0, 1], steps=3, w=2.0, **guided)
    got = theirs([0, 1], 3, seed=0, guidance_scale=2.0, output_type="np", **guided).images
    assert np.array_equal(np.round(got * 255).astype(np.uint8), want)
    noise = samplers.noise(0, range(2), 1, ours.config.shape)
    for latents in (noise, noise[0]):
        same = theirs([0, 1], 3, latents=latents, guidance_scale=2.0, output_type="np", **guided).images
        assert np.array_equal(same, got)
    one, other = (theirs([0, 1], 3, torch.Generator().manual_seed(s), output_type="np").images for s in (1, 2))
    again = theirs([0, 1], 3, torch.Generator().manual_seed(1), output_type="np").images
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    each = [torch.Generator().manual_seed(s) for s in (5, 6)]
    both = theirs([0, 1], 3, each, output_type="np").images
    alone = theirs([1], 3, torch.Generator().manual_seed(6), output_type="np").images
    assert np.abs(both[1] - alone[0]).max() < 1 / 254, "a generator for each picture"


def test_latents_are_what_decodes_to_the_pictures(folder: Path) -> None:
    ours, theirs = facm.load(folder / "latent"), pipeline(folder / "latent-out")
    x1 = theirs([0, 2], 1, seed=1, output_type="latent").images
    assert x1.shape == (2, 4, 4, 4) and x1.dtype == torch.float32
    assert np.array_equal(ours.decode(x1), ours.generate([0, 2], seed=1))


@pytest.mark.parametrize("name", ["student", "latent"])
def test_save_pretrained_writes_what_export_wrote(name: str, folder: Path, tmp_path: Path) -> None:
    saved, first = tmp_path / "saved", folder / f"{name}-out"
    pipeline(first).save_pretrained(saved)
    written = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    apart = {"README.md", "samples.png", "pipeline.py"}
    assert written == {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()} - apart
    assert (saved / "network" / exported.WEIGHTS).read_bytes() == (first / "network" / exported.WEIGHTS).read_bytes()
    assert exported.read_config(saved) == exported.read_config(first)
    assert np.array_equal(facm.load(saved).generate([1, 2]), facm.load(first).generate([1, 2]))


def test_an_ordinary_pipeline_of_diffusers_loads_it_by_its_code(folder: Path, tmp_path: Path, monkeypatch) -> None:
    import diffusers.utils.dynamic_modules_utils as dynamic
    from diffusers import DiffusionPipeline

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path))
    place = str(folder / "student-out")
    loaded = DiffusionPipeline.from_pretrained(place, custom_pipeline=place, trust_remote_code=True)
    assert type(loaded).__name__ == "FACMPipeline"
    assert np.array_equal(levels(loaded([1], 2, seed=0).images), facm.load(folder / "student").generate([1], nfe=2))


def test_a_repository_of_the_hub_is_a_pipeline_without_a_network(folder: Path, tmp_path: Path) -> None:
    from facm.pipeline import FACMPipeline

    commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--team--digits"
    shutil.copytree(folder / "student-out", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    loaded = FACMPipeline.from_pretrained("team/digits", cache_dir=tmp_path, local_files_only=True)
    assert np.array_equal(levels(loaded([1], 2, seed=0).images), facm.load(folder / "student").generate([1], nfe=2))


def test_the_autoencoder_is_an_ordinary_one_of_diffusers(folder: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "latent-out", subfolder="vae")
    assert vae.config.scaling_factor == 0.18215
    config = exported.read_config(folder / "latent-out")
    assert config.codec_options["vae"] == "vae", "no path of the machine that exported"
    assert config.codec_options["vae_sha256"] == checkpoint.sha256(folder / "latent-out/vae" / exported.WEIGHTS)


CALLS = [
    ("student", {"class_labels": [3]}, "labels must lie in 0..2"),
    ("student", {}, "this model has 3 classes: it needs labels 0..2"),
    ("classless", {}, "needs num, the number of pictures"),
    ("student", {"class_labels": [0], "output_type": "pli"}, "output_type: unknown 'pli' (did you mean 'pil'?)"),
    ("points", {"num_images": 2}, "this model draws points, not pictures: set output_type to np, pt or latent"),
    ("student", {"class_labels": [0], "sampler": "jumps"}, "sampler 'jumps' does not fit a student"),
    ("student", {"class_labels": [0], "guidance_scale": 2.0}, "w 2.0 asks for guidance"),
    ("student", {"class_labels": [0], "sampler": "heun", "guidance_scale": 2.0}, "a student's is in its weights"),
    ("student", {"class_labels": [0], "num_inference_steps": 0}, "sample.nfe: 0 must be at least 1"),
    ("student", {"class_labels": [0], "seed": 1, "latents": torch.zeros(1, 3, 4, 4)}, "give one of them"),
    ("student", {"class_labels": [0], "latents": torch.zeros(1, 3, 4, 5)}, "latents are (1, 3, 4, 5), needed are"),
    ("student", {"class_labels": [0], "generator": [torch.Generator()] * 2}, "2 generators for 1 pictures"),
]


@pytest.mark.parametrize(("name", "given", "message"), CALLS, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(CALLS)])
def test_a_call_that_cannot_be_is_refused(name: str, given: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ValueError) as caught:
        pipeline(folder / f"{name}-out")(**given)
    assert message in str(caught.value)


def test_parts_that_do_not_fit_are_refused(folder: Path) -> None:
    from facm.pipeline import FACMPipeline

    parts = pipeline(folder / "latent-out")
    with pytest.raises(ValueError, match="codec 'sd_vae' needs the part vae"):
        FACMPipeline(parts.network)([0])
    with pytest.raises(ValueError, match="codec 'identity' has no part vae"):
        FACMPipeline(pipeline(folder / "student-out").network, parts.vae)([0])
    with pytest.raises(ValueError, match="load without torch_dtype"):
        pipeline(folder / "student-out").to(torch.float16)([0])


# What is refused, and what is left then


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(folder)

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *words])
        __main__.main()
        return capsys.readouterr().out

    return call


def test_the_command_writes_a_folder_and_says_what_it_lacks(run, tmp_path: Path) -> None:
    out = tmp_path / "student"
    told = run("student", "--out", str(out), "--name", "Small", "--license", "cc-by-4.0")
    assert told.splitlines()[-1] == (
        f"{out}: student by facm, without figures (there is no dvc.lock above the checkpoint folder)"
    )
    card = (out / "README.md").read_text()
    assert "# Small" in card and "license: cc-by-4.0" in card
    with Image.open(out / "samples.png") as sheet:
        assert sheet.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]
    run("student", "--out", str(out), "--sigma-rel", "0.1")
    assert exported.read_config(out).sigma_rel == 0.1
    assert "0.1 (synthesised)" in (out / "README.md").read_text(), "an earlier export is replaced"
    again = facm.load("student", 0.1).generate([1, 2])
    assert np.array_equal(facm.load(out).generate([1, 2]), again)


EXPORTS = [
    (("nothing", "--out", "x"), "error: nothing is no checkpoint: nothing/config.json is missing"),
    (("student", "--out", "latents"), "error: --out latents is a folder that is no earlier export: remove it"),
    (("student", "--out", "student"), "error: --out student is the checkpoint's own folder, or above it"),
    (("student", "--out", "."), "error: --out . is the checkpoint's own folder, or above it"),
    (("student", "--out", "student/export"), "error: --out student/export lies in the checkpoint's own folder"),
    (("student", "--out", "student/ema/x"), "error: --out student/ema/x lies in the checkpoint's own folder"),
    (("student", "--out", "no/x"), "error: --out no/x: there is no folder"),
    (("student", "--out", "vae.safetensors"), "error: --out vae.safetensors is a file"),
    (("student", "--sigma-rel", "0.4", "--out", "x"), "sigma_rel: 0.4 must lie between 0 and 0.2887"),
    (("teacher", "--onnx", "--out", "x"), "error: --onnx: a teacher trained by 'fm' has no one-step generator"),
    (("latent", "--vae", "no.pt", "--out", "x"), "there is neither a folder nor a file no.pt"),
]


@pytest.mark.parametrize(("words", "message"), EXPORTS, ids=[" ".join(words) for words, _ in EXPORTS])
def test_export_refuses_in_one_line_and_changes_nothing(words, message: str, run, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert message in str(ended.value)
    assert sorted(folder.rglob("*")) == before


def test_nothing_is_exported_into_what_a_stage_makes(run, folder: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(folder / "student", tmp_path / "student")
    (tmp_path / "dvc.yaml").write_text("stages:\n  sample:\n    cmd: none\n    outs:\n      - data/samples\n")
    (tmp_path / "data/samples").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"--out data/samples/x belongs to data/samples, which is made by a stage of"):
        run("student", "--out", "data/samples/x")
    assert not list((tmp_path / "data/samples").iterdir())


def test_what_is_killed_while_it_writes_leaves_the_folder_before(run, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "student"
    run("student", "--out", str(out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(__main__.card, "render", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(SystemExit, match="disk full"):
        run("student", "--out", str(out), "--name", "Other")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_what_lies_beside_an_export_stays(run, tmp_path: Path) -> None:
    out = tmp_path / "student"
    run("student", "--out", str(out))
    beside = [tmp_path / name / "precious" for name in ("student.old", "student.tmp", ".student")]
    for path in beside:
        path.parent.mkdir()
        path.write_text("years of work")
    run("student", "--out", str(out), "--name", "Other")
    assert "# Other" in (out / "README.md").read_text()
    assert all(path.read_text() == "years of work" for path in beside)
    assert len(list(tmp_path.iterdir())) == 4, "and nothing is left over"
    assert out.stat().st_mode & 0o777 == beside[0].parent.stat().st_mode & 0o777, "a folder like any other"


def test_an_export_into_a_clone_of_its_repository_leaves_the_clone(run, tmp_path: Path) -> None:
    out = tmp_path / "student"
    run("student", "--out", str(out))
    kept = {".git/HEAD": "ref: refs/heads/main", ".gitattributes": "*.safetensors filter=lfs", "LICENSE": "theirs"}
    for name, text in (kept | {"onnx/onestep.onnx": "of the earlier weights"}).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    run("student", "--out", str(out), "--sigma-rel", "0.1")
    assert exported.read_config(out).sigma_rel == 0.1
    assert {name: (out / name).read_text() for name in kept} == kept
    assert not (out / "onnx").exists(), "what an export did write is replaced as a whole"


def test_the_folder_where_one_is_can_be_exported_into(run, folder: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "here"
    out.mkdir()
    monkeypatch.chdir(out)
    run(str(folder / "student"), "--out", ".")
    assert exported.is_exported(Path()) and "# here" in Path("README.md").read_text()
    run(str(folder / "student"), "--out", ".", "--name", "Other")
    assert "# Other" in Path("README.md").read_text(), "the folder is still the same"


def test_a_move_that_fails_leaves_the_export_before(run, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "student"
    run("student", "--out", str(out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    replace, gone = __main__.os.replace, out / "samples.png"

    def fail(source: Path, target: Path) -> None:
        if target == gone and source.parent.name == "new":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(__main__.os, "replace", fail)
    with pytest.raises(SystemExit, match="disk full"):
        run("student", "--out", str(out), "--name", "Other")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_an_export_that_is_damaged_or_another_s_is_refused(folder: Path, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        shutil.copytree(folder / "student-out", tmp_path / name)
        return tmp_path / name

    def told(place: Path, **options: Any) -> str:
        with pytest.raises(ValueError) as caught:
            facm.load(place, **options)
        return str(caught.value)

    other = copied("other")
    (other / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    assert "holds a DiTPipeline of diffusers, not a FACMPipeline" in told(other)
    cut = copied("cut")
    truncate(cut / "network" / exported.WEIGHTS)
    assert "is damaged" in told(cut)
    bare = copied("bare")
    (bare / "network/config.json").unlink()
    assert "network/config.json is missing: export the checkpoint again" in told(bare)
    foreign = copied("foreign")
    (foreign / "network/config.json").write_text('{"_class_name": "DiT", "kind": "student"}')
    assert "network/config.json is of another format: differing keys" in told(foreign)
    path = copied("scaled") / "network/config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"std": [-value for value in described["std"]]}))
    assert "network/config.json: mean [" in told(tmp_path / "scaled")
    assert "has no EMA snapshots for sigma_rel 0.1" in told(folder / "student-out", sigma_rel=0.1)


def test_another_autoencoder_than_the_exported_one_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "latent-out", tmp_path / "latent")
    path = tmp_path / "latent/vae" / exported.WEIGHTS
    weights = load_file(path)
    weights["decoder.conv_in.bias"] += 1
    save_file(weights, path)
    with pytest.raises(ValueError, match="latents can be encoded and decoded by the same weights only"):
        facm.load(tmp_path / "latent")


@pytest.mark.slow
def test_facm_loads_an_export_of_pixels_without_diffusers(folder: Path) -> None:
    code = f"import sys, facm; facm.load({str(folder / 'student-out')!r}); print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_without_the_packages_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_installed", lambda name: name != "onnxruntime")
    with pytest.raises(
        ValueError, match=r"--onnx needs the packages onnxruntime: install them, or facm with its extra"
    ):
        onnx.check(checkpoint.read_config(folder / "student"))


def test_the_codecs_that_have_a_network_are_the_ones_with_a_part_vae() -> None:
    assert set(codecs.WEIGHTS) == {"sd_vae", "va_vae"}, "facm/export/folder.py and facm/pipeline.py know these"
