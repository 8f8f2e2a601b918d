"""A checkpoint as a generator: what a picture depends on, what comes out, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import write_checkpoint, write_latents

import facm
from facm.inference.generator import Drawn, Generator, balanced_labels


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher and a student without classes, of three channels."""
    folder = tmp_path_factory.mktemp("checkpoints")
    latents = write_latents(folder / "latents", channels=3)
    write_checkpoint(folder / "student", latents, kind="student")
    write_checkpoint(folder / "teacher", latents)
    write_checkpoint(folder / "flow", latents, kind="student", distill__objective="fm", sample__sampler="euler")
    write_checkpoint(folder / "classless", write_latents(folder / "plain", channels=3, classes=0), kind="student")
    return folder


@pytest.fixture(scope="module")
def student(folder: Path) -> Generator:
    return facm.load(folder / "student")


def refused(call, *arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_pictures_are_uint8_in_rows_columns_channels(student: Generator) -> None:
    images = student.generate([0, 1, 2, 1], nfe=2, seed=0)
    assert images.dtype == np.uint8 and images.shape == (4, 4, 4, 3)
    assert len(np.unique(images)) > 20, "random weights must give something to compare"


def test_the_call_of_the_readme_works(folder: Path) -> None:
    assert facm.load(str(folder / "student")).generate(range(3), nfe=2, seed=0).shape == (3, 4, 4, 3)
    assert facm.load(folder / "student").generate(torch.tensor([2, 0])).shape == (2, 4, 4, 3)


def test_a_picture_depends_on_seed_number_and_label_only(student: Generator) -> None:
    images = student.generate([0, 1, 2, 0, 1], nfe=2, seed=3)
    assert np.array_equal(images, student.generate([0, 1, 2, 0, 1], nfe=2, seed=3))
    # One row less or other neighbours may change the order of sums, by a level at most.
    assert levels_apart(images[:2], student.generate([0, 1], nfe=2, seed=3)) <= 1
    others = student.generate([0, 2, 1, 0, 2], nfe=2, seed=3)
    assert levels_apart(images[[0, 3]], others[[0, 3]]) <= 1
    assert all(levels_apart(a, b) > 1 for a, b in zip(images[[1, 2, 4]], others[[1, 2, 4]], strict=True))
    assert levels_apart(images[0], images[3]) > 1, "same label, another number"
    assert levels_apart(images, student.generate([0, 1, 2, 0, 1], nfe=2, seed=4)) > 1


@pytest.mark.parametrize("sampler", ["consistency", "euler", "heun"])
def test_a_picture_does_not_depend_on_the_batch_size(sampler: str, student: Generator) -> None:
    """Beyond rounding: matrix products of other sizes add up in another order, which may move a level by one."""
    y, made = balanced_labels(23, 3), student.sampler(sampler, nfe=3)
    images = [student.draw(made, y, 23, seed=1, batch_size=size)[0] for size in (23, 1, 5, 8)]
    for other in images[1:]:
        assert levels_apart(images[0], other) <= 1
        assert (images[0] != other).mean() < 1e-2


def test_every_sampler_of_the_checkpoint_draws_and_counts(student: Generator) -> None:
    y = balanced_labels(3, 3)
    for name, fields, nfe in (
        ("consistency", {"nfe": 4}, 4),
        ("consistency", {"t_grid": (0.0, 0.7)}, 2),
        ("euler", {"nfe": 4}, 4),
        ("heun", {"nfe": 3}, 3),
    ):
        images, counted = student.draw(student.sampler(name, **fields), y, 3, seed=0)
        assert images.shape == (3, 4, 4, 3) and counted == nfe, (name, fields)
    assert student.generate([0], t_grid=(0.0, 0.5, 0.9)).shape == (1, 4, 4, 3)


def test_a_guided_evaluation_of_a_teacher_counts_two(folder: Path) -> None:
    teacher, y = facm.load(folder / "teacher"), balanced_labels(3, 3)
    for name, fields, nfe in (
        ("heun", {"steps": 4, "w": 2.0}, 14),
        ("euler", {"steps": 4, "w": 2.0, "t_low": 0.5}, 2 + 2 * 2),
    ):
        images, counted = teacher.draw(teacher.sampler(name, **fields), y, 3, seed=0)
        assert images.shape == (3, 4, 4, 3) and counted == nfe, (name, fields)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp", "edm"])
def test_a_student_s_guidance_is_in_its_weights(name: str, student: Generator) -> None:
    told = refused(student.generate, [0, 1], sampler=name, steps=4, w=3.0)
    assert told.startswith(f"sampler {name}: w 3.0 asks for guidance, but a student's is in its weights (distill.w)")
    same = student.generate([0, 1], sampler=name, steps=4, w=1.0)
    assert np.array_equal(same, student.generate([0, 1], sampler=name, steps=4))


def test_without_a_name_the_first_sampler_of_the_checkpoint_is_taken(folder: Path, student: Generator) -> None:
    assert type(student.sampler(nfe=1)).__name__ == "Consistency"
    assert student.sampler("euler", nfe=1).condition == "fm", "a student knows velocities at c_FM"
    teacher = facm.load(folder / "teacher")
    assert type(teacher.sampler(nfe=1)).__name__ == "Euler" and teacher.sampler(nfe=1).condition == "t"


@pytest.mark.parametrize(("name", "trained"), [("teacher", "a teacher trained by 'fm'"), ("flow", "a student trained")])
def test_a_sampler_that_the_objective_cannot_use_is_refused(name: str, trained: str, folder: Path) -> None:
    told = refused(facm.load(folder / name).sampler, "consistency", nfe=1)
    assert told.startswith(f"sampler 'consistency' does not fit {trained}")
    assert told.endswith("it has euler, heun, dpmpp, edm; set sample.sampler in params.yaml")


def test_labels_that_the_model_does_not_have_are_refused(student: Generator) -> None:
    assert refused(student.generate, [0, 3]) == "labels must lie in 0..2, got 0..3"
    assert refused(student.generate, [-1]) == "labels must lie in 0..2, got -1..-1"
    assert refused(student.generate, None) == "this model has 3 classes: it needs labels 0..2"
    assert refused(student.generate, []) == "labels must be a list with one class per picture, got [] and num None"
    assert refused(student.generate, 2) == "labels must be a list with one class per picture, got 2 and num None"
    assert "one class per picture, got [0.5, 1.0] and num None" in refused(student.generate, [0.5, 1.0])
    assert "got [0, 1] and num 3" in refused(student.generate, [0, 1], num=3)
    assert student.generate([0, 1], num=2).shape[0] == 2


def test_a_model_without_classes_needs_a_number_and_no_labels(folder: Path) -> None:
    generator = facm.load(folder / "classless")
    assert generator.generate(None, num=5, nfe=2).shape == (5, 4, 4, 3)
    assert refused(generator.generate, [0]) == "this model has 0 classes: it needs no labels, but num"
    for num in (None, 0):
        assert "a model without classes needs num, the number of pictures, at least 1" in refused(
            generator.generate, None, num=num
        )


def test_another_ema_length_draws_other_pictures(folder: Path, student: Generator) -> None:
    stored = facm.load(folder / "student", sigma_rel=0.2)
    other = facm.load(folder / "student", sigma_rel=0.1)
    labels = [0, 1, 2]
    assert levels_apart(stored.generate(labels), other.generate(labels)) > 0
    assert "must lie between 0 and 0.2887" in refused(facm.load, folder / "student", 0.5)


def test_decoding_undoes_normalisation(folder: Path, student: Generator) -> None:
    latents = write_latents(folder / "again", channels=3)
    x1, _ = latents.batch(range(14))
    from miniature import pictures

    assert np.array_equal(student.decode(x1), pictures(channels=3).images.numpy())


def test_rounding_is_that_of_the_codec_and_half_up_without_being_asked(folder: Path) -> None:
    rounded, floored = (Generator.load(folder / "student", **options) for options in ({}, {"rounding": "floor"}))
    x1 = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    difference = rounded.decode(x1).astype(int) - floored.decode(x1)
    assert set(np.unique(difference)) == {0, 1} and 0.3 < difference.mean() < 0.7
    assert "unknown rounding 'ceil'" in refused(Generator.load, folder / "student", rounding="ceil")


def test_balanced_labels_are_balanced_at_any_prefix() -> None:
    labels = balanced_labels(8, 3)
    assert labels is not None and labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert balanced_labels(8, 0) is None


def test_drawing_touches_neither_the_weights_nor_the_global_generator(student: Generator) -> None:
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    state = torch.get_rng_state()
    student.generate([0, 1, 2], nfe=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in student.network.state_dict().items())


class Overflowing(torch.nn.Module):
    """A network whose answer for class 1 is no number."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x, t, y=None, r=None):
        return torch.where((y == 1).view(-1, 1, 1, 1), torch.inf, self.network(x, t, y, r))


def test_pictures_that_are_no_numbers_are_counted_and_refused(student: Generator) -> None:
    sick = Generator(Overflowing(student.network), student.config, codec=student.codec)
    told = refused(sick.generate, [0, 1, 2, 1])
    assert told.startswith("sampling: 2 of 4 pictures are not finite: the network has diverged.")
    taken: list[np.ndarray] = []
    y, sampler = torch.tensor([0, 1, 2, 1]), sick.sampler(nfe=1)
    drawn = sick.draw_into(taken.append, sampler, y, 4, 0, batch_size=3, what="NFE 1")
    assert drawn == Drawn(nfe=1, not_finite=2)
    images = np.concatenate(taken)
    assert np.array_equal(images[[0, 2]], student.generate([0, 1, 2, 1])[[0, 2]])
    assert np.array_equal(images[1], sick.decode(torch.zeros(1, *student.config.shape))[0]), "the mean in its place"
