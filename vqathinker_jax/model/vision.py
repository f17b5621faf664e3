"""InternViT: normalised frames in, one row of features a patch out.

Follows the reference's `modeling_intern_vit.py` in both kinds: 300M (LayerNorm, qkv bias) and 6B (RMSNorm, RMSNorm on
q and k over the full width before the split into heads, no qkv bias). No norm after the last layer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqathinker_jax.model.attention import attend
from vqathinker_jax.model.config import VisionConfig
from vqathinker_jax.model.layers import Bridge, LayerNorm, Linear, RMSNorm, fold, gelu, param, stack
from vqathinker_jax.sharding import ONE_DEVICE, Layout

_normal = jax.nn.initializers.normal(0.02)
_small = jax.nn.initializers.constant(0.1)


class VisionTower(nnx.Module):
    """[F, Y, X, 3] normalised frames to [F, grid_y * grid_x, E] features; the class token is dropped at the end."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        E = config.width
        self.patch = config.patch
        self.grid = config.grid
        self.patches = Linear((config.patch, config.patch, 3), (E,), (None, None, None, "vision"), bias=True, rngs=rngs)
        self.class_token = param(nnx.Param, _normal, (E,), ("vision",), rngs)
        self.class_position = param(nnx.Param, _normal, (E,), ("vision",), rngs)
        self.positions = param(nnx.Param, _normal, (self.grid, self.grid, E), (None, None, "vision"), rngs)
        self.layers: Any = stack(lambda rngs: VisionLayer(config, rngs=rngs), config.layers, rngs)
        self.layout = ONE_DEVICE

    def __call__(self, frames_FYXC: jax.Array, out: dict[str, Any] | None = None) -> jax.Array:
        """`out`, where given, receives every stage by name; where it is None nothing of them is computed or kept."""
        F, Y, X, C = frames_FYXC.shape
        gy, gx = Y // self.patch, X // self.patch
        patches = frames_FYXC.reshape(F, gy, self.patch, gx, self.patch, C).transpose(0, 1, 3, 2, 4, 5)
        patches_FLE = self.patches(patches).reshape(F, gy * gx, -1)
        positions_LE = resize_positions(self.positions[...], gy, gx).reshape(gy * gx, -1).astype(patches_FLE.dtype)
        first_E = (self.class_token[...] + self.class_position[...]).astype(patches_FLE.dtype)
        first_F1E = jnp.broadcast_to(first_E, (F, 1, first_E.shape[-1]))
        hidden_FLE = jnp.concatenate([first_F1E, patches_FLE + positions_LE], axis=1)
        embedded = hidden_FLE

        def step(layer: "VisionLayer", hidden_FLE: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            hidden_FLE = self.layout.rows(hidden_FLE)
            if self.layout.one_by_one:
                hidden_FLE = jax.lax.map(lambda hidden_LE: layer(hidden_LE[None], self.layout)[0], hidden_FLE)
            else:
                hidden_FLE = layer(hidden_FLE, self.layout)
            return hidden_FLE, (None if out is None else hidden_FLE)

        hidden_FLE, by_layer = fold(self.layers, hidden_FLE, step, remat=self.layout.remat)
        if out is not None:
            out |= {"vision.embedding": embedded, "vision.layers": by_layer}
        return hidden_FLE[:, 1:]


class VisionLayer(nnx.Module):
    """Pre-norm attention and MLP, each branch scaled by a learned vector (LayerScale) before it is added."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        E, N, H, M = config.width, config.heads, config.head, config.mlp
        norm = RMSNorm if config.rms_norm else LayerNorm
        self.norm1 = norm(E, config.epsilon, rngs=rngs)
        self.norm2 = norm(E, config.epsilon, rngs=rngs)
        self.qkv = Linear((E,), (3, N, H), ("vision", None, "heads", None), bias=config.qkv_bias, rngs=rngs)
        self.q_norm = RMSNorm(E, config.epsilon, rngs=rngs) if config.qk_norm else None
        self.k_norm = RMSNorm(E, config.epsilon, rngs=rngs) if config.qk_norm else None
        self.proj = Linear((N, H), (E,), ("heads", None, "vision"), bias=True, rngs=rngs)
        self.up = Linear((E,), (M,), ("vision", "mlp"), bias=True, rngs=rngs)
        self.down = Linear((M,), (E,), ("mlp", "vision"), bias=True, rngs=rngs)
        self.scale1 = param(nnx.Param, _small, (E,), ("vision",), rngs)
        self.scale2 = param(nnx.Param, _small, (E,), ("vision",), rngs)

    def __call__(self, hidden_FLE: jax.Array, layout: Layout) -> jax.Array:
        hidden_FLE += self._attention(self.norm1(hidden_FLE), layout) * self.scale1[...].astype(hidden_FLE.dtype)
        mlp_FLE = self.down(gelu(self.up(self.norm2(hidden_FLE))))
        return hidden_FLE + mlp_FLE * self.scale2[...].astype(hidden_FLE.dtype)

    def _attention(self, normed_FLE: jax.Array, layout: Layout) -> jax.Array:
        query_FLNH, key_FLNH, value_FLNH = jnp.moveaxis(self.qkv(normed_FLE), 2, 0)
        if self.q_norm is not None and self.k_norm is not None:
            query_FLNH = self.q_norm(query_FLNH.reshape(normed_FLE.shape)).reshape(query_FLNH.shape)
            key_FLNH = self.k_norm(key_FLNH.reshape(normed_FLE.shape)).reshape(key_FLNH.shape)
        return self.proj(attend(query_FLNH, key_FLNH, value_FLNH, layout))


def resize_positions(positions_YXE: jax.Array, gy: int, gx: int) -> jax.Array:
    """The learned positions on another grid, as `torch.nn.functional.interpolate(mode="bicubic")` resizes them.

    `jax.image.resize(..., "cubic")` does not serve: its kernel has a = -0.5 and it antialiases when shrinking.
    """
    if positions_YXE.shape[:2] == (gy, gx):
        return positions_YXE
    rows, columns = (_bicubic(old, new) for old, new in zip(positions_YXE.shape[:2], (gy, gx), strict=True))
    return jnp.einsum("yi,xj,ije->yxe", rows, columns, positions_YXE.astype(jnp.float32), precision="highest")


def _bicubic(old: int, new: int) -> np.ndarray:
    """The [new, old] matrix of 1-D cubic convolution with a = -0.75, half-pixel centres, edges repeated."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        at = np.floor(centre).astype(int) + tap
        d = np.abs(centre - at)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        np.add.at(matrix, (np.arange(new), at.clip(0, old - 1)), np.where(d <= 1, near, far))
    return matrix.astype(np.float32)


class Projector(Bridge):
    """Pixel shuffle and MLP: [F, gy * gx, E] patch features to [F, L, D] visual tokens, 4 neighbours to a token."""

    def __init__(self, config: VisionConfig, shuffle: int, width: int, *, rngs: nnx.Rngs):
        super().__init__(config.width * shuffle**2, width, rngs=rngs)
        self.shuffle = shuffle

    def __call__(self, features_FLE: jax.Array, gy: int, gx: int) -> jax.Array:
        F, _, E = features_FLE.shape
        s = self.shuffle
        tokens = features_FLE.reshape(F, gy // s, s, gx // s, s, E).transpose(0, 1, 3, 2, 4, 5)
        return super().__call__(tokens.reshape(F, (gy // s) * (gx // s), s * s * E))
