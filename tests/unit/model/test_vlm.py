"""Slots are filled in order, motion last; a full-size model fits its names without any memory."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import CONTEXT, FRAMES, IMAGE_SIZE, MOVING, tiny_frames, tiny_model, tiny_prompt
from vqathinker_jax import generate
from vqathinker_jax.data.prompt import pad_left
from vqathinker_jax.generate import Sampling
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.vlm import VLM, normalise
from vqathinker_jax.skeleton import abstract_model


@pytest.fixture(scope="module")
def model() -> VLM:
    return tiny_model(MOVING)


@pytest.fixture(scope="module")
def encode(model: VLM):
    """`model.encode`, compiled: op by op, SlowFast alone compiles a hundred convolutions one at a time."""
    graph, state = nnx.split(model)
    return jax.jit(lambda frames, tapped=False: _encode(graph, state, frames, tapped), static_argnums=1)


def _encode(graph: nnx.GraphDef, state: nnx.State, frames: jax.Array, tapped: bool):
    out: dict | None = {} if tapped else None
    return nnx.merge(graph, state).encode(frames, out), out


def test_slots_take_the_vision_tokens_in_order_and_the_motion_token_last(model: VLM):
    slots = FRAMES * MOVING.tokens_per_frame(IMAGE_SIZE) + 1
    visual_PLD = jnp.arange(2 * slots, dtype=jnp.float32).reshape(2, slots, 1) * jnp.ones(32)
    prompts = [tiny_prompt([8], MOVING), tiny_prompt([9, 10, 11], MOVING)]
    ids_PS, mask_PS = pad_left(prompts, pad=79, bucket=16)
    hidden_PSD = np.asarray(model.embed(jnp.asarray(ids_PS), visual_PLD, CONTEXT))
    np.testing.assert_array_equal(hidden_PSD[ids_PS == CONTEXT], visual_PLD.reshape(-1, 32))
    words = (ids_PS != CONTEXT) & mask_PS
    np.testing.assert_array_equal(hidden_PSD[words], model.language.embedding[...][ids_PS[words]])


def test_the_motion_token_follows_the_frames_and_depends_on_their_order(encode):
    frames = tiny_frames(1)
    (forth, _), (back, _) = encode(frames), encode(frames[:, ::-1].copy())
    L = MOVING.tokens_per_frame(IMAGE_SIZE)
    assert forth.shape == (1, FRAMES * L + 1, 32)
    # Vision tokens only change places; in float32 another place in the batch may change the last bits.
    np.testing.assert_allclose(forth[0, :L], back[0, (FRAMES - 1) * L : -1], atol=1e-5)
    assert np.abs(forth[0, -1] - back[0, -1]).max() > 1e-3


def test_a_copy_out_of_order_is_encoded_as_if_its_frames_had_been_given_so(model: VLM, encode):
    graph, state = nnx.split(model)
    frames_PFYXC = tiny_frames(2)
    order_PF = np.array([[1, 1, 3, 0], [0, 1, 2, 3]], np.int32)
    blank_PF = np.array([[False, False, False, False], [False, True, False, True]])
    frames = np.asarray(normalise(jnp.asarray(frames_PFYXC)))
    by_hand_PFYXC = np.stack([video[order] for video, order in zip(frames, order_PF, strict=True)])
    by_hand_PFYXC[blank_PF] = 0

    @jax.jit
    def perturbed(state: nnx.State, frames_PFYXC: jax.Array, visual_PLD: jax.Array) -> jax.Array:
        return nnx.merge(graph, state).encode_perturbed(frames_PFYXC, visual_PLD, order_PF, blank_PF)

    found = perturbed(state, frames_PFYXC, encode(frames_PFYXC)[0])
    # float32: a frame's place in the batch may change the last bits.
    np.testing.assert_allclose(found, encode(by_hand_PFYXC)[0], atol=1e-5)


def test_a_video_is_encoded_the_same_whatever_stands_beside_it(encode):
    frames = tiny_frames(2)
    # float32: another batch size may sum in another order.
    np.testing.assert_allclose(encode(frames)[0][1], encode(frames[1:])[0][0], atol=1e-5)


def test_taps_name_every_stage_and_change_nothing(encode):
    frames = tiny_frames(1)
    (plain, nothing), (tapped, out) = encode(frames), encode(frames, True)
    assert nothing is None
    # float32: keeping the stages may fuse the arithmetic around them differently.
    np.testing.assert_allclose(tapped, plain, atol=1e-5)
    assert out["vision.layers"].shape[0] == MOVING.vision.layers
    assert {"vision.embedding", "projector", "motion.stages", "motion.features", "motion.token"} <= out.keys()


def test_frames_are_normalised_as_imagenets_were():
    pixels = np.array([[0, 128, 255]], np.uint8)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalise(jnp.asarray(pixels)), expected, rtol=1e-6)
    np.testing.assert_array_equal(normalise(jnp.asarray(expected)), jnp.asarray(expected))


def test_the_8b_scoring_step_lowers_without_weights_in_under_a_minute():
    config = ModelConfig()
    graph, state = nnx.split(abstract_model(config))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state)
    slots = 12 * config.tokens_per_frame(560) + 1
    length = -(-(slots + 400) // 128) * 128
    frames = jax.ShapeDtypeStruct((1, 12, 560, 560, 3), jnp.uint8)
    ids, mask = (jax.ShapeDtypeStruct((1, length), dtype) for dtype in (jnp.int32, jnp.bool))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (1, 1)))
    ending = {"sampling": Sampling(), "stop_id": 151645, "pad_id": 151643}

    started = time.perf_counter()
    visual = generate.encode.lower(graph, state, frames).out_info
    assert visual.shape == (1, slots, config.language.width)
    lowered = generate.prefill.lower(graph, state, visual, ids, mask, context_id=151667)
    logits, cache = lowered.out_info
    assert (logits.shape, logits.dtype) == ((1, config.language.vocabulary), jnp.float32)
    decoding = generate.begin.lower(graph, state, logits, keys, **ending).out_info
    until = jax.ShapeDtypeStruct((), jnp.int32)
    generate.decode.lower(graph, state, cache, decoding, keys, until, **ending)
    assert time.perf_counter() - started < 60
