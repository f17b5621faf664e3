"""VQAThinker: frames and a tokenised prompt in, hidden states and logits out.

A video becomes visual tokens once (`encode`), whatever the number of completions, and so does its copy with frames out
of order (`encode_perturbed`). They fill the prompt's context slots in order: the vision tokens frame by frame, and last
the one motion token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.language import LanguageModel
from vqathinker_jax.model.layers import Bridge
from vqathinker_jax.model.motion import SlowFast
from vqathinker_jax.model.vision import Projector, VisionTower
from vqathinker_jax.sharding import ONE_DEVICE, Layout

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Sight(NamedTuple):
    """What the towers make of P videos, each None where it is not known (or there is no motion branch).

    tokens_PLD: of the frames, in the language model's width. motion_PZ: SlowFast's features.
    """

    tokens_PLD: jax.Array | None = None
    motion_PZ: jax.Array | None = None


UNSEEN = Sight()


class VLM(nnx.Module):
    """Vision tower, motion encoder, their projectors, and the language model."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D = config.language.width
        self.config = config
        self.vision = VisionTower(config.vision, rngs=rngs)
        self.projector = Projector(config.vision, config.shuffle, D, rngs=rngs)
        self.motion = SlowFast(config.motion, rngs=rngs) if config.motion else None
        self.motion_projector = Bridge(config.motion.features, D, rngs=rngs) if config.motion else None
        self.language = LanguageModel(config.language, rngs=rngs)
        self.arithmetic: jnp.dtype | None = None
        self.layout = ONE_DEVICE

    def lay_out(self, layout: Layout) -> None:
        """Say how the model is to compute."""
        self.layout = self.vision.layout = self.language.layout = layout

    @property
    def dtype(self) -> jnp.dtype:
        """Of activations: `arithmetic` where it is set (float32 weights trained in bfloat16), else the weights'."""
        return self.arithmetic or self.vision.class_token[...].dtype

    def encode(self, frames_PFYXC: jax.Array, out: dict[str, Any] | None = None) -> jax.Array:
        """uint8 RGB frames (or frames already normalised, as floats) to visual tokens [P, F * L (+ 1 motion), D].

        The motion encoder sees the very frames of the vision tower, ImageNet-normalised (a quirk of the reference).
        """
        return self.show(self.look(frames_PFYXC, out=out), out)

    def look(self, frames_PFYXC: jax.Array, known: Sight = UNSEEN, out: dict[str, Any] | None = None) -> Sight:
        """What the towers make of the frames; of what is known of it already, nothing is computed again."""
        frames_PFYXC = normalise(frames_PFYXC).astype(self.dtype)
        tokens_PLD, motion_PZ = known
        if tokens_PLD is None:
            tokens_PLD = self._vision_tokens(frames_PFYXC, out)
        if motion_PZ is None:
            motion_PZ = self._motion_features(frames_PFYXC, out)
        return Sight(tokens_PLD, motion_PZ)

    def show(self, sight: Sight, out: dict[str, Any] | None = None) -> jax.Array:
        """What the language model is shown of it: visual tokens [P, F * L (+ 1 motion), D]."""
        assert sight.tokens_PLD is not None
        if self.motion_projector is None or sight.motion_PZ is None:
            return sight.tokens_PLD
        token_PD = self.motion_projector(sight.motion_PZ)
        if out is not None:
            out["motion.token"] = token_PD
        return jnp.concatenate([sight.tokens_PLD, token_PD[:, None]], axis=1)

    def encode_perturbed(
        self, frames_PFYXC: jax.Array, visual_PLD: jax.Array, order_PF: jax.Array, blank_PF: jax.Array
    ) -> jax.Array:
        """Visual tokens of the same videos with frame `order_PF` (int) in each place, zeros where `blank_PF` (bool).

        `visual_PLD` is what `encode` made of the frames. The vision tower sees each frame by itself, so its tokens only
        change places; but for one blank frame it runs over nothing again, and only the motion encoder does.
        """
        P, F, Y, X, C = frames_PFYXC.shape
        frames_PFYXC = normalise(frames_PFYXC).astype(self.dtype)
        blank_LD = self._vision_tokens(jnp.zeros((1, 1, Y, X, C), self.dtype), None)[0]
        tokens_PFLD = visual_PLD[:, : F * len(blank_LD)].reshape(P, F, *blank_LD.shape)
        tokens_PFLD = _reordered(tokens_PFLD, order_PF, blank_PF, blank_LD)
        frames_PFYXC = _reordered(frames_PFYXC, order_PF, blank_PF, jnp.zeros((), self.dtype))
        tokens_PLD = tokens_PFLD.reshape(P, -1, visual_PLD.shape[-1])
        return self.show(Sight(tokens_PLD, self._motion_features(frames_PFYXC, None)))

    def _vision_tokens(self, frames_PFYXC: jax.Array, out: dict[str, Any] | None) -> jax.Array:
        P, F, Y, X, C = frames_PFYXC.shape
        features_FLE = self.vision(frames_PFYXC.reshape(P * F, Y, X, C), out)
        patch = self.config.vision.patch
        tokens_FLD = self.projector(features_FLE, Y // patch, X // patch)
        if out is not None:
            out["projector"] = tokens_FLD
        return self.layout.rows(tokens_FLD.reshape(P, -1, tokens_FLD.shape[-1]))

    def _motion_features(self, frames_PFYXC: jax.Array, out: dict[str, Any] | None) -> jax.Array | None:
        if self.motion is None:
            return None
        motion_PZ = self.layout.rows(self.motion(frames_PFYXC, out))
        if out is not None:
            out["motion.features"] = motion_PZ
        return motion_PZ

    def embed(self, ids_PS: jax.Array, visual_PLD: jax.Array, context_id: int) -> jax.Array:
        """Prompt ids to [P, S, D] embeddings with the context slots filled, in order, by the visual tokens.

        The number of slots must equal the number of visual tokens in every row: `data.prompt` makes it so.
        """
        slots_PS = ids_PS == context_id
        order_PS = jnp.clip(jnp.cumsum(slots_PS, -1) - 1, 0, visual_PLD.shape[1] - 1)
        filled_PSD = jnp.take_along_axis(visual_PLD, order_PS[..., None], axis=1)
        text_PSD = self.language.embed(ids_PS, visual_PLD.dtype)
        return self.layout.rows(jnp.where(slots_PS[..., None], filled_PSD, text_PSD))


def _reordered(x_PF: jax.Array, order_PF: jax.Array, blank_PF: jax.Array, blank: jax.Array) -> jax.Array:
    """Whatever stands in each place of the frame axis, put in another order, and `blank` where it is left out."""
    inner = (1,) * (x_PF.ndim - 2)
    moved_PF = jnp.take_along_axis(x_PF, order_PF.reshape(*order_PF.shape, *inner), axis=1)
    return jnp.where(blank_PF.reshape(*blank_PF.shape, *inner), blank, moved_PF)


def normalise(frames: jax.Array) -> jax.Array:
    """uint8 RGB [..., 3] to ImageNet-normalised float32; frames that are floats already pass through."""
    if jnp.issubdtype(frames.dtype, jnp.floating):
        return frames
    return (frames.astype(jnp.float32) / 255 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
