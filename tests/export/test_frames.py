"""States of a refinement: what a sampler goes through, told by where it asks the network."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from miniature import write_checkpoint, write_latents

import facm
from facm import samplers
from facm.export import frames
from facm.inference.generator import Generator, balanced_labels

NUM, SEED = 3, 2


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp("refine")
    write_checkpoint(folder / "teacher", write_latents(folder / "latents", channels=3))
    return facm.load(folder / "teacher")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp("refine")
    write_checkpoint(folder / "student", write_latents(folder / "latents", channels=3), kind="student")
    return facm.load(folder / "student")


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("consistency", {"nfe": 1}, 2),  # noise, result
        ("consistency", {"nfe": 3}, 6),  # noise, jump, re-noised, jump, re-noised, result
        ("anchored", {"nfe": 4}, 6),  # noise, midpoint, end of the step, jump, re-noised, result
        ("euler", {"nfe": 4}, 5),
        ("euler", {"steps": 4, "w": 2.0, "t_low": 0.3}, 5),
        ("heun", {"steps": 4, "w": 2.0}, 5),  # of two states at one time the corrected one
        ("dpmpp", {"steps": 5}, 6),
        ("edm", {"steps": 3}, 4),
    ],
)
def test_the_frames_begin_with_noise_and_end_with_what_is_drawn(name, fields, count: int, student, teacher) -> None:
    drawing: Generator = teacher if "w" in fields else student
    sampler, y = drawing.sampler(name, **fields), balanced_labels(NUM, 3)
    shown, nfe = frames.frames(drawing, sampler, y, NUM, SEED)
    images, counted = drawing.draw(sampler, y, NUM, SEED)
    assert len(shown) == count and nfe == counted
    assert np.array_equal(shown[-1], images), "bit for bit: the sampler itself drew them"
    if name != "edm":  # which begins at t = 1/81
        x0 = samplers.noise(SEED, range(NUM), 1, drawing.config.shape)[0]
        assert np.array_equal(shown[0], drawing.decode(x0.float()))
    assert all(not np.array_equal(a, b) for a, b in pairwise(shown))


def test_euler_s_states_are_the_points_of_its_rule(teacher: Generator) -> None:
    y = balanced_labels(NUM, 3)
    sampler = teacher.sampler("euler", steps=3, w=2.0)
    x = samplers.noise(SEED, range(NUM), 1, teacher.config.shape)[0]
    shown, _ = frames.frames(teacher, sampler, y, NUM, SEED)
    for i, frame in enumerate(shown):
        assert np.array_equal(frame, teacher.decode(x.float())), i
        if i < 3:
            x = x + sampler.velocity(teacher.network, x, i / 3, y, 3)[0] / 3


def test_a_jump_s_end_is_what_one_evaluation_less_draws(student: Generator) -> None:
    y = balanced_labels(NUM, 3)
    shown, _ = frames.frames(student, student.sampler("consistency", nfe=2), y, NUM, SEED)
    images, _ = student.draw(student.sampler("consistency", nfe=1), y, NUM, SEED)
    assert np.abs(shown[1].astype(int) - images).max() <= 1, "kept in float32"
    assert torch.is_tensor(y)
