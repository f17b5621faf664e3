"""Attention against a plain softmax in float64, on whatever path the backend takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqathinker_jax.model import attention
from vqathinker_jax.model.attention import attend, attend_two
from vqathinker_jax.sharding import Layout

B, N, K, H = 2, 6, 2, 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of about 5 queries, so that short sequences have several, of unequal length."""
    monkeypatch.setattr(attention, "_BLOCK", 5)


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """Normal float32 arrays, large enough that the softmax is far from uniform."""
    random = np.random.default_rng(seed)
    return [(2 * random.standard_normal(shape)).astype(np.float32) for shape in shapes]


def visible(T: int, S: int, causal: bool = False, window: int | None = None, key_mask_BS: np.ndarray | None = None):
    """Which keys [B, T, S] each query sees, said in the fewest words."""
    back_TS = np.arange(S - T, S)[:, None] - np.arange(S)[None, :]
    seen_TS = (back_TS >= 0) & (back_TS < (window or S)) if causal else np.ones((T, S), bool)
    return seen_TS & (np.ones((B, 1, S), bool) if key_mask_BS is None else key_mask_BS[:, None, :])


def plain(query_BTNH, key_BSKH, value_BSKH, visible_BTS) -> np.ndarray:
    """The definition in float64: all scores at once, every query head with keys of its own."""
    query_BTNH, key_BSKH, value_BSKH = (np.asarray(x, np.float64) for x in (query_BTNH, key_BSKH, value_BSKH))
    repeat = query_BTNH.shape[2] // key_BSKH.shape[2]
    key_BSNH, value_BSNH = (np.repeat(x, repeat, axis=2) for x in (key_BSKH, value_BSKH))
    scores_BNTS = np.einsum("btnh,bsnh->bnts", query_BTNH, key_BSNH) / np.sqrt(query_BTNH.shape[-1])
    scores_BNTS = np.where(visible_BTS[:, None], scores_BNTS, -np.inf)
    weights_BNTS = np.exp(scores_BNTS - scores_BNTS.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights_BNTS / weights_BNTS.sum(-1, keepdims=True), value_BSNH)


# float32: sums of up to 23 values of size 2, in another order. bfloat16 has 8 bits: the weights are rounded before the
# second product and the result after it, which puts small results off by 2e-3, and large ones by their last bit. Were
# the scaled query rounded too, it would be 1e-2.
TOLERANCES = {jnp.float32: {"atol": 5e-6}, jnp.bfloat16: {"atol": 5e-3, "rtol": 8e-3}}

PADDED = np.arange(17) >= np.array([[0], [6]])


@pytest.mark.parametrize(
    ("T", "S", "reach"),
    [
        (17, 17, {}),
        (4, 4, {}),
        (15, 23, {}),
        (17, 17, {"key_mask_BS": PADDED}),
        (17, 17, {"causal": True}),
        (17, 17, {"causal": True, "window": 4}),
        (9, 17, {"causal": True}),
        (9, 17, {"causal": True, "window": 6, "key_mask_BS": np.arange(17) >= np.array([[0], [3]])}),
        (1, 17, {"causal": True}),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_attend_is_softmax_of_what_each_query_sees(T: int, S: int, reach: dict, jitted: bool):
    query_BTNH, key_BSKH, value_BSKH = draw((B, T, N, H), (B, S, K, H), (B, S, K, H))
    run = jax.jit(lambda q, k, v: attend(q, k, v, **reach)) if jitted else lambda q, k, v: attend(q, k, v, **reach)
    expected = plain(query_BTNH, key_BSKH, value_BSKH, visible(T, S, **reach))
    np.testing.assert_allclose(run(query_BTNH, key_BSKH, value_BSKH), expected, **TOLERANCES[jnp.float32])


def test_left_padding_changes_nothing_and_rows_without_any_key_stay_finite():
    T, pad = 17, 6
    query_BTNH, key_BSKH, value_BSKH = draw((B, T, N, H), (B, T, K, H), (B, T, K, H))
    padded = attend(query_BTNH, key_BSKH, value_BSKH, causal=True, key_mask_BS=jnp.asarray(PADDED))
    assert np.isfinite(padded).all()
    alone = attend(query_BTNH[1:, pad:], key_BSKH[1:, pad:], value_BSKH[1:, pad:], causal=True)
    # float32, and other blocks.
    np.testing.assert_allclose(padded[1:, pad:], alone, atol=5e-6)


def test_a_causal_query_does_not_depend_on_later_keys():
    T = 17
    query_BTNH, key_BSKH, value_BSKH = draw((B, T, N, H), (B, T, K, H), (B, T, K, H))
    before = attend(query_BTNH, key_BSKH, value_BSKH, causal=True)
    key_BSKH[:, 11:], value_BSKH[:, 11:] = 100, 100
    after = attend(query_BTNH, key_BSKH, value_BSKH, causal=True)
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert np.abs(before[:, 11:] - after[:, 11:]).max() > 1


def test_large_scores_do_not_overflow():
    query_BTNH, key_BSKH, value_BSKH = draw((B, 9, N, H), (B, 9, K, H), (B, 9, K, H))
    expected = plain(100 * query_BTNH, key_BSKH, value_BSKH, visible(9, 9))
    # float32: scores of size 1000 carry errors of 1e-4, which the softmax turns into relative ones.
    np.testing.assert_allclose(attend(100 * query_BTNH, key_BSKH, value_BSKH), expected, atol=2e-3)


def test_bfloat16_inputs_keep_scores_and_softmax_in_float32():
    T = 17
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in draw((B, T, N, H), (B, T, K, H), (B, T, K, H))]
    seen_BTNH = attend(*inputs, causal=True)
    assert seen_BTNH.dtype == jnp.bfloat16
    expected = plain(*(x.astype(jnp.float32) for x in inputs), visible(T, T, causal=True))
    np.testing.assert_allclose(seen_BTNH.astype(jnp.float32), expected, **TOLERANCES[jnp.bfloat16])


@pytest.mark.parametrize("reach", [{}, {"causal": True, "key_mask_BS": PADDED}])
def test_gradient_is_finite_and_that_of_the_plain_softmax(reach: dict):
    T = 17
    query_BTNH, key_BSKH, value_BSKH, weights_BTNH = draw((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    real_BT = reach.get("key_mask_BS", np.ones((B, T), bool))
    weights_BTNH = weights_BTNH * real_BT[..., None, None]
    visible_BTS = visible(T, T, **reach)

    def ours(q, k, v):
        return (attend(q, k, v, **reach) * weights_BTNH).sum()

    def plainly(q, k, v):
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
        scores_BNTS = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") / np.sqrt(H)
        seen = jax.nn.softmax(jnp.where(visible_BTS[:, None], scores_BNTS, -1e30), -1)
        return (jnp.einsum("bnts,bsnh->btnh", seen, v, precision="highest") * weights_BTNH).sum()

    gradients = jax.grad(ours, argnums=(0, 1, 2))(query_BTNH, key_BSKH, value_BSKH)
    expected = jax.grad(plainly, argnums=(0, 1, 2))(query_BTNH, key_BSKH, value_BSKH)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert np.isfinite(gradient).all()
        # float32 sums in another order, of values up to 20.
        np.testing.assert_allclose(gradient, wanted, atol=2e-5)


def test_no_array_holds_all_scores_of_a_long_sequence():
    """Not even where heads run side by side, as on an accelerator."""
    T = 128
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, T, N, H), (B, T, K, H), (B, T, K, H))]
    jaxpr = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, causal=True))(*shapes)
    largest = max(variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars)
    assert largest < B * N * T * T / 8


