"""What is asked of a video and how its answer is read: ratings, multiple-choice questions, free descriptions.

The rating's question and parsing are the reference's; the other tasks are ours.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from vqathinker_jax.data.labels import LETTERS, Choice, Item
from vqathinker_jax.parse import ANSWER, parse_score
from vqathinker_jax.records import Answer

DESCRIBE = (
    "Describe the quality of this video in detail: sharpness, noise, compression, exposure, colour, stability and "
    "smoothness of motion, and what limits it most."
)
PICK = "Answer with the letter of the right option."
_LETTER = re.compile(r"\(?([A-Z])(?:[.:)]|\s*(?:\n|$))")  # an article in front of a word is no letter of an option


class Reading(NamedTuple):
    """What an answer says, as fields of a row; `reason` is why it says nothing, or None."""

    fields: dict[str, Any]
    reason: str | None


@dataclass(frozen=True)
class Task:
    """question: what is asked about an item's video, None for the rating. read: what a completion's text says."""

    name: str
    question: Callable[[Item], str | None]
    read: Callable[[Item, str], Reading]


def _read_rating(_: Item, text: str) -> Reading:
    parsed = parse_score(text)
    fields = {"score": None, "thinking": parsed.thinking, "answer": parsed.answer}
    if isinstance(parsed, Answer):
        return Reading(fields | {"score": parsed.score}, None)
    return Reading(fields, parsed.reason)


def _ask_choice(item: Item) -> str:
    choice = _choice(item)
    options = (f"{letter}. {option}" for letter, option in zip(LETTERS, choice.options, strict=False))
    return "\n".join([choice.question, *options, PICK])


def _read_choice(item: Item, text: str) -> Reading:
    choice = _choice(item)
    chosen = pick(text, choice.options)
    fields = {"chosen": None if chosen is None else LETTERS[chosen]}
    return Reading(fields, None if chosen is not None else "the answer names none of the options")


def pick(text: str, options: tuple[str, ...]) -> int | None:
    """Which option (from 0) an answer names, by its letter in front or by its own text; None where it names none."""
    marked = ANSWER.findall(text)
    answer = (marked[-1] if marked else text).strip()
    for place, (name, option) in enumerate(zip(LETTERS, options, strict=False)):
        if _plain(answer) in {_plain(option), _plain(f"{name} {option}")}:
            return place
    letter = _LETTER.match(answer)
    if letter and (place := LETTERS.index(letter[1])) < len(options):
        return place
    return None


def _plain(text: str) -> str:
    return text.casefold().strip(" .")


def _choice(item: Item) -> Choice:
    assert item.choice is not None, "an item of another task"
    return item.choice


def _read_description(_: Item, text: str) -> Reading:
    return Reading({"answer": text.strip()}, None if text.strip() else "the answer is empty")


TASKS = {
    task.name: task
    for task in (
        Task("score", lambda _: None, _read_rating),
        Task("choice", _ask_choice, _read_choice),
        Task("describe", lambda _: DESCRIBE, _read_description),
    )
}
