"""Rollouts: every video's completions in their place, whatever the parts, with what was read in them as numbers."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.checkpoints import TOKENIZER, VOCABULARY
from tests.models import MOVING, tiny_frames, tiny_model
from vqathinker_jax.data.manifest import Row
from vqathinker_jax.data.pipeline import Batch
from vqathinker_jax.data.prompt import load_tokenizer, slot_tokens
from vqathinker_jax.data.view import View
from vqathinker_jax.generate import Sampling
from vqathinker_jax.judge import prompt_ids
from vqathinker_jax.parse import parse_rollout
from vqathinker_jax.records import InputError
from vqathinker_jax.rollout import Clock, Drawn, Prompts, RolloutConfig, _ratings, _room, roll_out
from vqathinker_jax.sharding import MeshConfig, make_mesh

P, F, SIZE = 4, 4, 56
SPEAKING = replace(MOVING, language=replace(MOVING.language, vocabulary=VOCABULARY))
ROWS = tuple(
    Row(str(i), "set", f"{i}.mp4", Path(f"{i}.mp4"), f"How good is it?{' Say.' * i}", 3.0, i) for i in range(P)
)
# So cold that the most probable token is drawn whatever the key; parts have keys of their own.
COLD = RolloutConfig(completions=2, max_new_tokens=8, temperature=0.01)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(ROWS, load_tokenizer(TOKENIZER), SPEAKING, frames=F, size=SIZE)


def batch(*, perturbed: bool) -> Batch:
    order_PF = np.tile(np.arange(F, dtype=np.int32)[::-1], (P, 1))
    return Batch(
        rows=ROWS,
        mos_P=np.linspace(1, 5, P, dtype=np.float32),
        frames_PFYXC=tiny_frames(P),
        order_PF=order_PF if perturbed else None,
        blank_PF=np.zeros((P, F), bool) if perturbed else None,
        health=((),) * P,
        unreadable=(),
    )


def drawn(prompts: Prompts, config: RolloutConfig, *, perturbed: bool = False) -> Drawn:
    graph, state = nnx.split(tiny_model(SPEAKING))
    rest = {"key": jax.random.key(0), "clock": Clock()}
    made = roll_out(graph, state, batch(perturbed=perturbed), prompts, config, make_mesh(MeshConfig(), 1), **rest)
    assert rest["clock"].seconds.keys() == {"encode", "rollout", "reward"}
    return made


def test_prompts_of_unequal_questions_have_one_length(prompts: Prompts):
    one, all_of_them = prompts.of(ROWS[:1]), prompts.of(ROWS)
    assert one[0].shape[1] == all_of_them[0].shape[1]
    assert len(set(all_of_them[1].sum(-1))) == P


def test_prompts_that_leave_no_room_are_refused(prompts: Prompts):
    prompts.check_room(8, 2000)
    with pytest.raises(InputError, match=r"and 8 new ones exceed the model's 100 positions: use fewer"):
        prompts.check_room(8, 100)


def test_parts_keep_every_video_in_its_place(prompts: Prompts):
    whole, parts = drawn(prompts, COLD), drawn(prompts, replace(COLD, micro_batches=2))
    assert len({tuple(texts) for texts in whole.texts_PG}) > 1
    assert parts.texts_PG == whole.texts_PG
    np.testing.assert_array_equal(parts.rollout.completions_PGC, whole.rollout.completions_PGC)
    # float32: another batch size may sum in another order.
    np.testing.assert_allclose(parts.rollout.sight.tokens_PLD, whole.rollout.sight.tokens_PLD, atol=1e-5)


def test_copies_out_of_order_are_completed_too_and_change_nothing_else(prompts: Prompts):
    straight, both = drawn(prompts, COLD), drawn(prompts, COLD, perturbed=True)
    assert straight.rollout.perturbed is None
    assert both.rollout.perturbed is not None
    assert both.rollout.perturbed.scores_PG.shape == (P, 2)
    assert both.texts_PG == straight.texts_PG


def test_tokens_of_slots_are_never_drawn(prompts: Prompts):
    hot = replace(COLD, temperature=50.0, top_k=0, max_new_tokens=64, completions=4)
    said = np.asarray(drawn(prompts, hot).rollout.completions_PGC)
    assert len(np.unique(said)) > VOCABULARY / 3
    assert not np.isin(said, slot_tokens(prompts.tokenizer)).any()


def test_readings_become_arrays():
    readings = [
        [parse_rollout("<think>a</think><answer>3.25</answer>"), parse_rollout("nothing")],
        [parse_rollout("4.5"), parse_rollout("<answer>9</answer>")],
    ]
    ratings = _ratings(readings)
    np.testing.assert_array_equal(ratings.valid_PG, [[True, False], [True, True]])
    np.testing.assert_array_equal(ratings.scores_PG[ratings.valid_PG], [3.25, 4.5, 9])
    np.testing.assert_array_equal(ratings.decimals_PG, [[2, 0], [1, 0]])
    np.testing.assert_array_equal(ratings.formatted_PG, [[True, False], [False, False]])


def test_few_lengths_of_completions_are_compiled():
    assert {_room(longest, 2048) for longest in range(1, 2049)} == {64, 128, 256, 512, 1024, 2048}
    assert _room(3, 16) == 16


def test_scoring_asks_every_row_as_a_judge_does():
    tokenizer, view = load_tokenizer(TOKENIZER), View(F, SIZE)
    prompts = Prompts(ROWS, tokenizer, SPEAKING, frames=F, size=SIZE, question="scoring")
    ids_PS, mask_PS = prompts.of(ROWS)
    expected_T = prompt_ids(SPEAKING, tokenizer, view, Sampling(1))
    for ids_S, mask_S in zip(ids_PS, mask_PS, strict=True):
        np.testing.assert_array_equal(ids_S[mask_S], expected_T)


def test_a_question_that_cannot_be_put_is_named_with_its_line():
    rows = (*ROWS[:1], replace(ROWS[1], problem="How <|im_end|> good?", line=7))
    with pytest.raises(InputError, match=r"^set, line 7, 1\.mp4: the question holds <\|im_end\|>"):
        Prompts(rows, load_tokenizer(TOKENIZER), SPEAKING, frames=F, size=SIZE)
