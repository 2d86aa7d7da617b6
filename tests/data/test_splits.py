"""Splits: who is held out, in which order images come, and that only (seed, epoch) decides."""

import pytest
import torch

from hoyer_export.data.splits import batch_indices, hold_out
from hoyer_export.errors import DataError
from hoyer_export.random_state import mixed_seed, seeded_generator


@pytest.mark.parametrize(
    ("count", "batch_size", "shuffled", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4, 2]),
        (9, 4, False, [4, 4, 1]),
        (9, 4, True, [4, 4]),  # batch norm cannot train on a single image
        (1, 4, True, [1]),
        (3, 4, True, [3]),
        (3, 1, True, [1, 1, 1]),
        (8, 4, True, [4, 4]),
    ],
)
def test_the_last_batch_is_left_out_only_where_it_is_a_single_shuffled_image(
    count: int, batch_size: int, shuffled: bool, sizes: list[int]
) -> None:
    batches = batch_indices(count, batch_size, torch.Generator() if shuffled else None)
    assert [len(batch) for batch in batches] == sizes
    seen = torch.cat(batches).tolist()
    assert len(set(seen)) == len(seen)
    if not shuffled:
        assert seen == list(range(count))


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="batch_size is 0; expected at least 1"):
        batch_indices(5, 0, None)


def test_neighbouring_keys_give_unrelated_seeds() -> None:
    seeds = {mixed_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400
    assert mixed_seed(1, 2) != mixed_seed(2, 1)
    first = torch.randperm(1000, generator=seeded_generator(0, 0))
    second = torch.randperm(1000, generator=seeded_generator(0, 1))
    assert int((first == second).sum()) < 10  # 1 of 1,000 agrees by chance


LABELS = [0] * 40 + [1] * 20 + [2] * 100


@pytest.mark.parametrize(("share", "counts"), [(0.25, [10, 5, 25]), (0.1, [4, 2, 10]), (16, [4, 2, 10])])
def test_every_class_gives_the_same_share(share: float, counts: list[int]) -> None:
    rest, chosen = hold_out(LABELS, share, seed=3)
    labels = torch.tensor(LABELS)
    assert labels[chosen].bincount().tolist() == counts
    assert sorted(torch.cat((rest, chosen)).tolist()) == list(range(len(LABELS)))
    assert chosen.tolist() == sorted(chosen.tolist())


def test_the_seed_alone_decides_who_is_held_out() -> None:
    chosen = [hold_out(LABELS, 0.25, seed)[1].tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


@pytest.mark.parametrize(
    ("labels", "share", "counts"),
    [([0, 1] * 2, 0.1, [1, 1]), ([0] * 100 + [1] * 2, 0.15, [15, 1]), (list(range(50)) * 3, 0.9, [2] * 50)],
)
def test_of_a_small_class_one_image_is_on_each_side(labels: list[int], share: float, counts: list[int]) -> None:
    rest, chosen = hold_out(labels, share, seed=3)
    assert torch.tensor(labels)[chosen].bincount().tolist() == counts
    assert sorted(torch.cat((rest, chosen)).tolist()) == list(range(len(labels)))


def test_a_class_of_a_single_image_is_named() -> None:
    message = "cannot hold out 0.1 of 4 training images with every class on both sides: the class 'owl' has one image"
    with pytest.raises(DataError, match=message):
        hold_out([0, 0, 0, 1], 0.1, 0, ("cat", "owl"))
