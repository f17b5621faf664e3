"""Which row stands where: whole epochs, fresh or the reference's, mixed as the weights say."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from vqathinker_jax.data.manifest import Row
from vqathinker_jax.data.order import ordered, reference_permutation
from vqathinker_jax.records import InputError


def rows(count: int, dataset: str = "a") -> list[Row]:
    return [Row(f"{dataset}{n}", dataset, f"{n}.mp4", Path(f"{n}.mp4"), "How?", 3.0, n + 1) for n in range(count)]


def epoch(places, number: int) -> list[str]:
    return [places[number * len(places) + place].id for place in range(len(places))]


@pytest.mark.parametrize("kind", ["fresh", "reference"])
def test_an_epoch_is_whole_batches_of_rows_that_stand_once(kind):
    places = ordered([rows(11)], (), 4, kind, seed=1)
    epochs = [epoch(places, number) for number in range(3)]
    assert [len(ids) for ids in epochs] == [8, 8, 8]
    assert all(len(set(ids)) == 8 for ids in epochs)
    assert len({tuple(ids) for ids in epochs}) == 3, "an epoch repeats another's order"
    assert len({frozenset(ids) for ids in epochs}) > 1, "every epoch drops the same rows"


@pytest.mark.parametrize("kind", ["fresh", "reference"])
def test_the_order_follows_from_the_seed(kind):
    assert epoch(ordered([rows(20)], (), 4, kind, seed=1), 1) == epoch(ordered([rows(20)], (), 4, kind, seed=1), 1)
    assert epoch(ordered([rows(20)], (), 4, kind, seed=1), 1) != epoch(ordered([rows(20)], (), 4, kind, seed=2), 1)


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (7, 42), (1000, 2**32 - 1)])
def test_the_references_permutations_are_torchs(count: int, seed: int):
    generator = torch.Generator()
    generator.manual_seed(seed)
    for number in range(3):
        expected = torch.randperm(count, generator=generator).tolist()
        assert list(reference_permutation(count, seed, number)) == expected


def test_the_references_order_takes_all_lists_as_one():
    places = ordered([rows(5, "a"), rows(6, "b")], (), 2, "reference", seed=42)
    pool = [row.id for row in rows(5, "a") + rows(6, "b")]
    assert epoch(places, 1) == [pool[place] for place in reference_permutation(11, 42, 1)[:10]]


def test_without_weights_an_epoch_holds_every_row_of_all():
    assert sorted(epoch(ordered([rows(5, "a"), rows(3, "b")], (), 4, "fresh", seed=0), 0)) == [
        *(f"a{n}" for n in range(5)),
        *(f"b{n}" for n in range(3)),
    ]


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ((10, 30), (1, 1), (10, 10)),  # the smaller runs out
        ((10, 30), (0.1, 0.3), (10, 30)),
        ((30, 30), (2, 1), (29, 15)),  # 45 would fit, 44 are whole batches: 29.3 and 14.7
        ((9, 9, 9), (0.3, 0.3, 0.4), (7, 6, 9)),  # 22: 6.6, 6.6 and 8.8
    ],
)
def test_weights_set_each_lists_share_of_every_epoch(sizes, weights, counts):
    sets = [rows(size, name) for size, name in zip(sizes, "abc", strict=False)]
    places = ordered(sets, weights, 2, "fresh", seed=0)
    for number in range(3):
        ids = epoch(places, number)
        assert len(set(ids)) == len(ids)
        assert Counter(name[0] for name in ids) == dict(zip("abc", counts, strict=False))


def test_mixed_lists_do_not_come_in_blocks():
    names = "".join(name[0] for name in epoch(ordered([rows(20, "a"), rows(20, "b")], (1, 1), 4, "fresh", seed=0), 0))
    assert "a" * 10 not in names
    assert names.count("ab") > 3


@pytest.mark.parametrize(
    ("sizes", "weights", "batch_size", "fault"),
    [
        ((3,), (), 4, "an epoch has only 3 videos: give 3 or less"),
        ((0,), (), 4, "no videos"),
        ((3, 3), (1.0,), 2, "1 weights for 2 manifests"),
        ((3, 3), (1.0, 0.0), 2, "give numbers above 0"),
        ((3, 3), (1.0, float("nan")), 2, "give numbers above 0"),
        ((100, 3), (1.0, 1e-4), 2, "weight 0.0001 is too little"),
    ],
)
def test_what_fills_no_batch_is_refused(sizes, weights, batch_size: int, fault: str):
    with pytest.raises(InputError, match=fault):
        ordered([rows(size) for size in sizes], weights, batch_size, "fresh", seed=0)
