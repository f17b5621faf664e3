"""What is wrong with the settings is told from a model's dimensions, to the token, before there is a model."""

from dataclasses import replace

import numpy as np
import pytest

from tests.checkpoints import TOKENIZER, settings
from vqathinker_jax.data import prompt
from vqathinker_jax.data.view import View
from vqathinker_jax.generate import Sampling
from vqathinker_jax.judge import check, prompt_ids
from vqathinker_jax.model.config import ModelConfig, parse_config
from vqathinker_jax.records import InputError

VIEW, SAMPLING = View(frames=4, image_size=56), Sampling(max_new_tokens=16)


@pytest.fixture(scope="module")
def tokenizer():
    return prompt.load_tokenizer(TOKENIZER)


def model(positions: int = 32768, vocabulary: int = 436, *, motion: bool = True) -> ModelConfig:
    config = parse_config(settings("chat"), motion=motion)
    return replace(config, language=replace(config.language, max_positions=positions, vocabulary=vocabulary))


@pytest.mark.parametrize("question", [None, "Is it sharp?"])
def test_a_prompt_may_fill_every_position_and_not_one_more(tokenizer, question: str | None):
    length = len(prompt_ids(model(), tokenizer, VIEW, SAMPLING, question))
    assert length % 128, "padding must not count"
    check(model(length + 16), tokenizer, VIEW, SAMPLING, question=question)
    with pytest.raises(InputError, match=f"^{length} prompt tokens and 16 new ones exceed the model's {length + 15} "):
        check(model(length + 15), tokenizer, VIEW, SAMPLING, question=question)


@pytest.mark.parametrize("motion", [True, False])
def test_a_prompt_has_a_slot_for_each_visual_token(tokenizer, motion: bool):
    ids_T = prompt_ids(model(motion=motion), tokenizer, VIEW, SAMPLING)
    assert np.sum(ids_T == prompt.special_tokens(tokenizer).context) == 4 * 4 + motion


def test_a_prompt_beyond_all_memory_is_never_written(tokenizer):
    for view in (View(frames=10**12, image_size=56), View(frames=1, image_size=28 * 10**12)):
        with pytest.raises(InputError, match="exceed the model's 32768 positions"):
            check(model(), tokenizer, view, SAMPLING)


def test_another_models_tokenizer_is_refused(tokenizer):
    check(model(vocabulary=len(tokenizer)), tokenizer, VIEW, SAMPLING)
    with pytest.raises(InputError, match="use the tokenizer that came with the weights"):
        check(model(vocabulary=len(tokenizer) - 1), tokenizer, VIEW, SAMPLING)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_a_seed_is_32_bits(tokenizer, seed: int):
    check(model(), tokenizer, VIEW, SAMPLING, seed=2**32 - 1)
    with pytest.raises(InputError, match=f"seed is {seed}: give 0 to 4294967295"):
        check(model(), tokenizer, VIEW, SAMPLING, seed=seed)


def test_frames_too_small_for_the_motion_branch_are_refused_where_there_is_one(tokenizer):
    small = View(frames=4, image_size=28)
    check(model(motion=False), tokenizer, small, SAMPLING)
    with pytest.raises(InputError, match="image size 28: too small for the motion branch; try 56"):
        check(model(), tokenizer, small, SAMPLING)


def test_an_unknown_decoder_is_refused_at_once():
    with pytest.raises(InputError, match="'ffmpeg' is unknown; choose one of pyav, decord"):
        View(4, 56, decoder="ffmpeg")
