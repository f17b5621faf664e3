"""The mark of a model: the same for the same numbers, another for any other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.checkpoints import TOKENIZER
from tests.models import PLAIN, tiny_model
from vqathinker_jax.data.prompt import load_tokenizer
from vqathinker_jax.fingerprint import fingerprint


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


def test_equal_models_have_equal_marks(tokenizer):
    marks = {fingerprint(nnx.state(tiny_model()), PLAIN, tokenizer) for _ in range(2)}
    assert len(marks) == 1
    assert len(marks.pop()) == 16


def test_any_other_number_place_dtype_dimension_or_token_changes_the_mark(tokenizer):
    state = nnx.state(tiny_model())
    leaves, tree = jax.tree.flatten(state)

    def changed(number: int, leaf: jax.Array) -> str:
        return fingerprint(jax.tree.unflatten(tree, [*leaves[:number], leaf, *leaves[number + 1 :]]), PLAIN, tokenizer)

    windowed = replace(PLAIN, language=replace(PLAIN.language, window=10))
    marks = [fingerprint(state, PLAIN, tokenizer), fingerprint(state, windowed, tokenizer)]
    for number in 0, len(leaves) // 2, len(leaves) - 1:
        leaf = leaves[number]
        last = (-1,) * leaf.ndim
        swapped = leaf.ravel().at[jnp.array([0, 1])].set(leaf.ravel()[jnp.array([1, 0])]).reshape(leaf.shape)
        marks += [changed(number, leaf.at[last].set(jnp.nextafter(leaf[last], jnp.inf))), changed(number, swapped)]
        marks += [changed(number, leaf.astype(jnp.bfloat16)), changed(number, leaf.at[last].set(jnp.nan))]
    tokenizer.add_tokens(["another"])
    marks.append(fingerprint(state, PLAIN, tokenizer))
    assert len(set(marks)) == len(marks)
