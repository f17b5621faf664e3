"""What is asked, and how answers are read: which option a text names, and nothing where it names none."""

from pathlib import Path

import pytest

from vqathinker_jax.data.labels import Choice, Item
from vqathinker_jax.tasks import DESCRIBE, TASKS, pick

OPTIONS = ("Motion blur", "Noise", "A lot of noise")
ITEM = Item("a#1", Path("a"), choice=Choice("What is wrong?", OPTIONS, 1, "kind"))


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", 1),
        ("B.", 1),
        ("B. Noise", 1),
        ("(B) because of the noise", 1),
        ("C: A lot of noise", 2),
        ("noise.", 1),
        ("A lot of noise", 2),
        ("<think>It is A or B.</think><answer>B</answer>", 1),
        ("<answer>A</answer> no: <answer> C. </answer>", 2),
        ("B Noise", 1),
        ("B\nThe picture is noisy.", 1),
        ("A bit of noise", None),
        ("I think it is B", None),
        ("D", None),
        ("Be careful", None),
        ("It is blurred", None),
        ("b", None),
        ("", None),
    ],
)
def test_an_answer_names_an_option_by_letter_or_text(text: str, chosen: int | None):
    assert pick(text, OPTIONS) == chosen
    reading = TASKS["choice"].read(ITEM, text)
    assert reading.fields == {"chosen": None if chosen is None else "ABC"[chosen]}
    assert (reading.reason is None) == (chosen is not None)


def test_the_question_lists_its_options():
    asked = TASKS["choice"].question(ITEM)
    assert asked is not None
    assert asked.splitlines()[:4] == ["What is wrong?", "A. Motion blur", "B. Noise", "C. A lot of noise"]


def test_ratings_are_read_as_scoring_reads_them():
    task = TASKS["score"]
    assert task.question(ITEM) is None
    fields, reason = task.read(ITEM, "<think>Sharp.</think><answer>4.25</answer>")
    assert (fields, reason) == ({"score": 4.25, "thinking": "Sharp.", "answer": "4.25"}, None)
    fields, reason = task.read(ITEM, "<think>Sharp.</think>")
    assert (fields["score"], reason) == (None, "no <answer> tags")


def test_a_description_is_any_text():
    task = TASKS["describe"]
    assert task.question(ITEM) == DESCRIBE
    assert task.read(ITEM, " Sharp. ") == ({"answer": "Sharp."}, None)
    assert task.read(ITEM, " \n")[1] == "the answer is empty"
