"""Attention against a plain softmax in float64, on whatever path the backend takes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.device_phases import case
from benchmarks.device_sizes import SIZES
from tests.devices import run_on_devices
from vqathinker_jax.model import attention
from vqathinker_jax.model.attention import attend
from vqathinker_jax.sharding import ONE_DEVICE, Layout

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


KERNEL = Layout(attention="cudnn")


@pytest.fixture
def same_in_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN runs nowhere but on its GPUs; XLA takes the very call."""
    monkeypatch.setattr(attention, "_KERNEL", "xla")


def agree(layout: Layout, T: int, S: int, reach: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether what is seen, and its gradient, are those of blocks, without any of them."""
    N, K, H = (6, 2, 8) if layout == KERNEL else (2, 1, 64)
    *inputs, weights_BTNH = draw((B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H))
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    mask_BS = reach.get("key_mask_BS", np.ones((B, S), bool))
    reach = {name: jnp.asarray(x) if name == "key_mask_BS" else x for name, x in reach.items()}
    real_BT = mask_BS[:, S - T :, None, None]

    def seen(layout: Layout, *inputs: jax.Array) -> jax.Array:
        return jnp.where(real_BT, attend(*inputs, layout, **reach).astype(jnp.float32), 0)

    def both(layout: Layout, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        out, backward = jax.vjp(lambda *x: seen(layout, *x), *inputs)
        return out, *(x.astype(jnp.float32) for x in backward(weights_BTNH))

    run = jax.jit(both, static_argnums=0)
    blocks, *blocks_gradient = run(ONE_DEVICE, *inputs)
    monkeypatch.delattr(attention, "_in_blocks")
    kernel, *kernel_gradient = run(layout, *inputs)
    # bfloat16: each rounds its weights, one before they are divided by their sum and one after.
    np.testing.assert_allclose(kernel, blocks, atol=0.02, rtol=8e-3)
    for ours, theirs in zip(kernel_gradient, blocks_gradient, strict=True):
        # bfloat16 holds 8 bits: of sums of up to 18 values of size 5, each path rounds others.
        np.testing.assert_allclose(ours, theirs, atol=0.25, rtol=0.03)


@pytest.mark.usefixtures("same_in_xla")
@pytest.mark.parametrize(
    ("T", "S", "reach"),
    [
        (17, 17, {}),
        (17, 17, {"causal": True}),
        (17, 17, {"causal": True, "window": 17}),
        (17, 17, {"causal": True, "key_mask_BS": PADDED}),
        (8, 18, {"causal": True}),
        (8, 18, {"causal": True, "key_mask_BS": np.arange(18) >= np.array([[0], [3]])}),
        (18, 18, {"key_mask_BS": np.arange(18) >= np.array([[0], [3]])}),
    ],
)
def test_the_kernel_sees_what_blocks_see(T: int, S: int, reach: dict, monkeypatch: pytest.MonkeyPatch):
    agree(KERNEL, T, S, reach, monkeypatch)


@pytest.mark.parametrize(
    ("shape", "dtype", "reach"),
    [
        ((16, 16, 8), jnp.float32, {}),
        ((16, 16, 12), jnp.bfloat16, {}),
        ((16, 16, 136), jnp.bfloat16, {}),
        ((16, 16, 8), jnp.bfloat16, {"causal": True, "window": 15}),
        ((5, 16, 8), jnp.bfloat16, {"causal": True}),
    ],
)
def test_what_the_kernel_does_not_take_goes_in_blocks(
    shape: tuple[int, int, int], dtype: jnp.dtype, reach: dict, monkeypatch: pytest.MonkeyPatch
):
    T, S, H = shape
    monkeypatch.delattr(attention, "_in_cudnn")
    inputs = [jax.ShapeDtypeStruct(x, dtype) for x in ((B, T, N, H), (B, S, K, H), (B, S, K, H))]
    assert jax.eval_shape(lambda *inputs: attend(*inputs, KERNEL, **reach), *inputs).shape == (B, T, N, H)


SPREAD = """
from dataclasses import replace
import jax, jax.numpy as jnp, numpy as np
from vqathinker_jax.model import attention
from vqathinker_jax.sharding import MeshConfig, layout_of, make_mesh

attention._KERNEL = "xla"
layout = layout_of(make_mesh(MeshConfig(data=1, fsdp=2, tensor=2)))
query, key, weights = (jax.random.normal(jax.random.key(n), (4, 6, n, 8)).astype(jnp.bfloat16) for n in (6, 2, 6))
mask = jnp.arange(6) >= jnp.array([[0], [2], [5], [0]])

def both(kernel, query, key):
    seen = lambda q, k: attention.attend(q, k, k, replace(layout, attention=kernel), causal=True, key_mask_BS=mask)
    out, backward = jax.vjp(lambda q, k: jnp.where(mask[..., None, None], seen(q, k), 0), query, key)
    return jax.tree.map(lambda x: x.astype(jnp.float32), (out, *backward(weights)))

run = jax.jit(both, static_argnums=0)
blocks = run("blocks", query, key)
del attention._in_blocks
# bfloat16: each rounds its weights, one before they are divided by their sum and one after.
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.05, rtol=0.02), run("cudnn", query, key), blocks)
"""


def test_the_kernel_on_a_mesh_sees_what_blocks_see():
    run_on_devices(4, "-c", SPREAD)


@pytest.mark.parametrize("cell", ["vision@16", "prefill@16", "update@8"])
def test_for_a_gpu_no_scores_of_the_8b_model_leave_the_kernel(cell: str, monkeypatch: pytest.MonkeyPatch):
    """Lowered on a machine that has none, so what only asks for cuDNN's version is answered for it."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    found = case(SIZES["8B"], cell, KERNEL)
    lowered = jax.jit(found.run).trace(*jax.eval_shape(found.make)).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    calls = set(re.findall(r"@(__cudnn\$\w+)\(", text))
    backward = {"__cudnn$fmhaSoftmaxBackward", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
    assert "__cudnn$fmhaSoftmax" in calls
    assert (backward <= calls) == (cell == "update@8")
    # All scores of a layer would be one such array for each of 16 or 28 heads, in float32 or bfloat16.
    sides = "1601|5120|1025|1792|2048"
    assert not re.search(rf"tensor<[\dx]*x(16|28|4x7)x(\d+x)?({sides}|256)x({sides})x(f32|bf16)>", text)


@pytest.mark.parametrize(
    ("T", "S", "reach"),
    [
        (130, 130, {}),
        (128, 256, {"causal": True, "window": 150, "key_mask_BS": np.arange(256) >= np.array([[0], [7]])}),
    ],
)
def test_splash_sees_what_blocks_see(T: int, S: int, reach: dict, monkeypatch: pytest.MonkeyPatch):
    """Interpreted, as there is no TPU."""
    monkeypatch.setattr(attention, "_INTERPRETED", True)
    agree(Layout(attention="splash"), T, S, reach, monkeypatch)


def test_for_a_tpu_scores_stay_in_splash():
    found = case(SIZES["8B"], "prefill@1", Layout(attention="splash"))
    text = jax.jit(found.run).trace(*jax.eval_shape(found.make)).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    # Keys of 128 channels stand so too, before the one query of the last layer.
    assert not re.search(r"tensor<[\dx]*x(?!128x)\d{3,4}x5120x(f32|bf16)>", text)
