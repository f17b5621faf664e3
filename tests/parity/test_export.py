"""What is exported loads in Transformers, and computes there what the reference computed.

Tolerance: 2e-4 of an array's standard deviation, in float32 on a CPU: the same sums in another order, through every
layer before.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import InternVLForConditionalGeneration

from convert.export import export_checkpoint
from convert.native import convert_checkpoint
from tests.parity.test_transformers import oracle
from tests.reference_weights import tensor
from tests.unit.test_convert_export import Kind as Published
from tests.unit.test_convert_export import assert_same_bits, published, tensors_in
from vqathinker_jax.data import prompt
from vqathinker_jax.data.frames import resize
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.model.vlm import normalise

TOLERANCE = 2e-4


def opened(folder: Path) -> InternVLForConditionalGeneration:
    """The folder in Transformers, which must find every weight in it and no other."""
    model, found = InternVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(found.values()), found
    return model.eval()


@pytest.mark.parametrize("kind", ["300M-untied", "6B-untied", "300M-tied", "300M-window"])
def test_a_transformers_model_comes_back_from_chat_format(tmp_path: Path, kind: str):
    tower, head = kind.split("-")
    model = oracle(tower, tied=head == "tied", window=10 if head == "window" else None).bfloat16()
    # The tokenizer's files come from a checkpoint as published; the weights and config are Transformers' own.
    published(tmp_path / "source", Published("transformers", "300M", False, False, "bfloat16"), shards=1)
    model.save_pretrained(tmp_path / "source")
    before = tensors_in(tmp_path / "source")
    export_checkpoint(tmp_path / "source", tmp_path / "chat", "chat")
    convert_checkpoint(tmp_path / "chat", tmp_path / "native")
    export_checkpoint(tmp_path / "native", tmp_path / "back", "transformers", limit=100_000)
    assert_same_bits(tensors_in(tmp_path / "back"), before)
    again = opened(tmp_path / "back")
    assert again.dtype == torch.bfloat16
    assert (again.lm_head.weight is again.model.language_model.embed_tokens.weight) == (head == "tied")
    for (name, weight), (_, expected) in zip(again.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(weight, expected), name


def test_the_reference_case_computes_its_logits_in_transformers(scoring_case: Path, tmp_path: Path):
    """Up to the motion token, which that class knows nothing of: a causal model's logits before it do not see it."""
    expected = json.loads((scoring_case / "expected.json").read_text())
    shapes = json.loads((scoring_case / "tensors.json").read_text())
    names = [name for name in shapes if name.startswith("slowfast_model.")]
    slowfast = tmp_path / "slowfast.safetensors"
    save_file({name: tensor(expected["weights_seed"], name, tuple(shapes[name])) for name in names}, slowfast)
    convert_checkpoint(scoring_case, tmp_path / "native", slowfast=slowfast)
    export_checkpoint(tmp_path / "native", tmp_path / "exported", "transformers")
    model = opened(tmp_path / "exported")
    tokenizer = prompt.load_tokenizer(tmp_path / "exported")
    context, frames = prompt.special_tokens(tokenizer).context, expected["frames"]
    for name, video in expected["videos"].items():
        ids = prompt.encode(tokenizer, video["prompt"], expected["image_tokens"], frames, motion=True)
        slot = np.flatnonzero(ids == context)[-1]
        clip = resize(read_clip(scoring_case / name, frames).frames_FYXC, expected["image_size"])
        pixels = torch.from_numpy(np.array(normalise(clip))).permute(0, 3, 1, 2)
        prefix = torch.from_numpy(ids[None, :slot]).long()
        with torch.no_grad():
            seen = model.get_image_features(pixels).pooler_output
            logits = model(pixel_values=pixels, input_ids=prefix).logits
        for stage, found in {"pixel_values": pixels, "vision_embeds": seen, "logits": logits}.items():
            error, deviation = largest_error(found.numpy(), video[stage])
            assert error < TOLERANCE * deviation, f"{name}, {stage}: off by {error / deviation:.1e} deviations"


def largest_error(found: np.ndarray, recorded: dict[str, Any]) -> tuple[float, float]:
    """Of the recorded elements that an array has, which may be the beginning of the recorded one; and its deviation."""
    index, value = np.array(recorded["index"]), np.array(recorded["value"])
    there = index < found.size
    assert there.sum() > 10
    return float(np.abs(found.reshape(-1)[index[there]] - value[there]).max()), recorded["std"]
