"""Answers from places that are taken again and again equal the answers one by one."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models import CONTEXT, PAD, PLAIN, tiny_frames, tiny_model, tiny_prompt
from vqathinker_jax import places as module
from vqathinker_jax.data.prompt import pad_left
from vqathinker_jax.generate import Completions, Sampling, encode, generate
from vqathinker_jax.places import Prompt, Written, answers

GREEDY = Sampling(max_new_tokens=14, watched=(9, 30))
DRAWN = Sampling(max_new_tokens=14, temperature=0.9, top_k=20)
VIDEOS = 9
# A window shorter than prompt and answer, so that both ends of what a token sees are held.
WINDOWED = replace(PLAIN, language=replace(PLAIN.language, window=10))
MODELS = {"stacked": (PLAIN, False), "listed": (PLAIN, True), "windowed": (WINDOWED, True)}


@pytest.fixture(scope="module", params=MODELS)
def split(request: pytest.FixtureRequest):
    config, listed = MODELS[request.param]
    return nnx.split(tiny_model(config, listed=listed))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng, frames = np.random.default_rng(0), tiny_frames(VIDEOS)
    made = []
    for video in range(VIDEOS):
        ids_PS, mask_PS = pad_left([tiny_prompt(rng.integers(8, 70, rng.integers(1, 6)).tolist())], PAD, bucket=32)
        made.append(Prompt(video, frames[video], ids_PS[0], mask_PS[0], jax.random.key(video)))
    return made


def alone(split, prompt: Prompt, sampling: Sampling, stop: int) -> tuple[list[int], bool]:
    made = one_by_one(split, prompt, sampling, stop)
    return made.ids_PGC[0, 0, : made.lengths_PG[0, 0]].tolist(), bool(made.stopped_PG[0, 0])


def one_by_one(split, prompt: Prompt, sampling: Sampling, stop: int) -> Completions:
    return generate(
        *split,
        encode(*split, prompt.frames_FYXC[None]),
        prompt.ids_S[None],
        prompt.mask_S[None],
        context_id=CONTEXT,
        stop_id=stop,
        pad_id=PAD,
        sampling=sampling,
        key=prompt.key,
    )


def seated(split, prompts, sampling: Sampling, stop: int, places: int, **options) -> dict[int, tuple[list[int], bool]]:
    """The answers by video."""
    found = seen(split, prompts, sampling, stop, places, **options)
    return {tag: (answer.ids_T.tolist(), answer.stopped) for tag, answer in found.items()}


def seen(split, prompts, sampling: Sampling, stop: int, places: int, **options) -> dict[int, Written]:
    """All of the answers by video; each prompt's key is the one that `generate` splits off for its only completion."""
    fed: Iterator = (p and p._replace(key=jax.random.split(p.key, (1, 1))[0, 0]) for p in prompts)
    ends = {"context_id": CONTEXT, "stop_id": stop, "sampling": sampling}
    found = list(answers(*split, fed, places=places, **ends, **options))
    assert len(found) == len({answer.tag for answer in found})
    return {answer.tag: answer for answer in found}


def common_token(split, prompts: list[Prompt], sampling: Sampling) -> int:
    """A token that ends some answers early, others late and some not at all."""
    texts = [alone(split, prompt, sampling, -1)[0] for prompt in prompts]
    return max(range(8, 77), key=lambda token: len({text.index(token) for text in texts if token in text}))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_refilled_places_answer_as_one_by_one(split, prompts: list[Prompt], sampling: Sampling):
    stop = common_token(split, prompts, sampling)
    expected = {prompt.tag: alone(split, prompt, sampling, stop) for prompt in prompts}
    assert len({len(ids) for ids, _ in expected.values()}) >= 3, "answers of one length refill nothing"
    for places in 1, 3:
        assert seated(split, prompts, sampling, stop, places) == expected


def test_watched_tokens_are_as_likely_as_one_by_one(split, prompts: list[Prompt]):
    stop = common_token(split, prompts, GREEDY)
    for video, answer in seen(split, prompts, GREEDY, stop, 3).items():
        expected = one_by_one(split, prompts[video], GREEDY, stop).watched_PGCW[0, 0, : len(answer.ids_T)]
        assert answer.watched_TW.shape == (len(answer.ids_T), 2)
        # float32: sums over other numbers of rows.
        np.testing.assert_allclose(answer.watched_TW, expected, rtol=1e-4, atol=1e-5)


def test_slices_pauses_and_order_change_nothing(prompts: list[Prompt]):
    split = nnx.split(tiny_model())
    stop = common_token(split, prompts, GREEDY)
    expected = seated(split, prompts, GREEDY, stop, 2)
    assert seated(split, prompts[::-1], GREEDY, stop, 4, slice_length=3) == expected
    paused = [None, None, prompts[0], None, *prompts[1:5], None, *prompts[5:], None]
    assert seated(split, paused, GREEDY, stop, 3) == expected


def test_an_answer_may_be_a_single_token(prompts: list[Prompt]):
    split = nnx.split(tiny_model())
    one = replace(GREEDY, max_new_tokens=1)
    assert seated(split, prompts, one, -1, 2) == {p.tag: alone(split, p, one, -1) for p in prompts}
    stop = alone(split, prompts[0], GREEDY, -1)[0][0]
    assert seated(split, prompts[:3], GREEDY, stop, 2)[0] == ([stop], True)


def test_no_prompts_no_answers():
    assert seated(nnx.split(tiny_model()), [], GREEDY, -1, 2) == {}


def test_an_answer_frees_its_place_before_the_others_end(prompts: list[Prompt]):
    split = nnx.split(tiny_model())
    stop = common_token(split, prompts, GREEDY)
    lengths = {prompt.tag: len(alone(split, prompt, GREEDY, stop)[0]) for prompt in prompts}
    longest = max(lengths, key=lambda tag: lengths[tag])
    first = [prompts[longest], *(p for p in prompts if p.tag != longest)]
    order = list(seated(split, first, GREEDY, stop, 2, slice_length=100))
    assert order.index(longest) > 0


def test_nothing_compiles_twice(prompts: list[Prompt]):
    split = nnx.split(tiny_model())
    seated(split, prompts[:3], GREEDY, -1, 2)
    compiled = [getattr(f, "_cache_size")() for f in (module.occupy, module.advance)]  # noqa: B009
    seated(split, prompts, GREEDY, -1, 2)
    assert [getattr(f, "_cache_size")() for f in (module.occupy, module.advance)] == compiled  # noqa: B009
