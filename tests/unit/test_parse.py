"""Ratings and reasons read from completions; the reference's own readings are in the scoring case."""

import json
import math
from pathlib import Path

import pytest

from vqathinker_jax.parse import parse_score
from vqathinker_jax.records import Answer, Unparsable


def test_fallback_reads_what_the_reference_reads(scoring_case: Path):
    readings = json.loads((scoring_case / "expected.json").read_text())["inference_parsing"]
    assert readings
    for reading in readings:
        parsed = parse_score(reading["text"], reference_fallback=True)
        assert isinstance(parsed, Answer)
        assert (parsed.answer, parsed.score) == (reading["answer"], reading["score"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>sharp\nand steady</think>\n<answer> 3.42 </answer>", Answer(3.42, "sharp\nand steady", "3.42")),
        ("<answer>4</answer> and <answer>2.5</answer>", Answer(4.0, "", "4")),
        ("<answer>\n2.75\n</answer>", Answer(2.75, "", "2.75")),
        ("<answer>1</answer>", Answer(1.0, "", "1")),
        ("<answer>5.00</answer><think>late</think><think>later</think>", Answer(5.0, "late", "5.00")),
    ],
)
def test_answers(text: str, expected: Answer):
    assert parse_score(text) == expected


@pytest.mark.parametrize(
    ("text", "reason", "answer"),
    [
        ("no tags 3.1", "no <answer> tags", ""),
        ("", "no <answer> tags", ""),
        ("<think>a</think><answer>3.4", "the text breaks off: <answer> is never closed", ""),
        ("<answer> \n </answer>", "the <answer> tags are empty", ""),
        ("<answer>three</answer>", "the answer 'three' is not a number", "three"),
        ("<answer>3.5/5</answer>", "the answer '3.5/5' is not a number", "3.5/5"),
        ("<answer>nan</answer>", "the answer 'nan' is not a finite number", "nan"),
        ("<answer>-inf</answer>", "the answer '-inf' is not a finite number", "-inf"),
        ("<answer>1,234.5</answer>", "rating 1234.5 outside 1..5", "1,234.5"),
        ("<answer>3,42</answer>", "rating 342 outside 1..5", "3,42"),
        ("<answer>0.99</answer>", "rating 0.99 outside 1..5", "0.99"),
    ],
)
def test_failures_say_what_was_found(text: str, reason: str, answer: str):
    parsed = parse_score(text)
    assert isinstance(parsed, Unparsable)
    assert (parsed.reason, parsed.answer) == (reason, answer)


def test_failure_keeps_the_thinking():
    assert parse_score("<think>dark</think><answer>bad</answer>").thinking == "dark"


def test_a_rambling_answer_is_cut_in_the_reason_only():
    parsed = parse_score(f"<answer>{'very good ' * 100}</answer>")
    assert isinstance(parsed, Unparsable)
    assert len(parsed.reason) < 80
    assert len(parsed.answer) > 900


def test_fallback_keeps_the_references_nan():
    parsed = parse_score("<answer>nan</answer>", reference_fallback=True)
    assert isinstance(parsed, Answer)
    assert math.isnan(parsed.score)
