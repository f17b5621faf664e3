"""The rules between the formats' names and ours: both directions, and every fault that they find."""

import math

import numpy as np
import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from convert.formats import CHAT, TRANSFORMERS, TRANSFORMERS_STATE
from convert.motion import slowfast
from convert.rule import Axes, Ignored, Rule, Stack, Table, faults, link, row
from convert.vision import Positions
from tests import checkpoints
from tests.checkpoints import Shapes, Tower
from vqathinker_jax.model.config import ModelConfig, parse_config
from vqathinker_jax.skeleton import abstract_model, arrays

# OpenGVLab/InternVL3-8B: the dimensions of REFERENCE, section 1.
LANGUAGE_8B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 151674,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "rope_theta": 1e6,
}
TOWER_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
    "norm_type": "layer_norm",
}
CHAT_8B = {
    "model_type": "internvl_chat",
    "ps_version": "v2",
    "vision_config": {**TOWER_300M, "qkv_bias": True, "qk_normalization": False},
    "llm_config": LANGUAGE_8B,
    "motion_config": {"stem": 64, "depths": [3, 4, 6, 3]},
}
NATIVE_8B = {
    "model_type": "internvl",
    "vision_config": {**TOWER_300M, "attention_bias": True, "use_qk_norm": False},
    "text_config": LANGUAGE_8B,
    "tie_word_embeddings": False,
    "motion_config": {"stem": 64, "depths": [3, 4, 6, 3]},
}


def model_shapes(config: ModelConfig) -> Shapes:
    return {path: array.shape for path, array in arrays(abstract_model(config)).items()}


def expected_tensors(table: Table, config: ModelConfig) -> Shapes:
    """What the table, run backwards over a model of this config, says that a checkpoint holds."""
    links = link(table.rules, model_shapes(config))
    return {name: shape for each in links for name, shape in zip(each.theirs, each.their_shapes, strict=True)}


@pytest.fixture(scope="module")
def sizes_8b() -> Shapes:
    return model_shapes(ModelConfig())


@pytest.mark.parametrize(
    ("form", "theirs", "ours"),
    [
        (Axes("OI", "IO"), [(6, 4)], [(4, 6)]),
        (Axes("(NH)D", "DNH"), [(6, 4)], [(4, 2, 3)]),
        (Axes("D(NH)", "NHD"), [(4, 6)], [(2, 3, 4)]),
        (Axes("(3NH)E", "E3NH"), [(18, 4)], [(4, 3, 2, 3)]),
        (Axes("11E", "E"), [(1, 1, 4)], [(4,)]),
        (Axes("OITYX", "TYXIO"), [(2, 3, 5, 7, 4)], [(5, 7, 4, 3, 2)]),
        (Stack(Axes("(NH)E", "ENH"), axis=1), [(6, 4)] * 3, [(4, 3, 2, 3)]),
        (Positions(), [(1, 13, 2)], [(2,), (3, 4, 2)]),
    ],
    ids=str,
)
def test_a_form_and_its_inverse(form: Axes, theirs: list, ours: list):
    tensors = [np.arange(i, i + math.prod(shape), dtype=np.int32).reshape(shape) for i, shape in enumerate(theirs)]
    made = form.to_ours(tensors, ours)
    assert [array.shape for array in made] == ours
    back = form.to_theirs(made)
    assert len(back) == len(tensors)
    for again, tensor in zip(back, tensors, strict=True):
        np.testing.assert_array_equal(again, tensor)


def test_axes_put_the_numbers_where_they_belong():
    weight_OI = np.arange(24).reshape(6, 4)
    (kernel_INH,) = Axes("(NH)D", "DNH").to_ours([weight_OI], [(4, 2, 3)])
    assert kernel_INH[1, 1, 2] == weight_OI[1 * 3 + 2, 1]
    (fused,) = Axes("(3NH)E", "E3NH").to_ours([np.arange(72).reshape(18, 4)], [(4, 3, 2, 3)])
    assert fused[1, 2, 0, 1] == (2 * 6 + 1) * 4 + 1
    class_E, grid_YXE = Positions().to_ours([np.arange(26).reshape(1, 13, 2)], [(2,), (3, 4, 2)])
    assert class_E.tolist() == [0, 1]
    assert grid_YXE[2, 1].tolist() == [2 * (1 + 2 * 4 + 1), 2 * (1 + 2 * 4 + 1) + 1]


