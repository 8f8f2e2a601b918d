"""Points in place of pictures: every stage from the law to the table, the archive, the plot, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import MIXTURE, save_arrays, truncate, write_params
from PIL import Image

import facm
from facm.data.datasets import mixture
from facm.data.images.images import Images, kind
from facm.data.latents.store import LatentSet
from facm.inference import grid
from facm.inference.samples import load_samples
from facm.metrics.reference import Reference
from facm.metrics.scores import map_error
from stages import baseline, distill, evaluate, latents, reference, sample, teacher

SMALL = MIXTURE | {"latents__shard_size": 150, "reference__num": 20, "baseline__w": 1.0, "distill__w": 1.0}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty repository and a small mixture; what stages set in this process is set back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mixture, "BITS", 9)
    monkeypatch.setattr(mixture, "HELDOUT", 50)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def run(here: Path, *stages, **changes) -> None:
    """Run stages with the params of a small mixture."""
    write_params(here, **(SMALL | changes))
    for stage in stages:
        stage.main()


@pytest.fixture
def made(here: Path) -> Path:
    """The whole pipeline."""
    run(here, reference, latents, teacher, baseline, distill, sample, evaluate)
    return here


def test_all_stages_run_on_points_and_end_with_the_map_error(made: Path, capsys: pytest.CaptureFixture) -> None:
    result = json.loads(Path("metrics/evaluate.json").read_text())
    plain = {"fd", "kid", "precision", "recall"}
    maps = {"map_rmse", "map_median"}
    assert result["features"] == "exact_map"
    assert set(result["floor"]) == set(result["pixel_mean"]) == plain and set(result["noise"]) == plain | maps
    assert set(result["teacher"]) == plain | maps | {"nfe", "w", "num"}
    assert set(result["student"]["nfe1"]) == plain | maps
    assert set(result["student"]["nfe2"]) == plain, "consistency sampling adds fresh noise: no map of x0"
    evaluate.main()
    assert capsys.readouterr().out.splitlines()[0].split()[-2:] == ["map_median", "map_rmse"]
    assert Path("metrics/quality.csv").read_text().startswith("nfe,distance\n1,")


def test_a_sampler_without_fresh_noise_has_a_map_error_at_every_nfe(made: Path) -> None:
    run(made, sample, evaluate, sample__sampler="euler", sample__nfe=[1, 3])
    student = json.loads(Path("metrics/evaluate.json").read_text())["student"]
    assert all(student[name]["map_rmse"] > 0 for name in ("nfe1", "nfe3"))


def test_the_archive_holds_points_in_the_datas_units_and_the_error_is_theirs(made: Path) -> None:
    points, labels = load_samples("data/samples/nfe1.npz")
    assert labels is None and points.shape == (6, 2) and points.dtype == torch.float32
    student = facm.load("data/student")
    drawn = student.generate(None, num=6, nfe=1, seed=1)
    assert drawn.dtype == np.float32 and np.array_equal(points, drawn)
    network = Reference.open("data/reference").statistics[0].network
    scores = json.loads(Path("metrics/evaluate.json").read_text())["student"]["nfe1"]
    assert map_error(torch.from_numpy(drawn), network, 1) == {name: scores[name] for name in ("map_rmse", "map_median")}
    set_ = LatentSet.open("data/latents")
    x1, _ = set_.batch(range(512))
    stored = mixture.MixturePoints().load("train").images
    torch.testing.assert_close(torch.from_numpy(student.decode(x1)), stored, atol=1e-6, rtol=0)
    torch.testing.assert_close(x1.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    assert set_.shape == (2,) and [len(shard["latents"]) for shard in set_.shards] == [150, 150, 150, 62]


def test_points_are_plotted(made: Path) -> None:
    for path in ("data/samples/grid_nfe1.png", "data/baseline/grid_teacher.png"):
        with Image.open(path) as plot:
            assert plot.size == (grid.PLOT_SIDE, grid.PLOT_SIDE) and plot.mode == "L"


def test_a_plot_has_its_points_where_they_lie_upwards() -> None:
    points = np.array([[0.51, 0.51], [-0.51, 0.51], [-0.51, 0.51], [0.31, -0.91], [np.nan, 0.0]], np.float32)
    pixels, side = np.asarray(grid.scatter(points)), grid.PLOT_SIDE

    def at(x: float, y: float) -> int:
        return int(pixels[int((1 - y) / 2 * side), int((1 + x) / 2 * side)])

    assert (pixels < 255).sum() == 3
    assert at(-0.51, 0.51) < at(0.51, 0.51) == at(0.31, -0.91) < 255, "two points are darker"


def test_a_plot_reaches_to_the_next_whole_number() -> None:
    def column_of_first(other: float) -> int:
        points = np.array([[1.5, 0.0]] * 20 + [[other, 0.0]] * 20, np.float32)
        return int((np.asarray(grid.scatter(points)) < 255).any(0).nonzero()[0][-1])

    assert column_of_first(-1.9) == column_of_first(-0.1) == grid.PLOT_SIDE * 7 // 8
    assert column_of_first(-2.1) == grid.PLOT_SIDE * 3 // 4


def test_archives_of_points_are_read_in_parts_and_damage_is_told(tmp_path: Path) -> None:
    points = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    save_arrays(tmp_path / "some.npz", points, None)
    np.savez(tmp_path / "numpy.npz", points)
    assert (tmp_path / "some.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    stored, _ = load_samples(tmp_path / "some.npz")
    assert len(stored) == 7 and stored.dtype == torch.float32
    for rows in (slice(0, 3), slice(5, 99), slice(None), slice(4, 4)):
        assert np.array_equal(stored[rows].numpy(), points[rows])
    truncate(tmp_path / "some.npz")
    with pytest.raises(ValueError, match="some.npz is missing or damaged"):
        load_samples(tmp_path / "some.npz")
    np.savez(tmp_path / "double.npz", points.astype(np.float64))
    with pytest.raises(ValueError, match=r"float64 \(7, 3\).*needed is .*or float32 \(N, D\)"):
        load_samples(tmp_path / "double.npz")


@pytest.mark.parametrize(
    ("dtype", "shape", "found"),
    [
        (torch.uint8, (1, 2, 3, 4), "pictures"),
        (np.dtype("uint8"), (1, 2, 3, 4), "pictures"),
        (torch.float32, (5, 2), "points"),
        (np.dtype("float32"), (5, 2), "points"),
    ],
)
def test_type_and_axes_tell_points_from_pictures(dtype: object, shape: tuple[int, ...], found: str) -> None:
    assert kind(dtype, shape) == found


def test_what_is_neither_is_refused() -> None:
    for made_of in (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, 2), torch.zeros(3, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \(N, H, W, C\), or points float32 \(N, D\), got torch"):
            Images(made_of, None, 0)
