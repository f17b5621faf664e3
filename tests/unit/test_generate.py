"""Generation: decoding with a cache is the model itself, whatever stands beside a row in its batch."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import CONTEXT, PAD, PLAIN, STOP, tiny_frames, tiny_model, tiny_prompt
from vqathinker_jax import generate as generation
from vqathinker_jax.data.prompt import pad_left
from vqathinker_jax.flops import count_flops
from vqathinker_jax.generate import Sampling, choose, encode, generate
from vqathinker_jax.records import InputError

# float32 on a CPU: sums in another order differ by a few ulps, which three layers amplify to about 1e-5.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
GREEDY = Sampling(max_new_tokens=12)
DRAWN = Sampling(max_new_tokens=12, temperature=0.9, top_k=20)
TAILS = [[8, 9], [10, 11, 12, 13, 14], [15]]


WINDOWED = replace(PLAIN, language=replace(PLAIN.language, window=10))
MODELS = {"stacked": (PLAIN, False), "listed": (PLAIN, True), "windowed": (WINDOWED, True)}


@pytest.fixture(scope="module", params=MODELS)
def split(request: pytest.FixtureRequest):
    config, listed = MODELS[request.param]
    return nnx.split(tiny_model(config, listed=listed))


def run(split, tails, sampling=GREEDY, frames=None, **options):
    ids_PS, mask_PS = pad_left([tiny_prompt(tail) for tail in tails], PAD, bucket=options.pop("bucket", 32))
    frames = tiny_frames(len(tails)) if frames is None else frames
    ends = {"context_id": CONTEXT, "stop_id": STOP, "pad_id": PAD}
    return generate(*split, encode(*split, frames), ids_PS, mask_PS, sampling=sampling, **ends, **options)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_decoding_equals_the_model_run_over_the_whole_text(split, sampling: Sampling):
    made = run(split, TAILS, sampling, completions=2)
    model = nnx.merge(*split)
    texts = [
        np.concatenate([tiny_prompt(tail), ids_C])
        for tail, ids_GC in zip(TAILS, made.ids_PGC, strict=True)
        for ids_C in ids_GC
    ]
    ids_BS, mask_BS = pad_left(texts, PAD, bucket=64)
    visual_BLD = jnp.repeat(model.encode(jnp.asarray(tiny_frames(len(TAILS)))), 2, axis=0)
    hidden_BSD, _ = model.language.prefill(model.embed(ids_BS, visual_BLD, CONTEXT), mask_BS)
    logits_BCV = model.language.logits(hidden_BSD[:, -GREEDY.max_new_tokens - 1 : -1]) / (sampling.temperature or 1)
    written_BC = made.ids_PGC.reshape(len(texts), -1)
    log_probs_BC = jnp.take_along_axis(jax.nn.log_softmax(logits_BCV), written_BC[..., None], -1)[..., 0]
    running_BC = np.arange(GREEDY.max_new_tokens) < made.lengths_PG.reshape(-1, 1)
    np.testing.assert_allclose(
        made.log_probs_PGC.reshape(written_BC.shape)[running_BC], log_probs_BC[running_BC], **CLOSE
    )
    if sampling.temperature == 0:
        np.testing.assert_array_equal(written_BC[running_BC], logits_BCV.argmax(-1)[running_BC])


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_watching_tokens_tells_how_likely_they_were_and_changes_nothing(split, sampling: Sampling):
    plain, vocabulary = run(split, TAILS, sampling, completions=2), PLAIN.language.vocabulary
    made = run(split, TAILS, replace(sampling, watched=tuple(range(vocabulary))), completions=2)
    np.testing.assert_array_equal(made.ids_PGC, plain.ids_PGC)
    assert plain.watched_PGCW.shape == (*plain.ids_PGC.shape, 0)
    running_PGC = np.arange(sampling.max_new_tokens) < made.lengths_PG[..., None]
    # Watched at temperature 1; tempered, they are the log-probs that draws were made by.
    tempered_PGCW = jax.nn.log_softmax(made.watched_PGCW / (sampling.temperature or 1))
    own_PGC = np.take_along_axis(tempered_PGCW, made.ids_PGC[..., None], -1)[..., 0]
    np.testing.assert_allclose(own_PGC[running_PGC], made.log_probs_PGC[running_PGC], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(made.watched_PGCW[running_PGC]).sum(-1), 1, rtol=1e-5)
    assert not made.watched_PGCW[~running_PGC].any()


def test_rows_do_not_depend_on_padding_or_on_their_neighbours(split):
    together = run(split, TAILS)
    for row, tail in enumerate(TAILS):
        alone = run(split, [tail], frames=tiny_frames(len(TAILS))[row : row + 1], bucket=48)
        np.testing.assert_array_equal(alone.ids_PGC[0], together.ids_PGC[row])
        np.testing.assert_allclose(alone.log_probs_PGC[0], together.log_probs_PGC[row], **CLOSE)


def test_batch_order_does_not_matter(split):
    forth, back = run(split, TAILS), run(split, TAILS[::-1], frames=tiny_frames(len(TAILS))[::-1])
    np.testing.assert_array_equal(forth.ids_PGC, back.ids_PGC[::-1])


def test_tokens_see_only_what_came_before(split):
    model = nnx.merge(*split)
    hidden = jax.random.normal(jax.random.key(0), (1, 9, 32))
    mask = np.ones((1, 9), bool)
    before, _ = model.language.prefill(hidden, mask)
    after, _ = model.language.prefill(hidden.at[:, 6:].add(1.0), mask)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).min() > 0


@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_token_alone_costs_less_and_says_the_same(layers: int):
    config = replace(WINDOWED, language=replace(WINDOWED.language, layers=layers))
    graph, state = nnx.split(tiny_model(config, listed=True).language)
    hidden_PSD = jax.random.normal(jax.random.key(0), (2, 16, 32))
    mask_PS = np.arange(16) >= np.array([[0], [5]])

    def run(state: nnx.State, hidden_PSD: jax.Array, *, only_last: bool):
        return nnx.merge(graph, state).prefill(hidden_PSD, mask_PS, only_last=only_last)

    every, last = (partial(run, only_last=only_last) for only_last in (False, True))
    (all_PSD, cache), (last_P1D, same) = every(state, hidden_PSD), last(state, hidden_PSD)
    np.testing.assert_allclose(last_P1D, all_PSD[:, -1:], **CLOSE)
    assert jax.tree.structure(same) == jax.tree.structure(cache)
    for ours, theirs in zip(jax.tree.leaves(same), jax.tree.leaves(cache), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    # What a layer does for other tokens than to make their keys and values, saved once.
    D, width = 32, config.language.heads * config.language.head
    saved = 2 * 2 * 15 * (2 * D * width + 3 * D * config.language.mlp)
    assert count_flops(every, state, hidden_PSD) - count_flops(last, state, hidden_PSD) >= saved


def test_a_window_ends_what_a_token_sees():
    model = tiny_model(replace(WINDOWED, language=replace(WINDOWED.language, layers=1)))
    hidden = jax.random.normal(jax.random.key(0), (1, 16, 32))
    mask = np.ones((1, 16), bool)
    before, _ = model.language.prefill(hidden, mask)
    after, _ = model.language.prefill(hidden.at[:, 2].add(1.0), mask)
    changed = (before != after).any(-1)[0]
    assert changed.tolist() == [2 <= t < 2 + 10 for t in range(16)]


def compilations() -> list[int]:
    """How often each jitted function has been compiled."""
    return [getattr(f, "_cache_size")() for f in (generation.prefill, generation.begin, generation.decode)]  # noqa: B009


def test_nothing_compiles_twice_for_another_video(split):
    run(split, [[8, 9]])
    sizes = compilations()
    run(split, [[9, 10, 11]], frames=tiny_frames(1, seed=5))
    assert compilations() == sizes


def test_slicing_the_loop_changes_nothing(split):
    whole, sliced = run(split, TAILS, DRAWN, slice_length=64), run(split, TAILS, DRAWN, slice_length=5)
    np.testing.assert_array_equal(whole.ids_PGC, sliced.ids_PGC)


def test_a_completion_ends_at_the_stop_token_and_is_padded():
    split = nnx.split(tiny_model())
    first = run(split, TAILS)
    stop = int(first.ids_PGC[0, 0, 3])
    ids_PS, mask_PS = pad_left([tiny_prompt(tail) for tail in TAILS], PAD, bucket=32)
    made = generate(
        *split,
        encode(*split, tiny_frames(3)),
        ids_PS,
        mask_PS,
        context_id=CONTEXT,
        stop_id=stop,
        pad_id=PAD,
        sampling=GREEDY,
    )
    length = int(np.argmax(first.ids_PGC[0, 0] == stop)) + 1
    assert made.lengths_PG[0, 0] == length
    assert made.stopped_PG[0, 0]
    np.testing.assert_array_equal(made.ids_PGC[0, 0, :length], first.ids_PGC[0, 0, :length])
    assert (made.ids_PGC[0, 0, length:] == PAD).all()
    assert (made.log_probs_PGC[0, 0, length:] == 0).all()


def test_an_endless_completion_is_marked_as_cut_off():
    made = run(nnx.split(tiny_model()), TAILS)
    cut = ~(made.ids_PGC == STOP).any(-1)
    np.testing.assert_array_equal(made.stopped_PG, ~cut)
    assert (made.lengths_PG[cut] == GREEDY.max_new_tokens).all()
    assert cut.any()


def test_the_seed_decides_the_draw():
    split = nnx.split(tiny_model())
    one, again, other = (run(split, TAILS, DRAWN, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.ids_PGC, again.ids_PGC)
    assert (one.ids_PGC != other.ids_PGC).any()


LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], np.float32))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0), {0, 1, 2, 3, 4}),
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.7), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.8), {0, 1, 2}),
        (Sampling(temperature=1.0, top_k=1, top_p=0.9), {0}),
        (Sampling(temperature=0.0), {0}),
    ],
)
def test_draws_come_from_the_tokens_that_the_cuts_leave(sampling: Sampling, kept: set[int]):
    keys = jax.random.split(jax.random.key(0), (1, 2000))
    chosen, log_probs, _ = choose(jnp.broadcast_to(LOGITS, (1, 2000, 5)), keys, sampling)
    assert set(np.unique(chosen).tolist()) == kept
    # The recorded probability is the whole vocabulary's, whatever was cut.
    np.testing.assert_allclose(log_probs, LOGITS[np.asarray(chosen)], rtol=1e-5)


def test_draws_follow_the_temperature():
    keys = jax.random.split(jax.random.key(0), (1, 20000))
    chosen, *_ = choose(jnp.broadcast_to(LOGITS, (1, 20000, 5)), keys, Sampling(temperature=2.0))
    expected = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    # 20,000 draws: the standard error of a share is at most 0.0036.
    np.testing.assert_allclose(np.bincount(chosen[0], minlength=5) / 20000, expected, atol=0.015)


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}],
)
def test_impossible_settings_are_refused(wrong: dict):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(InputError, match=f"^{name} is {value}: give [^;]*$"):
        Sampling(**wrong)