def test_query_key_and_value_apart_are_the_same_array_as_in_one_matrix():
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 6, 4))
    (fused,) = Axes("(3NH)E", "E3NH").to_ours([np.concatenate([query, key, value])], [(4, 3, 2, 3)])
    (apart,) = Stack(Axes("(NH)E", "ENH"), axis=1).to_ours([query, key, value], [(4, 3, 2, 3)])
    np.testing.assert_array_equal(fused, apart)


@pytest.mark.parametrize(("raw", "table"), [(CHAT_8B, CHAT), (NATIVE_8B, TRANSFORMERS)], ids=["chat", "transformers"])
def test_the_8b_model_has_the_names_shapes_and_parameters_of_its_checkpoint(raw: dict, table: Table):
    config = parse_config(raw, motion=False)
    tensors = expected_tensors(table, config)
    assert tensors == checkpoints.shapes(raw, motion=False)
    # 7.94 billion, as published; the sum over names and shapes of InternVL3-8B.
    assert sum(map(math.prod, tensors.values())) == 7_944_373_760
    assert sum(map(math.prod, model_shapes(config).values())) == 7_944_373_760


def test_the_8b_model_with_its_motion_branch(sizes_8b: Shapes):
    assert parse_config(CHAT_8B, motion=True) == ModelConfig()
    table = CHAT + slowfast("slowfast_model.feature_extraction.")
    expected = checkpoints.shapes(CHAT_8B, motion=True)
    assert faults(link(table.rules, sizes_8b), table.ignored, expected, sizes_8b) == []
    tensors = expected_tensors(table, ModelConfig())
    assert set(expected) - set(tensors) == {name for name in expected if name.endswith(".num_batches_tracked")}


@pytest.mark.parametrize("tower", ["300M", "6B"])
def test_the_names_are_those_of_a_running_transformers_model(tower: Tower):
    raw = checkpoints.settings("transformers", tower)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**raw))
    state = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert expected_tensors(TRANSFORMERS_STATE, parse_config(raw, motion=False)) == state


SHAPES: Shapes = {"head": (4, 6), "layers.kernel": (2, 3, 4)}
RULES = (
    row("head.weight", "VD -> DV", "head"),
    row("layers.{}.weight", "OI -> IO", "layers.{}.kernel"),
)
FOUND: Shapes = {"head.weight": (6, 4), "layers.0.weight": (4, 3), "layers.1.weight": (4, 3)}


def found_faults(found: Shapes, rules: tuple[Rule, ...] = RULES, shapes: Shapes = SHAPES) -> list[str]:
    return faults(link(rules, shapes), [Ignored(r".*\.counter", "counts")], found, shapes)


def test_a_checkpoint_that_fits_has_no_faults():
    assert found_faults(FOUND) == []
    assert found_faults({**FOUND, "layers.0.counter": ()}) == []


def test_layers_that_are_listed_fit_the_same_rules():
    listed = {"head": (4, 6), "layers.0.kernel": (3, 4), "layers.1.kernel": (3, 4)}
    assert found_faults(FOUND, shapes=listed) == []


def test_every_fault_is_found_and_named():
    found = {
        **FOUND,
        "head.weight": (6, 5),
        "layers.2.weight": (4, 3),
        "xlayers.0.weight": (4, 3),
        "layers.0.counters": (),
    }
    del found["layers.1.weight"]
    assert found_faults(found) == [
        "layers.1.weight: missing, expected (4, 3)",
        "layers.0.counters: unexpected, found ()",
        "layers.2.weight: unexpected, found (4, 3)",
        "xlayers.0.weight: unexpected, found (4, 3)",
        "head.weight: found (6, 5), expected (6, 4)",
    ]


def test_rules_that_claim_or_fill_twice_or_not_at_all_are_found():
    twice = (*RULES, row("head.weight", "VD -> DV", "tail"))
    assert found_faults(FOUND, twice, {**SHAPES, "tail": (4, 6)}) == ["head.weight: claimed by 2 rules, expected 1"]
    filled = (*RULES, row("tail.weight", "VD -> DV", "head"))
    assert found_faults({**FOUND, "tail.weight": (6, 4)}, filled) == ["our head: filled by 2 rules, expected 1"]
    assert found_faults(FOUND, RULES, {**SHAPES, "tail": (1,)}) == ["our tail: filled by no rule"]
