"""From a completion's text to a rating: an `Answer`, or an `Unparsable` that says what was found instead.

Scoring and training read by different rules, as in the reference: scoring takes the first answer as a number, training
the first number in the last answer.

Deviations from the reference: where scoring gives whatever it cannot read 3.00, and takes nan and ratings off the scale
at their word, and where training draws a number at random, these are failures with a reason. A fallback to the
reference brings its numbers back.
"""

import math
import re
import reprlib
from typing import NamedTuple

import numpy as np

from vqathinker_jax.records import HIGHEST, LOWEST, Answer, Unparsable

REFERENCE_SCORE = 3.0
# Of larger numbers float32 can no longer hold the variance.
LARGEST = 1e15

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
"""What a completion puts between its answer tags."""
_THINKING = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_FORM = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_RATING = re.compile(r"-?\d+(\.\d+)?")


class Reading(NamedTuple):
    """What training reads in a completion.

    parsed: the rating, or why there is none. decimals: how many the rating has, 0 without one. formatted: whether the
    whole text is thinking and answer in their tags.
    """

    parsed: Answer | Unparsable
    decimals: int
    formatted: bool


def parse_score(text: str, reference_fallback: bool = False) -> Answer | Unparsable:
    """The rating in the first `<answer>` tags of a completion, 1 (very poor) to 5 (excellent), and its reasoning.

    With `reference_fallback` any number is taken as it stands, and everything else becomes an answer of 3.00.

    Source: the reference's evaluation script.
    """
    thinking, answer = _inside(_THINKING, text), _inside(ANSWER, text)
    score = _number(answer)
    if reference_fallback:
        return Answer(REFERENCE_SCORE if score is None else score, thinking, answer)
    if score is not None and LOWEST <= score <= HIGHEST:
        return Answer(score, thinking, answer)
    return Unparsable(_reason(text, answer, score), thinking, answer)


def parse_rollout(
    text: str, *, trailing_zeros: bool = False, reference_fallback: np.random.Generator | None = None
) -> Reading:
    """The first number in the last `<answer>` tags of a sampled completion, or in all of it where there are none.

    Any number is taken, be it off the scale, so that a bad rating can be told from a worse one. With `trailing_zeros` a
    written 3.50 has two decimals; the reference counts one (quirk). With a generator as `reference_fallback` a text
    without a number becomes a whole number drawn from 1 to 5, as there (which draws again for each reward).

    Source: the reference's `grpo_jsonl.py`.
    """
    thinking, formatted = _inside(_THINKING, text), _FORM.fullmatch(text) is not None
    answer = (ANSWER.findall(text) or [text])[-1].strip()
    number = _RATING.search(answer)
    if number and abs(float(number.group())) <= LARGEST:
        score = float(number.group())
        decimals = _decimals(number.group()) if trailing_zeros else _decimals(str(score).rstrip("0"))
        return Reading(Answer(score, thinking, answer), decimals, formatted)
    if reference_fallback and not number:
        score = float(reference_fallback.integers(1, 5, endpoint=True))
        return Reading(Answer(score, thinking, answer), 0, formatted)
    found = "is too large" if number else "holds no number"
    return Reading(Unparsable(f"the answer {reprlib.repr(answer)} {found}", thinking, answer), 0, formatted)


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _inside(tags: re.Pattern[str], text: str) -> str:
    match = tags.search(text)
    return match.group(1).strip() if match else ""


def _number(answer: str) -> float | None:
    try:
        return float(answer.replace(",", ""))
    except ValueError:
        return None


def _reason(text: str, answer: str, score: float | None) -> str:
    if "<answer>" not in text:
        return "no <answer> tags"
    if not ANSWER.search(text):
        return "the text breaks off: <answer> is never closed"
    if not answer:
        return "the <answer> tags are empty"
    if score is None:
        return f"the answer {reprlib.repr(answer)} is not a number"
    if not math.isfinite(score):
        return f"the answer {reprlib.repr(answer)} is not a finite number"
    return f"rating {score:g} outside {LOWEST:g}..{HIGHEST:g}"
