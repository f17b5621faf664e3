"""The dimensions of the released InternVL3 models with VQAThinker's motion branch, for plans without a checkpoint.

Source: the `config.json` of OpenGVLab's InternVL3 releases.
"""

from vqathinker_jax.model.config import LanguageConfig, ModelConfig, VisionConfig

_SIX_BILLION = VisionConfig(width=3200, layers=45, heads=25, mlp=12800, rms_norm=True, qkv_bias=False, qk_norm=True)


def _language(width: int, layers: int, heads: int, kv_heads: int, mlp: int) -> LanguageConfig:
    return LanguageConfig(width=width, layers=layers, heads=heads, kv_heads=kv_heads, mlp=mlp)


RELEASED = {
    "1B": ModelConfig(language=_language(896, 24, 14, 2, 4864)),
    "2B": ModelConfig(language=_language(1536, 28, 12, 2, 8960)),
    "8B": ModelConfig(),
    "14B": ModelConfig(language=_language(5120, 48, 40, 8, 13824)),
    "38B": ModelConfig(vision=_SIX_BILLION, language=_language(5120, 64, 40, 8, 27648)),
    "78B": ModelConfig(vision=_SIX_BILLION, language=_language(8192, 80, 64, 8, 29568)),
}
