"""A prompt's row with its G completions is G separate rows, in value and gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import PLAIN, tiny_model
from vqathinker_jax.flops import count_flops
from vqathinker_jax.sharding import Layout, Remat

P, S, G, C = 2, 9, 3, 5


@pytest.fixture(params=["stacked", "listed", "windowed"])
def language(request: pytest.FixtureRequest):
    config = replace(PLAIN, language=replace(PLAIN.language, window=7)) if request.param == "windowed" else PLAIN
    return nnx.split(tiny_model(config, listed=request.param == "listed").language)


def together(split, prompt_PSD: jax.Array, completions_PGCD: jax.Array, mask_PS: np.ndarray) -> jax.Array:
    return nnx.merge(*split).fork(prompt_PSD, mask_PS, completions_PGCD)


def apart(split, prompt_PSD: jax.Array, completions_PGCD: jax.Array, mask_PS: np.ndarray) -> jax.Array:
    rows_BTD = jnp.concatenate([jnp.repeat(prompt_PSD, G, axis=0), completions_PGCD.reshape(P * G, C, -1)], axis=1)
    mask_BT = np.concatenate([np.repeat(mask_PS, G, axis=0), np.ones((P * G, C), bool)], axis=1)
    hidden_BTD, _ = nnx.merge(*split).prefill(rows_BTD, mask_BT)
    return hidden_BTD[:, S - 1 : -1].reshape(P, G, C, -1)


def test_a_forked_row_equals_separate_rows_with_gradients(language):
    prompt_key, completion_key, weight_key = jax.random.split(jax.random.key(0), 3)
    prompt_PSD = jax.random.normal(prompt_key, (P, S, 32))
    completions_PGCD = jax.random.normal(completion_key, (P, G, C, 32))
    weights_PGCD = jax.random.normal(weight_key, (P, G, C, 32))
    mask_PS = np.arange(S) >= np.array([[0], [4]])
    graph, state = language

    def value_and_gradients(run):
        def weighted(state, prompt_PSD, completions_PGCD):
            hidden_PGCD = run((graph, state), prompt_PSD, completions_PGCD, mask_PS)
            return (hidden_PGCD * weights_PGCD).sum(), hidden_PGCD

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(
            state, prompt_PSD, completions_PGCD
        )

    (_, forked), forked_gradients = value_and_gradients(together)
    (_, plain), plain_gradients = value_and_gradients(apart)
    # float32: the same sums in another order, through three layers.
    np.testing.assert_allclose(forked, plain, atol=2e-5)
    for ours, theirs in zip(jax.tree.leaves(forked_gradients), jax.tree.leaves(plain_gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max() + 1e-6)


@pytest.mark.parametrize("remat", ["products", "layers", "blocks"])
def test_what_is_computed_again_changes_no_gradient(remat: Remat):
    model = tiny_model(PLAIN).language
    row_PSD = jax.random.normal(jax.random.key(1), (P, S, 32))
    completions_PGCD = jax.random.normal(jax.random.key(2), (P, G, C, 32))

    def gradients(remat: Remat) -> tuple[nnx.State, int]:
        model.layout = Layout(remat=remat)
        graph, state = nnx.split(model)

        def loss(state: nnx.State) -> jax.Array:
            return jnp.square(together((graph, state), row_PSD, completions_PGCD, np.ones((P, S), bool))).sum()

        return jax.jit(jax.grad(loss))(state), count_flops(jax.grad(loss), state)

    (kept, flops), (again, more) = gradients("none"), gradients(remat)
    assert flops < more
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
        # float32: the same arithmetic, which the compiler fuses otherwise.
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max() + 1e-6)
