"""Ratings and reasons read from completions; the reference's own readings are in the scoring case."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vqathinker_jax.parse import parse_rollout, parse_score
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


@pytest.mark.parametrize(
    ("text", "score", "answer"),
    [
        ("<think>a 2</think>\n<answer> 3.42 </answer>", 3.42, "3.42"),
        ("<answer>9.99</answer> then <answer>\n4.77\n</answer> so 1", 4.77, "4.77"),
        ("<answer>around 5.41 out of 5</answer>", 5.41, "around 5.41 out of 5"),
        ("<answer>-1.56</answer>", -1.56, "-1.56"),
        ("1.651 is my score of 5", 1.651, "1.651 is my score of 5"),
        ("<think>a</think><answer>3.4", 3.4, "<think>a</think><answer>3.4"),
        ("<answer>1,234.5</answer>", 1.0, "1,234.5"),
        ("<answer>3.</answer>", 3.0, "3."),
        ("<answer>.5</answer>", 5.0, ".5"),
        ("<answer>4e3</answer>", 4.0, "4e3"),
    ],
)
def test_training_takes_the_first_number_of_the_last_answer(text: str, score: float, answer: str):
    parsed = parse_rollout(text).parsed
    assert isinstance(parsed, Answer)
    assert (parsed.score, parsed.answer) == (score, answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the answer '' holds no number"),
        ("<answer></answer> 3.5", "the answer '' holds no number"),
        ("<answer>2.5</answer><answer>three</answer>", "the answer 'three' holds no number"),
        (f"<answer>{'9' * 400}</answer>", "is too large"),
        ("<answer>-1000000000000001</answer>", "is too large"),
    ],
)
def test_training_without_a_number_is_a_failure_that_says_so(text: str, reason: str):
    reading = parse_rollout(text)
    assert isinstance(reading.parsed, Unparsable)
    assert reason in reading.parsed.reason
    assert len(reading.parsed.reason) < 80
    assert reading.decimals == 0


@pytest.mark.parametrize(
    ("number", "decimals", "written"),
    [("3", 0, 0), ("3.0", 0, 1), ("3.5", 1, 1), ("3.50", 1, 2), ("3.05", 2, 2), ("-1.560", 2, 3), ("30.00", 0, 2)],
)
def test_decimals_are_counted_without_trailing_zeros_or_with_them(number: str, decimals: int, written: int):
    assert parse_rollout(f"<answer>{number}</answer>").decimals == decimals
    assert parse_rollout(f"<answer>{number}</answer>", trailing_zeros=True).decimals == written


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("<think>a\nb</think>\n<answer>2.5</answer>", True),
        ("<think></think><answer></answer>", True),
        ("<think>x</think> <answer>9.99</answer> <answer>4.77</answer>", True),
        ("<think>x</think><answer>three</answer>", True),
        ("<think>x</think> so <answer>2</answer>", False),
        ("<think>x</think><answer>2</answer> trailing", False),
        ("<think>x</think><answer>2</answer>\n", False),
        (" <think>x</think><answer>2</answer>", False),
        ("<answer>2</answer>", False),
        ("<think>x</think><answer>2", False),
    ],
)
def test_the_form_is_of_the_whole_text(text: str, formatted: bool):
    assert parse_rollout(text).formatted == formatted


def test_training_fallback_draws_a_whole_number_from_1_to_5_and_only_where_needed():
    rng = np.random.default_rng(0)
    drawn = [parse_rollout("<think>none", reference_fallback=rng) for _ in range(200)]
    scores = [reading.parsed.score for reading in drawn if isinstance(reading.parsed, Answer)]
    assert len(scores) == 200
    assert set(scores) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert {reading.decimals for reading in drawn} == {0}
    again = np.random.default_rng(0)
    assert [parse_rollout("<think>none", reference_fallback=again).parsed for _ in range(200)] == [
        reading.parsed for reading in drawn
    ]
    before = again.bit_generator.state
    assert parse_rollout("2.5", reference_fallback=again) == parse_rollout("2.5")
    assert again.bit_generator.state == before
    assert isinstance(parse_rollout("9" * 99, reference_fallback=again).parsed, Unparsable)
