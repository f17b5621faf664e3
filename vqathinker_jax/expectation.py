"""A written rating and how likely each digit was at its places go in; the mean of the ratings it might have been comes
out.

A greedy rating is the mode of what the model holds likely: a few round values, ties among videos that the model does
tell apart. The mean over that distribution, given the reasoning as it was written, keeps what the mode drops. It costs
nothing: the probabilities come with the tokens.

Source: our own, over digits; Q-Align (arXiv 2312.17090) takes such a mean over five words, from best to worst.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vqathinker_jax.parse import ANSWER
from vqathinker_jax.records import HIGHEST, LOWEST

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

DIGITS = "0123456789"
_RATING = re.compile(r"([1-5])(?:\.(\d*))?")
_BLANKS = "ĠĊĉč"
"""Space, newline, tab and return, as byte-level vocabularies write them."""
_ROOM = 1 / 12
"""Variance of what is anywhere within a whole point."""


class Expectation(NamedTuple):
    """Mean and standard deviation of a rating's distribution, on the scale of 1 to 5."""

    expected: float
    deviation: float


def expectation(
    tokenizer: "Qwen2Tokenizer", ids_T: Sequence[int] | np.ndarray, digits_T10: np.ndarray
) -> Expectation | None:
    """The distribution's mean and deviation; None where the first answer is no rating in digits of a token each.

    ids_T: a completion. digits_T10: log-probs of the tokens of `digit_tokens` at its places, [T, 0] without these.

    The first digit is 1 to 5 by its probabilities. Behind the one that was written stand the means of the decimals as
    they were written. Behind its neighbours, whose decimals nobody asked for, stands what lies as far beyond the whole
    point between them, at most half a point, for who wavers between 3.98 and 4.02 says a 4 for 4.02 and not for 4.50.
    Behind others stand any, so the middle of the point is taken, and behind 5 none.
    """
    if not digits_T10.shape[-1]:
        return None
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(np.asarray(ids_T).tolist())]
    text = "".join(pieces)
    answer = ANSWER.search(text)
    written = answer and _RATING.fullmatch(answer.group(1).strip(_BLANKS))
    if not answer or not written or float(written.group()) > HIGHEST:
        return None
    begin = text.index(written.group(), answer.start(1))
    starts = np.cumsum([0, *map(len, pieces)])
    places = [int(np.searchsorted(starts, begin + k, "right")) - 1 for k, c in enumerate(written.group()) if c != "."]
    if any(len(pieces[place]) != 1 for place in places):
        return None
    first, *decimals = digits_T10[places]
    lowest, highest = int(LOWEST), int(HIGHEST)
    means = np.arange(lowest, highest + 1) + (0.5 if decimals else 0.0)
    variances = np.full(len(means), _ROOM if decimals else 0.0)
    means[-1], variances[-1] = highest, 0.0
    own = int(written.group(1)) - lowest
    means[own], variances[own] = own + lowest, 0.0
    for step, log_probs_10 in enumerate(decimals if own + lowest < highest else (), 1):
        mean, variance = _moments(np.arange(10), _shares(log_probs_10))
        means[own] += mean / 10**step
        variances[own] += variance / 100**step
    for near, edge in ((own - 1, own + lowest), (own + 1, own + lowest + 1)):
        if decimals and 0 <= near < len(means) - 1:
            depth = np.clip(edge - means[own], -0.5, 0.5)
            means[near], variances[near] = edge + depth, _ROOM * (2 * depth) ** 2
    shares = _shares(first[lowest : highest + 1])
    mean, variance = _moments(means, shares)
    return Expectation(round(mean, 4), round(float(np.sqrt(variance + shares @ variances)), 4))


def digit_tokens(tokenizer: "Qwen2Tokenizer") -> tuple[int, ...]:
    """The ids of 0 to 9; none of them where the vocabulary lacks one."""
    vocabulary = tokenizer.get_vocab()
    return tuple(vocabulary[digit] for digit in DIGITS) if set(DIGITS) <= vocabulary.keys() else ()


def _shares(log_probs: np.ndarray) -> np.ndarray:
    """What each takes of all of these."""
    shares = np.exp(log_probs.astype(np.float64) - log_probs.max())
    return shares / shares.sum()


def _moments(values: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    mean = float(shares @ values)
    return mean, float(shares @ (values - mean) ** 2)
