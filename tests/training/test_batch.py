"""What a step draws: every picture once per epoch, and nothing that depends on what happened before or on processes."""

import pytest
import torch
from miniature import parsed, write_latents

from facm.data.latents.store import LatentSet
from facm.training.batch import Batch, batch_indices, draw, share

NAMES = ("x0", "x1", "y", "n", "keys")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> LatentSet:
    return write_latents(tmp_path_factory.mktemp("latents"))


def drawn(latents: LatentSet, step: int, **changes: object) -> Batch:
    """A step's batch, with `distill` of params.yaml changed."""
    p = parsed(**{f"distill__{name}": value for name, value in ({"dropout": 0.1} | changes).items()})
    return draw(latents, p.distill, 2, step)


@pytest.mark.parametrize(("num", "size"), [(14, 4), (7, 7), (5, 12), (9, 2)])
def test_each_epoch_has_every_index_exactly_once(num: int, size: int) -> None:
    steps = 3 * num
    order = torch.cat([batch_indices(step, size, num, seed=3) for step in range(1, steps + 1)])
    assert len(order) == steps * size
    epochs = order[: len(order) // num * num].view(-1, num)
    assert (epochs.sort(1).values == torch.arange(num)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1


def test_indices_depend_on_step_and_seed_only() -> None:
    first = batch_indices(9, 4, 14, seed=3)
    torch.manual_seed(5)
    torch.randperm(3)
    batch_indices(2, 4, 14, seed=8)
    assert torch.equal(batch_indices(9, 4, 14, seed=3), first)
    assert not torch.equal(batch_indices(9, 4, 14, seed=4), first)


def test_a_step_draws_the_same_whatever_happened_before_it(latents) -> None:
    first = drawn(latents, 7)
    for step in (1, 2, 99):
        drawn(latents, step)
    torch.manual_seed(0)
    again, other = drawn(latents, 7), drawn(latents, 8)
    for name in NAMES:
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not any(torch.equal(getattr(other, name), getattr(first, name)) for name in ("x0", "n", "keys"))
    assert first.x0.shape == first.x1.shape == (4, 1, 4, 4) and first.n.shape == (4, 2)
    assert first.keys is not None and len(first.keys.unique()) == 4


@pytest.mark.parametrize("num", [2, 3])
def test_the_rows_of_all_ranks_are_the_batch_of_one_process(num: int, latents, monkeypatch) -> None:
    whole, parts = drawn(latents, 2, label_dropout=0.3), []
    monkeypatch.setenv("WORLD_SIZE", str(num))
    for rank in range(num):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(drawn(latents, 2, label_dropout=0.3))
    assert {part.size for part in parts} == {4}
    for name in NAMES:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_micro_batches_are_the_batch_and_differ_by_a_row_at_most(parts: int, latents) -> None:
    whole = drawn(latents, 2)
    pieces = list(whole.split(parts))
    assert len(pieces) == parts and {piece.size for piece in pieces} == {4}
    sizes = [len(piece.x0) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    for name in NAMES:
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name)), name


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_groups_hold_whole_groups(parts: int) -> None:
    rows = [share(12, number, parts, group=3) for number in range(parts)]
    assert [i for part in rows for i in range(12)[part]] == list(range(12))
    assert all(part.start % 3 == part.stop % 3 == 0 and part.stop > part.start for part in rows)


def test_there_are_no_keys_without_dropout_and_they_change_no_other_draw(latents) -> None:
    without, with_keys = drawn(latents, 3, dropout=0.0), drawn(latents, 3)
    assert without.keys is None and with_keys.keys is not None
    for name in NAMES[:-1]:
        assert torch.equal(getattr(without, name), getattr(with_keys, name)), name


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 60, 140)])
def test_dropped_labels_become_the_null_label(latents, share: float, low: int, high: int) -> None:
    y = drawn(latents, 1, label_dropout=share, batch_size=400).y
    assert y is not None
    assert low <= int((y == latents.num_classes).sum()) <= high and int(y.max()) <= latents.num_classes


def test_mirrored_latents_take_half_of_a_batch(tmp_path) -> None:
    mirrored = write_latents(tmp_path, flip=True)
    x1, indices = drawn(mirrored, 1, batch_size=400, seed=0).x1, batch_indices(1, 400, mirrored.num, 0)
    plain_x1, flipped = mirrored.batch(indices)[0], mirrored.batch(indices, torch.ones(400, dtype=torch.bool))[0]
    is_plain, is_flipped = ((x1 == other).flatten(1).all(1) for other in (plain_x1, flipped))
    assert (is_plain | is_flipped).all() and 140 < int(is_flipped.sum()) < 260
