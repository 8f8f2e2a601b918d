"""The command lines, in this process: what they write, what they print, how they refuse."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import ROOT, truncate, write_checkpoint, write_latents, write_params
from PIL import Image

import facm
from facm import generate, posthoc
from facm import work as work_command
from facm.check.__main__ import main as check_main
from facm.convert import __main__ as convert_command
from facm.data import __main__ as data_command
from facm.export import __main__ as export_command
from facm.generate import parse_labels
from facm.networks import checkpoint
from facm.report import __main__ as report_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/student, data/teacher and a student without classes."""
    folder = tmp_path_factory.mktemp("repository")
    latents = write_latents(folder / "data/latents")
    write_checkpoint(folder / "data/student", latents, kind="student")
    write_checkpoint(folder / "data/teacher", latents)
    write_checkpoint(folder / "data/classless", write_latents(folder / "data/plain", classes=0), kind="student")
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Run a command's `main` with arguments in that folder; returns what it printed."""
    monkeypatch.chdir(folder)

    def call(main, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run):
    """The one line with which a command ends."""

    def call(main, *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run(main, *arguments)
        return str(ended.value)

    return call


# generate


def test_generate_writes_a_grid_with_a_row_per_class(run, tmp_path: Path) -> None:
    out = tmp_path / "digits.png"
    told = run(generate.main, "data/student", "--labels", "0-2", "--per-label", "4", "--nfe", "2", "--out", str(out))
    assert told.splitlines()[-1] == f"{out}: 12 pictures, NFE 2"
    with Image.open(out) as sheet:
        assert sheet.format == "PNG" and sheet.mode == "L"
        wide, tall = sheet.size
        pixels = np.asarray(sheet)
    assert (wide - 2) % 4 == 0 and (tall - 2) % 3 == 0 and (wide - 2) // 4 == (tall - 2) // 3
    side = (wide - 2) // 4
    images = facm.load("data/student").generate([label for label in range(3) for _ in range(4)], nfe=2, seed=0)
    centres = pixels[2::side, 2::side][:3, :4]  # the first pixel of each picture
    assert np.array_equal(centres.ravel(), images[:, 0, 0, 0])
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]


def test_generate_writes_arrays_with_labels(run, tmp_path: Path) -> None:
    out = tmp_path / "digits.npz"
    run(generate.main, "data/student", "--labels", "2,0-1", "--per-label", "2", "--seed", "5", "--out", str(out))
    with np.load(out) as arrays:
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_1"].tolist() == [2, 2, 0, 0, 1, 1]
        again = facm.load("data/student").generate([2, 2, 0, 0, 1, 1], nfe=2, seed=5)
        assert np.array_equal(arrays["arr_0"], again)


def test_generate_takes_all_classes_by_default_and_none_where_there_are_none(run, tmp_path: Path) -> None:
    run(generate.main, "data/student", "--per-label", "1", "--out", str(tmp_path / "all.npz"))
    run(generate.main, "data/classless", "--per-label", "3", "--out", str(tmp_path / "none.npz"))
    with np.load(tmp_path / "all.npz") as labelled, np.load(tmp_path / "none.npz") as plain:
        assert labelled["arr_1"].tolist() == [0, 1, 2]
        assert plain["arr_0"].shape == (9, 4, 4, 1) and plain.files == ["arr_0"]


def test_generate_takes_another_sampler_and_another_ema_length(run, tmp_path: Path) -> None:
    out = str(tmp_path / "pictures.npz")
    run(generate.main, "data/teacher", "--sampler", "heun", "--nfe", "3", "--sigma-rel", "0.1", "--out", out)
    with np.load(out) as arrays:
        assert arrays["arr_0"].shape == (24, 4, 4, 1)


