"""The Inception Score, gathered part by part, against torch-fidelity's and closed forms."""

import pytest
import torch
from torch import Tensor

from facm.metrics.inception_score import InceptionScore


def scored(logits: Tensor, size: int) -> float:
    """The score of logits that come in parts of `size`."""
    score = InceptionScore(len(logits))
    for part in logits.split(size):
        score.add(part)
    return score.value()


def random_logits(num: int, classes: int = 12) -> Tensor:
    return 3 * torch.randn(num, classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num", [10, 103, 1000])
def test_it_is_torch_fidelitys_with_ten_shuffled_splits(num: int) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    theirs = isc_features_to_metric(random_logits(num), splits=10, shuffle=True, rng_seed=2020)
    assert scored(random_logits(num), 16) == pytest.approx(theirs["inception_score_mean"], rel=1e-12)


def test_the_parts_in_which_logits_come_move_it_by_rounding_only() -> None:
    logits = random_logits(103)
    assert scored(logits, 1) == pytest.approx(scored(logits, 103), rel=1e-13)


def test_pictures_that_are_all_alike_or_not_recognised_score_1() -> None:
    alike = torch.zeros(50, 12)
    alike[:, 3] = 500
    assert scored(alike, 20) == pytest.approx(1) and scored(torch.zeros(50, 12), 20) == pytest.approx(1)


def test_many_pictures_recognised_in_equally_many_classes_score_their_number() -> None:
    assert scored(500.0 * torch.eye(4).repeat(25_000, 1), 10_000) == pytest.approx(4, rel=1e-3)


def test_a_score_of_some_of_the_pictures_is_refused() -> None:
    score = InceptionScore(20)
    score.add(random_logits(11))
    with pytest.raises(ValueError, match="logits of 11 of 20 pictures"):
        score.value()
