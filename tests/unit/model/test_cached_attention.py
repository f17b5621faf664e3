"""What a newly decoded token sees of caches: by XLA against a plain softmax, by the kernel against XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.device_phases import case
from benchmarks.device_sizes import SIZES
from tests.devices import run_on_devices
from tests.unit.model.test_attention import TOLERANCES, B, H, K, N, draw, plain
from vqathinker_jax.model import cached_attention
from vqathinker_jax.model.cached_attention import attend_two, in_bytes
from vqathinker_jax.sharding import ONE_DEVICE, Attention, Layout


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keys_and_values_in_bytes_are_seen_as_what_they_stand_for(dtype: jnp.dtype):
    S, C = 40, 4
    query_BTNH, *prompt = draw((B, 3, N, H), (B, K, S, H), (B, K, S, H))
    own = draw((B, K, 3, C, H), (B, K, 3, C, H))
    # As in Qwen2.5, a channel of the keys is far larger than the others: it must not cost them their steps.
    prompt[0][..., 1] += 300
    query_BTNH[..., 1] *= 1e-3
    mask_BS = np.arange(S) >= np.array([[0], [3]])
    prompt[1][1, :, :3] = 1e4  # behind the mask, where no scale is to look
    mine = (*(jnp.asarray(x, dtype) for x in own), np.ones((B, 3, C), bool))
    query_BTNH, *prompt = (jnp.asarray(x, dtype) for x in (query_BTNH, *prompt))
    narrow = [in_bytes(x, mask_BS) for x in prompt]
    wide = [jnp.asarray(each.numbers * each.scale, jnp.float32) for each in narrow]
    for x, near, kept in zip(prompt, wide, narrow, strict=True):
        assert kept.numbers.dtype == jnp.int8
        off = np.abs(np.asarray(x, np.float32) - near) * mask_BS[:, None, :, None]
        # Half a step, and what float32 makes of the largest.
        assert (off <= kept.scale * 0.501 + 1e-5).all()
    found = attend_two(query_BTNH, (*narrow, mask_BS), mine)
    expected = attend_two(
        query_BTNH.astype(jnp.float32), (*wide, mask_BS), (*(x.astype(jnp.float32) for x in mine[:2]), mine[2])
    )
    assert found.dtype == dtype
    # bfloat16 rounds the query once more, with the scale in it, where scores reach 18 and values 8: that is two thirds
    # of what is off, and 40 rounded probabilities are the rest.
    room = {"atol": 5e-6} if dtype == jnp.float32 else {"atol": 4e-2}
    np.testing.assert_allclose(found.astype(jnp.float32), expected, **room)
    exact = attend_two(query_BTNH, (*prompt, mask_BS), mine).astype(jnp.float32)
    # Scales of a token each, all of them that channel's, would take the other channels' steps away.
    steps = [jnp.abs(x.astype(jnp.float32)).max(-1, keepdims=True) / 127 for x in prompt]
    coarse = [(jnp.round(x / step) * step).astype(dtype) for x, step in zip(prompt, steps, strict=True)]
    worse = attend_two(query_BTNH, (*coarse, mask_BS), mine).astype(jnp.float32)
    assert np.abs(found.astype(jnp.float32) - exact).mean() < 0.1 * np.abs(worse - exact).mean()


def test_attend_two_without_any_visible_key_is_finite():
    query_BTNH, key_BKSH, key_BKTCH = draw((B, 1, N, H), (B, K, 5, H), (B, K, 1, 2, H))
    nothing = np.zeros((B, 5), bool), np.zeros((B, 1, 2), bool)
    seen_BTNH = attend_two(query_BTNH, (key_BKSH, key_BKSH, nothing[0]), (key_BKTCH, key_BKTCH, nothing[1]))
    assert np.isfinite(seen_BTNH).all()


def asked(T: int, S: int, width: int, dtype: jnp.dtype = jnp.bfloat16, C: int = 9) -> tuple:
    """Queries, prompts of unequal length, and completions of unequal length, of 2 rows and heads in groups of 7."""
    query_BTNH, *kept = draw((2, T, 14, width), (2, 2, S, width), (2, 2, S, width), *[(2, 2, T, C, width)] * 2)
    prompt_mask_BS = np.arange(S) >= np.array([[0], [S - 106]])
    own_mask_BTC = np.broadcast_to(np.arange(C) < np.arange(1, 1 + T)[:, None] * np.array([[[1]], [[5]]]), (2, T, C))
    query_BTNH, key, value, own_key, own_value = (jnp.asarray(x, dtype) for x in (query_BTNH, *kept))
    return query_BTNH, (key, value, prompt_mask_BS), (own_key, own_value, own_mask_BTC)


def in_a_kernel(layout: Layout, *inputs: object) -> bool:
    """Whether these go through one."""
    return "cached_attention" in str(jax.make_jaxpr(lambda *inputs: attend_two(*inputs, layout))(*inputs))


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
@pytest.mark.parametrize(("T", "S", "width"), [(1, 1024, 128), (3, 1152, 64), (18, 1024, 64)])
@pytest.mark.parametrize("kept", ["full", "int8"])
def test_the_kernel_sees_what_xla_sees(
    kernel: Attention, T: int, S: int, width: int, kept: str, monkeypatch: pytest.MonkeyPatch
):
    """Interpreted, as there is no accelerator; most tiles of the second row have no key to see."""
    monkeypatch.setattr(cached_attention, "_INTERPRETED", True)
    # Completions' own caches are for the kernel too where they are whole tiles.
    query_BTNH, (key, value, mask_BS), own = asked(T, S, width, C=128 if T > 1 else 9)
    if kept == "int8":
        key, value = in_bytes(key, mask_BS), in_bytes(value, mask_BS)
    inputs = query_BTNH, (key, value, mask_BS), own
    layout = Layout(attention=kernel)
    assert in_a_kernel(layout, *inputs)
    assert not in_a_kernel(ONE_DEVICE, *inputs)
    found, expected = (attend_two(*inputs, path).astype(jnp.float32) for path in (layout, ONE_DEVICE))
    # bfloat16: tiles have peaks of their own, so that other weights are rounded.
    np.testing.assert_allclose(found, expected, atol=0.02, rtol=8e-3)
    # What a mask hides counts: without the last keys it is another sum.
    fewer = query_BTNH, (key, value, mask_BS & (np.arange(S) < S - 56)), own
    assert np.abs(attend_two(*fewer).astype(jnp.float32) - expected).max() > 0.1


@pytest.mark.parametrize(
    ("inputs", "attention"),
    [
        (asked(1, 1024, 64, jnp.float32), "splash"),
        (asked(1, 1024, 32), "splash"),
        (asked(1, 1030, 64), "splash"),
        (asked(1, 896, 64), "splash"),
        (asked(19, 256, 64), "cudnn"),
        (asked(1, 1024, 64), "blocks"),
    ],
)
def test_what_the_kernel_does_not_take_goes_through_xla(inputs: tuple, attention: Attention):
    assert not in_a_kernel(Layout(attention=attention), *inputs)


SPREAD = """
from dataclasses import replace
import jax, jax.numpy as jnp, numpy as np
from vqathinker_jax.model import cached_attention
from vqathinker_jax.model.cached_attention import attend_two
from vqathinker_jax.sharding import MeshConfig, layout_of, make_mesh