def test_several_nfes_are_rows_of_the_same_noise(run, tmp_path: Path) -> None:
    out = tmp_path / "rows.npz"
    told = run(generate.main, "data/student", "--nfe", "1,2", "--seed", "3,5", "--labels", "2,0", "--out", str(out))
    assert told.splitlines()[-1] == f"{out}: 8 pictures, NFE 1, 2"
    student = facm.load("data/student")
    parts = [student.generate([2, 0], nfe=nfe, seed=seed) for nfe in (1, 2) for seed in (3, 5)]
    with np.load(out) as arrays:
        assert np.array_equal(arrays["arr_0"], np.concatenate(parts)) and arrays["arr_1"].tolist() == [2, 0] * 4
    sheet = out.with_suffix(".png")
    run(generate.main, "data/student", "--nfe", "1,2", "--seed", "3,5", "--labels", "2,0", "--out", str(sheet))
    with Image.open(sheet) as image:
        assert (image.size[0] - 2) // 4 == (image.size[1] - 2) // 2, "a row per NFE, in it both seeds"


def test_guidance_and_steps_are_the_sampler_s(run, tmp_path: Path) -> None:
    out = tmp_path / "guided.npz"
    words = ("--sampler", "heun", "--steps", "3", "--w", "2", "--t-low", "0.2", "--t-high", "0.9", "--per-label", "1")
    told = run(generate.main, "data/teacher", *words, "--out", str(out))
    assert told.splitlines()[-1] == f"{out}: 3 pictures, NFE 9", "five evaluations, four of them guided"
    again = facm.load("data/teacher").generate(range(3), sampler="heun", steps=3, w=2.0, t_low=0.2, t_high=0.9)
    with np.load(out) as arrays:
        assert np.array_equal(arrays["arr_0"], again)


def test_a_gif_goes_from_noise_to_the_picture(run, tmp_path: Path) -> None:
    out, sheet = tmp_path / "steps.gif", tmp_path / "steps.png"
    words = ("data/student", "--sampler", "euler", "--nfe", "4", "--labels", "0-2")
    told = run(generate.main, *words, "--out", str(out))
    assert told.splitlines()[-1] == f"{out}: 24 pictures, NFE 4"
    run(generate.main, *words, "--out", str(sheet))
    with Image.open(out) as animation, Image.open(sheet) as last:
        assert animation.format == "GIF" and animation.n_frames == 5 and animation.info["loop"] == 0
        animation.seek(4)
        assert np.array_equal(np.asarray(animation.convert("L")), np.asarray(last))
        animation.seek(0)
        assert (np.asarray(animation.convert("L")) != np.asarray(last)).mean() > 0.5