def test_both_paths_agree():
    """Rows and heads side by side, as on an accelerator, against one after another, as on a CPU."""
    inputs = draw((B, 17, N, H), (B, 17, K, H), (B, 17, K, H))
    paths = Layout(one_by_one=True), Layout(one_by_one=False)
    results = [attend(*inputs, path, causal=True, key_mask_BS=jnp.asarray(PADDED)) for path in paths]
    # float32 sums in another order.
    np.testing.assert_allclose(*results, atol=5e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attend_two_is_one_softmax_over_both_sets_of_keys(dtype: jnp.dtype):
    T, S, C = 3, 7, 4
    query_BTNH, *prompt, key_BTCKH, value_BTCKH = draw(
        (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, C, K, H), (B, T, C, K, H)
    )
    mask_BS = np.arange(S) >= np.array([[0], [3]])
    mask_BTC = np.arange(C) < np.array([[[1], [2], [4]], [[4], [3], [1]]])
    query_BTNH, *prompt = (jnp.asarray(x, dtype) for x in (query_BTNH, *prompt))
    key_BTCKH, value_BTCKH = (jnp.asarray(x, dtype) for x in (key_BTCKH, value_BTCKH))

    shared = tuple(x.transpose(0, 2, 1, 3) for x in prompt)
    own = tuple(x.transpose(0, 3, 1, 2, 4) for x in (key_BTCKH, value_BTCKH))
    seen_BTNH = attend_two(query_BTNH, (*shared, mask_BS), (*own, mask_BTC))
    assert seen_BTNH.dtype == dtype

    # Each completion as a row of its own, whose one query sees its prompt's keys and then its own.
    alone = [
        plain(
            query_BTNH[:, t : t + 1].astype(jnp.float32),
            np.concatenate([prompt[0], key_BTCKH[:, t]], axis=1, dtype=np.float32),
            np.concatenate([prompt[1], value_BTCKH[:, t]], axis=1, dtype=np.float32),
            np.concatenate([mask_BS, mask_BTC[:, t]], axis=1)[:, None],
        )
        for t in range(T)
    ]
    expected = np.concatenate(alone, axis=1)
    np.testing.assert_allclose(seen_BTNH.astype(jnp.float32), expected, **TOLERANCES[dtype])


def test_attend_two_without_any_visible_key_is_finite():
    query_BTNH, key_BKSH, key_BKTCH = draw((B, 1, N, H), (B, K, 5, H), (B, K, 1, 2, H))
    nothing = np.zeros((B, 5), bool), np.zeros((B, 1, 2), bool)
    seen_BTNH = attend_two(query_BTNH, (key_BKSH, key_BKSH, nothing[0]), (key_BKTCH, key_BKTCH, nothing[1]))
    assert np.isfinite(seen_BTNH).all()
