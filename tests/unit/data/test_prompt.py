"""Slots, refusals and padding of prompts; their bytes are held against the reference in tests/parity."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from vqathinker_jax.data.prompt import (
    SLOT,
    asking_question,
    encode,
    load_tokenizer,
    pad_left,
    render,
    scoring_question,
    special_tokens,
    training_question,
)
from vqathinker_jax.records import CheckpointError, InputError

TOKENIZER = Path(__file__).parents[2] / "golden" / "scoring"
TOKENIZER_FILES = "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    for name in TOKENIZER_FILES:
        shutil.copy(TOKENIZER / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize(("motion", "slots"), [(True, 4), (False, 3)])
def test_scoring_question_has_a_slot_for_each_frame_and_for_motion(motion: bool, slots: int):
    question = scoring_question(3, motion)
    assert question.startswith("Now you will receive a video:Frame1: <image>Frame2: <image>Frame3: <image>")
    assert question.count(SLOT) == slots
    assert ("Motion Feature: <image>You are" in question) == motion
    assert "\n" not in question


def test_asking_question_keeps_the_frames_and_imposes_no_form():
    question = asking_question("Is it blurry?", 2, motion=True)
    preamble = "Now you will receive a video:Frame1: <image>Frame2: <image>Motion Feature: <image>"
    assert question.startswith(preamble)
    assert question.endswith("Is it blurry?")
    assert "<answer>" not in question


def test_training_question_is_the_references_byte_for_byte():
    assert training_question("How good is it?", 2, motion=True) == (
        "Now you will receive a video:\nFrame1:<image>\nFrame2:<image>\nMotion Feature:<image>\nHow good is it? First "
        "output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> "
        "tags."
    )
    assert "Motion" not in training_question("How good is it?", 2, motion=False)


def test_training_question_takes_no_slot_from_the_data_file(tokenizer):
    question = training_question("<image>\nHow good is it?", 6, motion=True)
    assert question.count(SLOT) == 7
    assert "Motion Feature:<image>\n\nHow good" in question
    encode(tokenizer, question, 4, 6, motion=True)


@pytest.mark.parametrize("problem", ["", " \n", "<image>"])
def test_training_question_refuses_a_blank_problem(problem: str):
    with pytest.raises(InputError, match="asks nothing"):
        training_question(problem, 6, motion=True)


@pytest.mark.parametrize(("motion", "visual_tokens"), [(True, 3 * 5 + 1), (False, 3 * 5)])
def test_encode_widens_slots_in_order_with_motion_last(tokenizer, motion: bool, visual_tokens: int):
    ids_T = encode(tokenizer, scoring_question(3, motion), 5, 3, motion)
    special = special_tokens(tokenizer)
    context_T = ids_T == special.context
    assert ids_T.dtype == np.int32
    assert context_T.sum() == visual_tokens
    edges = np.flatnonzero(np.diff(np.concatenate([[0], context_T, [0]])))
    assert (edges[1::2] - edges[::2]).tolist() == [5, 5, 5] + [1] * motion
    # Between two turns stands one stop token each, and nothing ends the one that the model is to write.
    assert (ids_T == special.stop).sum() == 2


def test_encode_reads_back_as_the_rendered_conversation(tokenizer):
    question = asking_question("How sharp?", 2, motion=True)
    text = tokenizer.decode(encode(tokenizer, question, 1, 2, motion=True))
    assert text.replace("<img><IMG_CONTEXT></img>", SLOT) == render(question)


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "</img>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", SLOT])
def test_encode_refuses_a_question_with_markup(tokenizer, token: str):
    with pytest.raises(InputError, match="take") as refusal:
        encode(tokenizer, asking_question(f"What is {token} here?", 2, motion=False), 4, 2, motion=False)
    assert token in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_encode_refuses_too_few_slots(tokenizer):
    with pytest.raises(InputError, match="2 times where 3 are filled"):
        encode(tokenizer, scoring_question(2, motion=False), 4, 2, motion=True)


def test_asking_refuses_a_blank_question():
    with pytest.raises(InputError, match="empty"):
        asking_question(" \n", 2, motion=True)


def test_pad_left_keeps_each_prompt_at_the_end_of_its_row():
    prompts = [np.arange(1, 4, dtype=np.int32), np.arange(1, 7, dtype=np.int32)]
    ids_PS, mask_PS = pad_left(prompts, pad=99, bucket=4)
    assert ids_PS.tolist() == [[99] * 5 + [1, 2, 3], [99, 99, 1, 2, 3, 4, 5, 6]]
    assert mask_PS.tolist() == (ids_PS != 99).tolist()
    assert (ids_PS.dtype, mask_PS.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize(("length", "padded"), [(1, 128), (128, 128), (129, 256)])
def test_pad_left_rounds_up_to_the_bucket(length: int, padded: int):
    ids_PS, _ = pad_left([np.zeros(length, np.int32)], pad=0)
    assert ids_PS.shape == (1, padded)


def test_special_tokens_are_the_tokenizers_own(tokenizer):
    special = special_tokens(tokenizer)
    names = tokenizer.convert_ids_to_tokens([special.context, special.stop, special.pad])
    assert names == ["<IMG_CONTEXT>", "<|im_end|>", "<|endoftext|>"]


def test_tokenizer_survives_saving_as_one_file(tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    question = scoring_question(2, motion=True)
    reread = encode(load_tokenizer(tmp_path), question, 3, 2, motion=True)
    assert reread.tolist() == encode(tokenizer, question, 3, 2, motion=True).tolist()


def test_load_tokenizer_names_every_missing_token(tokenizer_folder: Path):
    for name in TOKENIZER_FILES[2:]:
        path = tokenizer_folder / name
        path.write_text(path.read_text().replace("<IMG_CONTEXT>", "<X>").replace("</img>", "</x>"))
    with pytest.raises(CheckpointError, match="lacks </img>, <IMG_CONTEXT>: use") as refusal:
        load_tokenizer(tokenizer_folder)
    assert str(tokenizer_folder) in str(refusal.value)


def test_load_tokenizer_refuses_a_folder_without_one(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no tokenizer found: copy tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("damage", ["merges.txt missing", "vocab.json cut short"])
def test_load_tokenizer_refuses_damaged_files(tokenizer_folder: Path, damage: str):
    name, what = damage.split(" ", 1)
    path = tokenizer_folder / name
    if what == "missing":
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()))[:100])
    with pytest.raises(CheckpointError, match="cannot be read") as refusal:
        load_tokenizer(tokenizer_folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [models.WordLevel, models.Unigram, models.WordPiece])
def test_load_tokenizer_refuses_another_kind(tokenizer, tmp_path: Path, kind: type[models.Model]):
    tokenizer.save_pretrained(tmp_path)
    Tokenizer(kind()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="the tokenizer loses text, as no Qwen2 one does: use the") as refusal:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("part", ["model", "added_tokens", "normalizer", "pre_tokenizer", "decoder", None])
@pytest.mark.parametrize("value", [3, "x", [1], {"type": "Sequence"}], ids=repr)
def test_load_tokenizer_refuses_values_of_the_wrong_type_in_one_line(
    tokenizer, tmp_path: Path, part: str | None, value: object
):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value} if part else value))
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: the tokenizer .*: (copy|use) ") as refusal:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[]", "3", "null", '{"a": "b"}', '{"pad_token": 5}'])
def test_load_tokenizer_takes_other_files_of_the_wrong_type_for_damaged_too(
    tokenizer_folder: Path, name: str, content: str
):
    (tokenizer_folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"^{tokenizer_folder}: the tokenizer .*: (copy|use) ") as refusal:
        load_tokenizer(tokenizer_folder)
    assert "\n" not in str(refusal.value)
