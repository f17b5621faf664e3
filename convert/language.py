"""The language model: Qwen2's names, which both formats share but for what stands before them, against ours.

Axes: D width, N heads, K kv heads, H head size, M MLP width, V vocabulary.
"""

from convert.rule import Ignored, Table, row

_OURS = "language.layers.{}."


def qwen(root: str, head: str) -> Table:
    """Qwen2 whose model stands under `root` and whose output head is the tensor `head`."""
    layer = root + "layers.{}."
    return Table(
        (
            row(root + "embed_tokens.weight", "VD -> VD", "language.embedding"),
            row(layer + "input_layernorm.weight", "D -> D", _OURS + "input_norm.scale"),
            row(layer + "self_attn.q_proj.weight", "(NH)D -> DNH", _OURS + "query.kernel"),
            row(layer + "self_attn.q_proj.bias", "(NH) -> NH", _OURS + "query.bias"),
            row(layer + "self_attn.k_proj.weight", "(KH)D -> DKH", _OURS + "key.kernel"),
            row(layer + "self_attn.k_proj.bias", "(KH) -> KH", _OURS + "key.bias"),
            row(layer + "self_attn.v_proj.weight", "(KH)D -> DKH", _OURS + "value.kernel"),
            row(layer + "self_attn.v_proj.bias", "(KH) -> KH", _OURS + "value.bias"),
            row(layer + "self_attn.o_proj.weight", "D(NH) -> NHD", _OURS + "out.kernel"),
            row(layer + "post_attention_layernorm.weight", "D -> D", _OURS + "mlp_norm.scale"),
            row(layer + "mlp.gate_proj.weight", "MD -> DM", _OURS + "gate.kernel"),
            row(layer + "mlp.up_proj.weight", "MD -> DM", _OURS + "up.kernel"),
            row(layer + "mlp.down_proj.weight", "DM -> MD", _OURS + "down.kernel"),
            row(root + "norm.weight", "D -> D", "language.norm.scale"),
            row(head, "VD -> DV", "language.head.kernel"),
        ),
        (Ignored(r".*\.rotary_emb\.inv_freq", "follows from rope_theta"),),
    )