cached_attention._INTERPRETED = True
layout = layout_of(make_mesh(MeshConfig(data=1, fsdp=2, tensor=2)))
shapes = (2, 1, 6, 64), (2, 2, 1024, 64), (2, 2, 1, 128, 64)
query, prompt, own = (jax.random.normal(jax.random.key(len(x)), x).astype(jnp.bfloat16) for x in shapes)
masks = jnp.arange(1024) >= jnp.array([[0], [900]]), jnp.arange(128) < jnp.full((2, 1, 1), 5)
inputs = query, (prompt, prompt, masks[0]), (own, own, masks[1])
run = jax.jit(lambda kernel, *inputs: attend_two(*inputs, replace(layout, attention=kernel)), static_argnums=0)
# bfloat16: tiles have peaks of their own, so that other weights are rounded.
found, expected = (run(kernel, *inputs).astype(jnp.float32) for kernel in ("cudnn", "blocks"))
np.testing.assert_allclose(found, expected, atol=0.02, rtol=8e-3)
text = run.lower("cudnn", *inputs).compile().as_text()
assert "all-gather" not in text, "a cache went to another device"
"""


def test_the_kernel_on_a_mesh_takes_what_each_device_holds():
    run_on_devices(4, "-c", SPREAD)


@pytest.mark.parametrize(("kernel", "platform"), [("splash", "tpu"), ("cudnn", "cuda")])
@pytest.mark.parametrize("model", ["8B", "8B-int8-cache"])
def test_no_scores_of_the_8b_model_leave_the_kernel(
    kernel: Attention, platform: str, model: str, monkeypatch: pytest.MonkeyPatch
):
    """Lowered on a machine that has neither; prefill, which shapes the caches, asks for cuDNN's version."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    found = case(SIZES[model], "decode@32", Layout(attention=kernel))
    lowered = jax.jit(found.run).trace(*jax.eval_shape(found.make)).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert "cached_attention" in text
    # All scores of a layer, of 28 heads or 4 groups of 7, or weights of them.
    assert "x7x5120x" not in text
    assert "x5120x7x" not in text
