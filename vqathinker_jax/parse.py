"""From a completion's text to a rating: an `Answer`, or an `Unparsable` that says what was found instead.

Deviation from the reference: where it scores whatever it cannot read 3.00, and takes nan and ratings off the scale at
their word, these are failures with a reason. `reference_fallback` brings its numbers back.
"""

import math
import re
import reprlib

from vqathinker_jax.records import Answer, Unparsable

LOWEST, HIGHEST = 1.0, 5.0
REFERENCE_SCORE = 3.0

_THINKING = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def parse_score(text: str, reference_fallback: bool = False) -> Answer | Unparsable:
    """The rating in the first `<answer>` tags of a completion, 1 (very poor) to 5 (excellent), and its reasoning.

    With `reference_fallback` any number is taken as it stands, and everything else becomes an answer of 3.00.

    Source: the reference's evaluation script.
    """
    thinking, answer = _inside(_THINKING, text), _inside(_ANSWER, text)
    score = _number(answer)
    if reference_fallback:
        return Answer(REFERENCE_SCORE if score is None else score, thinking, answer)
    if score is not None and LOWEST <= score <= HIGHEST:
        return Answer(score, thinking, answer)
    return Unparsable(_reason(text, answer, score), thinking, answer)


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
    if not _ANSWER.search(text):
        return "the text breaks off: <answer> is never closed"
    if not answer:
        return "the <answer> tags are empty"
    if score is None:
        return f"the answer {reprlib.repr(answer)} is not a number"
    if not math.isfinite(score):
        return f"the answer {reprlib.repr(answer)} is not a finite number"
    return f"rating {score:g} outside {LOWEST:g}..{HIGHEST:g}"
