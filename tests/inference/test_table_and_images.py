"""The table of metrics, grids of pictures and samples on disk."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import save_arrays, truncate
from PIL import Image

from facm import table
from facm.inference import grid
from facm.inference.samples import load_samples, saving_samples

RESULT = {
    "features": "digits_cnn",
    "num": 2000,
    "floor": {"fd": 0.5, "kid": 0.001, "precision": 0.9, "recall": 0.8, "fd_second": 0.4},
    "class_mean": {"fd": 10.0, "kid": 1.0, "precision": 1.0, "recall": 0.0, "accuracy": 1.0},
    "noise": {"fd": 80.0, "kid": 9.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.1},
    "teacher": {"nfe": 29, "w": 1.5, "num": 2000, "fd": 1.0, "kid": 0.01, "accuracy": 0.99, "copies": 0.01},
    "student": {
        "nfe1": {"fd": 2.0, "kid": 0.02, "accuracy": 0.97, "copies": 0.0},
        "nfe2": {"fd": 1.5, "kid": 0.015, "accuracy": 0.98, "copies": 0.0},
    },
    "heldout_accuracy": 0.985,
    "heldout_copies": 0.0125,
}


def cells(text: str) -> dict[tuple[str, int], dict[str, str]]:
    """A rendered table by (first words of the row, how many rows began so before)."""
    head, *lines = text.splitlines()
    columns, found = head.split(), {}
    for line in lines:
        values = line.split()[-len(columns) :]
        name = " ".join(line.split()[: -len(columns)])
        key = (name, sum(1 for known, _ in found if known == name))
        found[key] = dict(zip(columns, values, strict=True))
    return found


# The table


def test_the_table_has_the_ends_of_the_scale_the_teacher_and_the_student_at_each_nfe() -> None:
    rows = cells(table.render(RESULT))
    assert [name for name, _ in rows] == ["held-out", "class means", "noise", "teacher", "student", "student"]
    assert rows["teacher", 0] | {"x": ""} == rows["teacher", 0] | {
        "nfe": "29",
        "fd": "1.0000",
        "kid": "0.0100",
        "x": "",
    }
    assert [rows["student", i]["nfe"] for i in (0, 1)] == ["1", "2"]
    assert [rows["student", i]["fd"] for i in (0, 1)] == ["2.0000", "1.5000"]


def test_held_out_pictures_bring_their_accuracy_and_copies_and_what_is_not_there_is_a_dash() -> None:
    rows = cells(table.render(RESULT))
    assert rows["held-out", 0]["accuracy"] == "0.9850" and rows["held-out", 0]["copies"] == "0.0125"
    assert rows["held-out", 0]["nfe"] == "-" and rows["noise", 0]["fd_second"] == "-"
    assert RESULT["floor"].keys() == {"fd", "kid", "precision", "recall", "fd_second"}, "the result is not changed"


def test_columns_are_those_that_some_row_has_and_all_lines_are_as_long() -> None:
    text = table.render(RESULT)
    assert text.splitlines()[0].split() == [
        "nfe",
        "fd",
        "kid",
        "precision",
        "recall",
        "accuracy",
        "copies",
        "fd_second",
    ]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_without_teacher_and_classes_the_table_has_what_there_is() -> None:
    result = {"floor": {"fid_10k": 1.0}, "pixel_mean": {"fid_10k": 9.0}, "student": {"nfe1": {"fid_10k": 2.0}}}
    rows = cells(table.render(result))
    assert [name for name, _ in rows] == ["held-out", "pixel mean", "student"]
    assert rows["student", 0] == {"nfe": "1", "fid_10k": "2.0000"}


def test_runs_are_compared_as_fractions_of_the_class_means_with_their_median() -> None:
    results = {}
    for i, factor in enumerate((1.0, 3.0, 2.0)):
        student = {name: scores | {"fd": scores["fd"] * factor} for name, scores in RESULT["student"].items()}
        results[f"seed{i}"] = RESULT | {"student": student}
    rows = cells(table.compare(results).replace("acc ", "acc_"))
    assert [name for name, _ in rows] == ["seed0", "seed1", "seed2", "median"]
    assert [row["nfe1"] for row in rows.values()] == ["0.2000", "0.6000", "0.4000", "0.4000"]
    assert rows["median", 0]["teacher"] == "0.1000" and rows["median", 0]["acc_nfe2"] == "0.9800"
    assert results["seed1"]["student"]["nfe1"]["fd"] == 6.0
    two = {name: results[name] for name in ("seed0", "seed1")}
    assert [name for name, _ in cells(table.compare(two).replace("acc ", "acc_"))] == ["seed0", "seed1"]


def test_runs_without_a_distance_are_refused() -> None:
    with pytest.raises(ValueError, match="a: metrics/evaluate.json holds no distance"):
        table.compare({"a": {"class_mean": {"kid": 1.0}, "student": {}}})


def test_the_command_prints_the_workspaces_table(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps(RESULT))
    monkeypatch.setattr(sys, "argv", ["table"])
    table.main()
    assert capsys.readouterr().out == table.render(RESULT) + "\n"


def test_a_table_of_what_is_not_there_is_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ([], "error: metrics/evaluate.json is missing: `dvc pull`"),
        (["no"], "error: 'no' is no revision or experiment with metrics/evaluate.json"),
    ):
        monkeypatch.setattr(sys, "argv", ["table", *words])
        with pytest.raises(SystemExit, match=message):
            table.main()


# Grids


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_the_pictures_row_by_row_in_white_frames(channels: int, monkeypatch) -> None:
    monkeypatch.setattr(grid, "LEAST_SIDE", 4)
    images = np.arange(5 * 4 * 4 * channels).astype(np.uint8).reshape(5, 4, 4, channels)
    sheet = grid.grid(images, columns=3)
    assert sheet.size == (3 * 6 + 2, 2 * 6 + 2) and sheet.mode == {1: "L", 3: "RGB"}[channels]
    pixels = np.asarray(sheet).reshape(14, 20, channels)
    for i, image in enumerate(images):
        top, left = i // 3 * 6 + 2, i % 3 * 6 + 2
        assert np.array_equal(pixels[top : top + 4, left : left + 4], image)
    assert (pixels[:2] == 255).all() and (pixels[:, :2] == 255).all() and (pixels[8:12, 14:18] == 255).all()


@pytest.mark.parametrize(("side", "least", "factor"), [(8, 32, 4), (8, 33, 5), (32, 32, 1), (64, 32, 1)])
def test_small_pictures_are_enlarged_by_a_whole_factor(side: int, least: int, factor: int, monkeypatch) -> None:
    monkeypatch.setattr(grid, "LEAST_SIDE", least)
    images = np.random.default_rng(0).integers(0, 256, (1, side, side, 1), dtype=np.uint8)
    sheet = np.asarray(grid.grid(images, columns=1))[2:-2, 2:-2]
    assert np.array_equal(sheet, images[0, ..., 0].repeat(factor, 0).repeat(factor, 1))


def test_a_png_is_written_whole_under_its_name(tmp_path: Path) -> None:
    grid.save(grid.grid(np.zeros((1, 8, 8, 1), np.uint8), 1), tmp_path / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.format == "PNG"


# Samples


def test_samples_come_back_with_their_labels_and_a_grid(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (120, 4, 4, 1), dtype=np.uint8)
    labels = torch.arange(120) % 3
    with saving_samples(tmp_path / "samples", "nfe2", 120, labels) as take:
        for part in (images[:50], images[50:]):
            take(part)
    found, found_labels = load_samples(tmp_path / "samples/nfe2.npz")
    assert np.array_equal(found, images) and found_labels is not None and found_labels.tolist() == labels.tolist()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["grid_nfe2.png", "nfe2.npz"]
    with np.load(tmp_path / "samples/nfe2.npz") as arrays:  # ADM's evaluator reads these names
        assert arrays.files == ["arr_0", "arr_1"] and arrays["arr_1"].dtype == np.int64
    with Image.open(tmp_path / "samples/grid_nfe2.png") as sheet:
        assert sheet.size[0] == sheet.size[1], "ten by ten of 120"


def test_samples_without_classes_have_no_labels(tmp_path: Path) -> None:
    save_arrays(tmp_path / "nfe1.npz", np.zeros((3, 4, 4, 1), np.uint8), None)
    images, labels = load_samples(tmp_path / "nfe1.npz")
    assert images.shape == (3, 4, 4, 1) and labels is None


def test_missing_or_damaged_samples_are_told(tmp_path: Path) -> None:
    path = tmp_path / "nfe1.npz"
    with pytest.raises(ValueError, match=r"nfe1.npz is missing or damaged .*: remove its folder and run `dvc repro`"):
        load_samples(path)
    save_arrays(path, np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8), np.arange(50))
    truncate(path)
    with pytest.raises(ValueError, match=r"nfe1.npz is missing or damaged .*: remove its folder and run `dvc repro`"):
        load_samples(path)
