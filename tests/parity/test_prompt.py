"""Prompts and their ids against what the reference's own code put together, for every clip of the scoring case."""

import json
from pathlib import Path

import pytest

from vqathinker_jax.data.prompt import decode, encode, load_tokenizer, scoring_question, special_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "scoring"


@pytest.fixture(scope="module")
def expected(scoring_case: Path) -> dict:
    return json.loads((scoring_case / "expected.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(scoring_case: Path):
    return load_tokenizer(scoring_case)


def test_ids_are_the_references(expected: dict, tokenizer):
    assert expected["videos"]
    for clip, video in expected["videos"].items():
        ids_T = encode(tokenizer, video["prompt"], expected["image_tokens"], expected["frames"], motion=True)
        head, tail = video["input_ids_head"], video["input_ids_tail"]
        assert len(ids_T) == video["input_ids_length"], clip
        assert ids_T[: len(head)].tolist() == head, clip
        assert ids_T[-len(tail) :].tolist() == tail, clip
        visual_tokens = expected["frames"] * expected["image_tokens"] + 1
        assert (ids_T == special_tokens(tokenizer).context).sum() == visual_tokens, clip


def test_text_is_the_references(expected: dict, tokenizer):
    stop = special_tokens(tokenizer).stop
    for clip, video in expected["videos"].items():
        assert decode(tokenizer, video["greedy_ids"]) == video["greedy_text"], clip
        assert decode(tokenizer, [*video["greedy_ids"], stop]) == video["greedy_text"], clip


def test_scoring_question_is_the_references():
    """Against the committed case: another directory's clips may each ask something else."""
    recorded = json.loads((GOLDEN / "expected.json").read_text())
    assert recorded["videos"]["clip0.mp4"]["prompt"] == scoring_question(recorded["frames"], motion=True)
