"""VQAThinker: frames and a tokenised prompt in, hidden states and logits out.

A video becomes visual tokens once (`encode`), whatever the number of completions. They fill the prompt's context slots
in order: the vision tokens frame by frame, and last the one motion token.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.model.language import LanguageModel
from vqathinker_jax.model.layers import LayerNorm, Linear, gelu
from vqathinker_jax.model.motion import SlowFast
from vqathinker_jax.model.vision import Projector, VisionTower

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VLM(nnx.Module):
    """Vision tower, motion encoder, their projectors, and the language model."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D = config.language.width
        self.config = config
        self.vision = VisionTower(config.vision, rngs=rngs)
        self.projector = Projector(config.vision, config.shuffle, D, rngs=rngs)
        self.motion = SlowFast(config.motion, rngs=rngs) if config.motion else None
        self.motion_projector = MotionProjector(config.motion.features, D, rngs=rngs) if config.motion else None
        self.language = LanguageModel(config.language, rngs=rngs)

    def encode(self, frames_PFYXC: jax.Array, out: dict[str, Any] | None = None) -> jax.Array:
        """uint8 RGB frames (or frames already normalised, as floats) to visual tokens [P, F * L (+ 1 motion), D].

        The motion encoder sees the very frames of the vision tower, ImageNet-normalised (a quirk of the reference).
        """
        P, F, Y, X, C = frames_PFYXC.shape
        dtype = self.vision.class_token[...].dtype
        frames_PFYXC = normalise(frames_PFYXC).astype(dtype)
        features_FLE = self.vision(frames_PFYXC.reshape(P * F, Y, X, C), out)
        patch = self.config.vision.patch
        tokens_FLD = self.projector(features_FLE, Y // patch, X // patch)
        visual_PLD = tokens_FLD.reshape(P, -1, tokens_FLD.shape[-1])
        if out is not None:
            out["projector"] = tokens_FLD
        if self.motion is None or self.motion_projector is None:
            return visual_PLD
        motion_PZ = self.motion(frames_PFYXC, out)
        token_PD = self.motion_projector(motion_PZ)
        if out is not None:
            out |= {"motion.features": motion_PZ, "motion.token": token_PD}
        return jnp.concatenate([visual_PLD, token_PD[:, None]], axis=1)

    def embed(self, ids_PS: jax.Array, visual_PLD: jax.Array, context_id: int) -> jax.Array:
        """Prompt ids to [P, S, D] embeddings with the context slots filled, in order, by the visual tokens.

        The number of slots must equal the number of visual tokens in every row: `data.prompt` makes it so.
        """
        slots_PS = ids_PS == context_id
        order_PS = jnp.clip(jnp.cumsum(slots_PS, -1) - 1, 0, visual_PLD.shape[1] - 1)
        filled_PSD = jnp.take_along_axis(visual_PLD, order_PS[..., None], axis=1)
        return jnp.where(slots_PS[..., None], filled_PSD, self.language.embed(ids_PS, visual_PLD.dtype))


class MotionProjector(nnx.Module):
    """[P, Z] pooled motion features to one token [P, D]."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(features, 1e-5, rngs=rngs)
        self.up = Linear((features,), (width,), ("vision", "mlp"), bias=True, rngs=rngs)
        self.down = Linear((width,), (width,), ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, features_PZ: jax.Array) -> jax.Array:
        return self.down(gelu(self.up(self.norm(features_PZ))))


def normalise(frames: jax.Array) -> jax.Array:
    """uint8 RGB [..., 3] to ImageNet-normalised float32; frames that are floats already pass through."""
    if jnp.issubdtype(frames.dtype, jnp.floating):
        return frames
    return (frames.astype(jnp.float32) / 255 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