GENERATE = [
    (("data/nothing", "--out", "a.png"), "error: data/nothing is no checkpoint: data/nothing/config.json is missing; "),
    (("data/student", "--labels", "0-9", "--out", "a.png"), "error: labels must lie in 0..2, got 0..9"),
    (
        ("data/student", "--labels", "a", "--out", "a.png"),
        "error: --labels 'a': write numbers and rising ranges such as",
    ),
    (("data/student", "--out", "a.jpg"), "error: --out 'a.jpg' must end in .png, .npz, .gif"),
    (("data/student", "--out", "no/a.png"), "error: --out 'no/a.png': there is no folder no"),
    (("data/student", "--per-label", "0", "--out", "a.png"), "error: --per-label 0 must be at least 1"),
    (("data/student", "--nfe", "0", "--out", "a.png"), "error: --nfe 0 must be at least 1"),
    (("data/student", "--seed", "-1", "--out", "a.png"), "error: --seed '-1': write numbers and rising"),
    (
        ("data/student", "--seed", "9" * 20, "--out", "a.png"),
        f"error: --seed '{'9' * 20}': {'9' * 20} is too large, the",
    ),
    (("data/student", "--seed", "9" * 5000, "--out", "a.png"), "write numbers and rising ranges such as"),
    (("data/student", "--seed", f"0-{2**63 - 1}", "--out", "a.npz"), f"': {2**63} numbers, at most 1000000 at once"),
    (("data/student", "--labels", "0-99999999", "--out", "a.npz"), "100000000 numbers, at most 1000000 at once"),
    (("data/student", "--labels", "²", "--out", "a.png"), "error: --labels '²': write numbers and rising ranges"),
    (("data/student", "--labels", "٣", "--out", "a.png"), "error: --labels '٣': write numbers and rising ranges"),
    (("data/student", "--labels", "", "--out", "a.png"), "error: --labels '': write numbers and rising ranges"),
    (("data/student", "--labels", "2-0", "--out", "a.png"), "error: --labels '2-0': write numbers and rising ranges"),
    (("data/student", "--nfe", "٢", "--out", "a.png"), "error: --nfe '٢': write numbers and rising ranges"),
    (("data/student", "--nfe", "10001", "--out", "a.png"), "error: --nfe '10001': 10001 is too large, the largest is"),
    (("data/student", "--per-label", "9" * 20, "--out", "a.npz"), "99 must be at least 1 and at most 10000000"),
    (("data/student", "--per-label", "9999999", "--out", "a.npz"), "29999997 pictures, a file takes 10000000: write"),
    (("data/teacher", "--steps", "9" * 20, "--out", "a.png"), "99 must be at least 1 and at most 10000"),
    (("data/teacher", "--steps", "0", "--out", "a.png"), "error: --steps 0 must be at least 1"),
    (("data/teacher", "--w", "inf", "--steps", "2", "--out", "a.png"), "w: must be a finite number, got inf"),
    (("data/teacher", "--w", "nan", "--steps", "2", "--out", "a.png"), "w: must be a finite number, got nan"),
    (("data/teacher", "--shift", "inf", "--steps", "2", "--out", "a.png"), "shift: must be a finite number, got inf"),
    (("data/student", "--sigma-rel", "nan", "--out", "a.png"), "sigma_rel: nan must lie between 0 and 0.2887"),
    (
        ("data/student", "--nfe", "1,2", "--out", "a.gif"),
        "error: --nfe 1,2: a .gif shows one NFE;",
    ),
    (("data/student", "--nfe", "1,17", "--sampler", "anchored", "--out", "a.png"), "nfe 17 has no schedule"),
    (("data/student", "--nfe", "2", "--steps", "2", "--out", "a.png"), "error: --nfe and --steps: give one of them"),
    (
        ("data/student", "--w", "2", "--t-low", "0.1", "--out", "a.png"),
        "error: --t-low, --w: sampler 'consistency'",
    ),
    (
        ("data/student", "--sampler", "euler", "--steps", "4", "--w", "3", "--out", "a.png"),
        "error: sampler euler: w 3.0 asks for guidance, but a student's is in its weights",
    ),
    (("data/student", "--t-grid", "0,a", "--out", "a.png"), "error: --t-grid '0,a': write times with commas, such as"),
    (("data/student", "--t-grid", "0.5", "--out", "a.png"), "sample.t_grid: [0.5] must start at 0 (noise)"),
    (("data/student", "--seed", "0-999", "--out", "a.gif"), "error: --out 'a.gif': 24000 pictures, a sheet takes 5000"),
    (("data/teacher", "--w", "2", "--out", "a.png"), "a guided evaluation (w > 1) counts two, set steps and not nfe"),
    (("data/teacher", "--w", "0.5", "--steps", "2", "--out", "a.png"), "w: 0.5 is outside [1, inf)"),
    (
        ("data/none", "--rev", "v1", "--out", "a.png"),
        "error: data/none is no folder and no address",
    ),
    (
        ("data/student", "--sampler", "eular", "--out", "a.png"),
        "error: sampler 'eular' does not fit a student trained by",
    ),
    (
        ("data/teacher", "--sampler", "consistency", "--out", "a.png"),
        "error: sampler 'consistency' does not fit a teacher",
    ),
    (("data/student", "--sampler", "heun", "--nfe", "2", "--out", "a.png"), "error: sample.nfe: 2 is not 2 N - 1"),
    (("data/student", "--sigma-rel", "0.5", "--out", "a.png"), "sigma_rel: 0.5 must lie between 0 and 0.2887"),
    (("data/classless", "--labels", "0", "--out", "a.png"), "error: this model has 0 classes: it needs no labels"),
]


