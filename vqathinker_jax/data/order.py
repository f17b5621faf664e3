"""Lists of rows go in; a row for every place of every epoch comes out, the same on every host and in every worker.

Places are counted through all epochs. An epoch is whole batches long and no row stands in it twice; the rows that
would begin another batch are dropped, other ones each epoch.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import grain
import numpy as np

from vqathinker_jax.data.manifest import Row
from vqathinker_jax.records import InputError

Kind = Literal["fresh", "reference"]


def ordered(
    sets: Sequence[Sequence[Row]], weights: Sequence[float], batch_size: int, kind: Kind, seed: int
) -> grain.MapDataset[Row]:
    """Return the rows by place; its length is an epoch's, and places beyond it are the epochs after.

    `fresh` shuffles each epoch anew; with weights, sets mix in these shares until the first of them runs out. The
    `reference` kind gives its permutations of all rows, the same numbers for the same seed.

    Raises:
        InputError: a weight too many, too few or not above 0, or less rows than a batch.
    """
    pool = [row for rows in sets for row in rows]
    if kind == "reference":
        (places,) = _shares([len(pool)], [1.0], batch_size)
        return grain.MapDataset.range(len(pool)).map_with_index(functools.partial(_reference_row, pool, seed))[:places]
    _check(weights, len(sets))
    parts, weights = (sets, weights) if weights else ([pool], [1.0])
    counts = _shares([len(rows) for rows in parts], weights, batch_size)
    *seeds, last = (int(s) for s in np.random.SeedSequence(seed).generate_state(len(parts) + 1))
    epochs = [
        grain.MapDataset.source(rows).shuffle(seed=s)[:count]
        for rows, s, count in zip(parts, seeds, counts, strict=True)
    ]
    return grain.MapDataset.concatenate(epochs).shuffle(seed=last)


@functools.lru_cache(maxsize=2)
def reference_permutation(rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the order of `rows` rows in an epoch of the reference: torch.randperm's, its generator running on.

    Source: the reference's RepeatRandomSampler; the draws and swaps of PyTorch's randperm on the CPU.
    """
    stream = np.random.RandomState(seed)  # the Mersenne Twister that torch.Generator is, seeded alike
    permutation: list[int] = []
    for _ in range(epoch + 1):
        permutation = list(range(rows))
        draws = stream.randint(0, 2**32, rows - 1, dtype=np.uint32) % np.arange(rows, 1, -1)
        for place, step in enumerate(draws.tolist()):
            other = place + step
            permutation[place], permutation[other] = permutation[other], permutation[place]
    return tuple(permutation)


def _reference_row(pool: Sequence[Row], seed: int, index: int, place: int) -> Row:
    return pool[reference_permutation(len(pool), seed, index // len(pool))[place]]


def _check(weights: Sequence[float], sets: int) -> None:
    if weights and len(weights) != sets:
        raise InputError(f"{len(weights)} weights for {sets} manifests: give one for each, or none")
    if not all(0 < weight < float("inf") for weight in weights):
        raise InputError(f"weights are {', '.join(map(str, weights))}: give numbers above 0")


def _shares(sizes: Sequence[int], weights: Sequence[float], batch_size: int) -> list[int]:
    """How many rows of each set an epoch holds: in the proportion of the weights, in all a multiple of the batch."""
    exact = [Fraction(str(weight)) for weight in weights]  # as written: 0.1 is a tenth
    shares = [weight / sum(exact) for weight in exact]
    longest = int(min(size / share for size, share in zip(sizes, shares, strict=True)))
    places = longest // batch_size * batch_size
    if not longest:
        raise InputError("there are no videos to train on: check the manifests and their folders")
    if not places:
        raise InputError(f"batch_size is {batch_size}, but an epoch has only {longest} videos: give {longest} or less")
    counts = [int(places * share) for share in shares]
    by_loss = sorted(range(len(counts)), key=lambda part: counts[part] - places * shares[part])
    for part in by_loss[: places - sum(counts)]:
        counts[part] += 1
    if not all(counts):
        raise InputError(
            f"weight {weights[counts.index(0)]} is too little for a place among the {places} of an epoch: "
            f"give it 1/{places} of all or more"
        )
    return counts