@pytest.mark.parametrize(("arguments", "message"), GENERATE, ids=[" ".join(arguments) for arguments, _ in GENERATE])
def test_generate_refuses_in_one_line_and_writes_nothing(arguments, message: str, refused, folder: Path) -> None:
    assert message in refused(generate.main, *arguments)
    assert not list(folder.glob("a.*"))


@pytest.fixture
def ways(tmp_path: Path) -> dict[str, tuple]:
    """Each command that writes at its end, as far as --out, of what is not there: --out must be looked at first."""
    (tmp_path / "data").mkdir()
    return {
        "generate": (generate.main, "data/nothing", "--out"),
        "posthoc": (posthoc.main, "data/nothing", "--sigma-rel", "0.1", "--out"),
        "export": (export_command.main, "data/student", "--out"),
        "report": (report_command.main, "--out"),
        "import": (convert_command.main, "nothing.pt", "--from", "sit", "--vae", "nothing", "--out"),
        "convert": (convert_command.main, "data/nothing", "--to", "facm", "--out"),
    }


@pytest.mark.parametrize("name", ["generate", "posthoc", "export", "report", "import", "convert"])
def test_what_cannot_be_written_is_refused_before_any_work(name: str, ways, refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png/kept").touch()
    before = sorted(tmp_path.rglob("*"))
    told = refused(*ways[name], str(tmp_path / "folder.png"))
    assert told.startswith(f"error: --out {tmp_path}/folder.png is a folder") or "is there and no checkpoint fo" in told
    for place, rule in (
        (tmp_path / "file/a.png", "Not a directory"),
        (Path("/proc/a.png"), "/proc: "),
        (tmp_path / f"{'a' * 248}.png", "File name too long"),
    ):
        told = refused(*ways[name], str(place))
        assert told.startswith("error: --out ") and (rule in told or "there is no folder" in told), told
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_are_numbers_and_rising_ranges() -> None:
    assert parse_labels("0-3,7") == [0, 1, 2, 3, 7]
    assert parse_labels("5") == [5] and parse_labels("2-2") == [2] and parse_labels("1, 3") == [1, 3]
    for text in ("", "a", "3-1", "-1", "1-", "0,,1", "1.5", "0-x"):
        with pytest.raises(ValueError, match="write numbers and rising ranges"):
            parse_labels(text)


# posthoc


def test_posthoc_writes_a_checkpoint_of_another_length(run, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    told = run(posthoc.main, "data/student", "--sigma-rel", "0.15", "--out", str(out))
    assert told == f"{out}: data/student at sigma_rel 0.15\n"
    network, config = checkpoint.load(out)
    assert config.sigma_rel == 0.15 and config.step == checkpoint.read_config("data/student").step
    assert config.sha256 == checkpoint.sha256(out / "model.safetensors")
    synthesised = checkpoint.synthesize("data/student", 0.15)
    assert all(torch.equal(synthesised[name], value) for name, value in network.state_dict().items())
    again = checkpoint.synthesize(out, 0.15)  # the snapshots came along
    assert all(torch.equal(again[name], value) for name, value in synthesised.items())
    assert facm.load(out).generate([0]).shape == (1, 4, 4, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data/nothing", "--sigma-rel", "0.1"), "error: data/nothing/ema holds 0 snapshots, post-hoc EMA needs two"),
        (("data/student", "--sigma-rel", "0.4"), "sigma_rel: 0.4 must lie between 0 and 0.2887"),
        (("data/student", "--sigma-rel", "0"), "sigma_rel: 0.0 must lie between 0 and 0.2887"),
    ],
    ids=str,
)
def test_posthoc_refuses_in_one_line(arguments, message: str, refused, tmp_path: Path) -> None:
    assert message in refused(posthoc.main, *arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a teacher, a student, a copy of it, and a folder of something else."""
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    latents = write_latents(tmp_path / "data/latents")
    write_checkpoint(tmp_path / "data/teacher", latents)
    write_checkpoint(tmp_path / "data/student", latents, kind="student")
    shutil.copytree(tmp_path / "data/student", tmp_path / "copies/student")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.png").write_bytes(b"picture")
    (tmp_path / "another").mkdir()
    (tmp_path / "another/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    return tmp_path


OWN, DVCS = "the checkpoint's own folder", "which is made by a stage of "


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("data/student", "photos", "photos is there and no checkpoint folder: choose another --out"),
        ("data/student", "another", "another is there and no checkpoint folder: choose another --out"),
        ("data/student", "photos/one.png", "photos/one.png is there and no checkpoint folder"),
        ("copies/student", "copies/student", f"--out copies/student is {OWN}, or above it: choose another"),
        ("copies/student", "copies", f"--out copies is {OWN}, or above it: choose another"),
        ("copies/student", "copies/student/ema/x", f"--out copies/student/ema/x lies in {OWN}"),
        ("data/student", "data/teacher", f"--out data/teacher belongs to data/teacher, {DVCS}"),
        ("copies/student", "copies/../data/student", f"belongs to data/student, {DVCS}"),
        ("data/student", "data/samples", f"--out data/samples belongs to data/samples, {DVCS}"),
        ("data/student", "data/samples/x", f"--out data/samples/x belongs to data/samples, {DVCS}"),
        ("data/student", "metrics", f"--out metrics holds metrics/reference.json, {DVCS}"),
    ],
)
def test_posthoc_replaces_nothing_but_earlier_checkpoints(source, out, message, refused, trained, monkeypatch) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}

    before = files()
    monkeypatch.chdir(trained)
    assert message in refused(posthoc.main, source, "--sigma-rel", "0.1", "--out", out)
    assert files() == before


def test_posthoc_replaces_an_earlier_checkpoint_and_writes_beside_what_dvc_owns(run, trained, monkeypatch) -> None:
    monkeypatch.chdir(trained)
    for out in ("copies/student", "data/student-0.1"):
        run(posthoc.main, "data/student", "--sigma-rel", "0.1", "--out", out)
        assert checkpoint.read_config(out).sigma_rel == 0.1


def test_what_dvc_owns_is_known_where_data_is_a_link(refused, trained, monkeypatch) -> None:
    (trained / "data").rename(trained / "disk")
    (trained / "data").symlink_to("disk")
    monkeypatch.chdir(trained)
    told = refused(posthoc.main, "data/student", "--sigma-rel", "0.1", "--out", "data/teacher")
    assert f"--out data/teacher belongs to data/teacher, {DVCS}" in told


def test_posthoc_names_a_truncated_snapshot(refused, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "student", write_latents(tmp_path / "latents"), kind="student")
    damaged = sorted((tmp_path / "student/ema").iterdir())[1]
    truncate(damaged)
    told = refused(posthoc.main, str(tmp_path / "student"), "--sigma-rel", "0.1", "--out", str(tmp_path / "out"))
    assert told.startswith(f"error: {damaged} is damaged (")


# check and data


def test_numbers_of_the_other_commands_are_looked_at(refused) -> None:
    assert refused(data_command.main, "--name", "folder", "--root", ".", "--side", "0") == (
        "error: --side 0 must be at least 1"
    )
    for days in ("nan", "-1", "inf"):
        told = refused(work_command.main, f"--older={days}")
        assert told == f"error: --older {days}: give a number of days, 0 or more"


def test_check_says_that_params_are_in_order_or_what_is_wrong(run, refused, folder: Path) -> None:
    write_params(folder)
    assert run(check_main) == "params.yaml: in order\n"
    write_params(folder, distill__alpah="cos")
    assert refused(check_main).startswith(
        "error: params.yaml, distill: unknown 'alpah' (did you mean 'alpha'?); known: "
    )
    (folder / "params.yaml").unlink()
    assert refused(check_main) == "error: params.yaml is missing: write it with `python -m facm.preset digits`"


def test_the_data_command_reads_params_and_needs_them(run, refused, folder: Path) -> None:
    write_params(folder)
    told = run(data_command.main)
    assert told.startswith("data.fingerprint: ") and len(told.split()[1]) == 64
    (folder / "params.yaml").unlink()
    assert "error: params.yaml is missing" in refused(data_command.main)
