"""What a damaged or foreign checkpoint folder is answered with: every fault, the file it is in, and a cure."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.load import load
from tests.checkpoints import draw, settings, shapes, write
from vqathinker_jax.records import CheckpointError

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    config = settings("chat")
    return write(tmp_path / "checkpoint", config, draw(shapes(config, motion=False)), shards=3)


def test_many_faults_are_one_report(whole: Path):
    file = whole / SHARD
    tensors = load_file(file)
    removed, bent, coded = sorted(tensors)[:3]
    tensors[bent] = np.zeros((7, 3), np.float32)
    tensors[coded] = tensors[coded].astype(np.int8)
    tensors["vision_model.encoder.layers.9.ls1"] = np.zeros(32, np.float32)
    tensors["optimizer.step"] = np.zeros((), np.float32)
    del tensors[removed]
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as fault:
        load(whole)
    first, *lines, cure = str(fault.value).splitlines()
    assert first == f"{whole}: 5 faults in the weights"
    assert [line.split(":")[0] for line in lines] == [
        removed,
        "optimizer.step",
        "vision_model.encoder.layers.9.ls1",
        bent,
        coded,
    ]
    assert lines[0].partition(": ")[2].startswith("missing, expected (")
    assert lines[1].endswith("unexpected, found ()")
    assert "found (7, 3), expected (" in lines[3]
    assert lines[4].endswith("found dtype I8, expected F16, BF16, F32, F64")
    assert cure.startswith("check that config.json belongs to these weights")


def test_a_config_of_other_dimensions_does_not_fit(whole: Path):
    config = settings("chat")
    config["llm_config"]["num_hidden_layers"] = 4
    config["vision_config"]["norm_type"] = "rms_norm"
    (whole / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as fault:
        load(whole)
    lines = str(fault.value).splitlines()[1:-1]
    assert sum("layers.3." in line and "missing" in line for line in lines) == 12
    assert sum("norm" in line and "unexpected" in line for line in lines) == 4
    assert len(lines) == 16


def test_internlm3_is_refused_before_its_weights_are_looked_for(tmp_path: Path):
    config = settings("chat")
    config["llm_config"] |= {"model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json: llm_config.model_type is 'internlm3'; .*Qwen2.5") as fault:
        load(tmp_path)
    assert "\n" not in str(fault.value)


def test_names_that_any_format_may_carry_without_need_are_ignored(tmp_path: Path):
    config = settings("chat")
    tensors = draw(shapes(config, motion=False))
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    load(write(tmp_path, config, tensors))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda d: d.rename(d.with_name("moved")), r"checkpoint: no such folder; name one with a checkpoint"),
    "no config": (lambda d: (d / "config.json").unlink(), r"checkpoint: no config.json; "),
    "config of text": (lambda d: (d / "config.json").write_text("{'a'"), r"config.json: not JSON .*; copy it from"),
    "config of bytes": (lambda d: (d / "config.json").write_bytes(b"\xff\x00"), r"config.json: not JSON .*; copy it"),
    "config of numbers": (lambda d: (d / "config.json").write_text("[1]"), r"config.json: holds a list, expected an"),
    "config beyond depth": (
        lambda d: (d / "config.json").write_text("[" * 10**5),
        r"config.json: not JSON .*; copy it",
    ),
    "index beyond depth": (
        lambda d: next(d.glob("*.index.json")).write_text("[" * 10**5),
        r"index.json: not an index of shards",
    ),
    "no index": (lambda d: next(d.glob("*.index.json")).unlink(), r"checkpoint: no weights found; expected model.safe"),
    "index of text": (lambda d: next(d.glob("*.index.json")).write_text("[]"), r"index.json: not an index of shards"),
    "missing shard": (lambda d: (d / SHARD).unlink(), rf"^\S*{SHARD}: missing, but model.safetensors.index.json lists"),
    "empty shard": (lambda d: (d / SHARD).write_bytes(b""), rf"{SHARD}: not a whole safetensors file .*; download it"),
    "pointer": (
        lambda d: (d / SHARD).write_text("version https://git-lfs.github.com/spec/v1\n"),
        rf"{SHARD}: a Git LFS pointer and no weights; fetch them by git lfs pull",
    ),
    "truncated": (
        lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[:-5]),
        rf"{SHARD}: not a whole safetensors file .*; download it again$",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_told_apart(whole: Path, damage: str):
    inflict, message = DAMAGE[damage]
    inflict(whole)
    with pytest.raises(CheckpointError, match=message) as fault:
        load(whole)
    assert "\n" not in str(fault.value)


def test_every_missing_shard_is_named(whole: Path):
    for file in whole.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError) as fault:
        load(whole)
    assert [line.split(":")[0] for line in str(fault.value).splitlines()] == [
        str(whole / f"model-0000{i}-of-00003.safetensors") for i in (1, 2, 3)
    ]


def test_every_damaged_shard_is_named(whole: Path):
    for file in whole.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as fault:
        load(whole)
    assert [Path(line.split(":")[0]).name for line in str(fault.value).splitlines()] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]


def test_a_tensor_in_two_shards_is_refused(whole: Path):
    tensors = load_file(whole / SHARD)
    name = next(iter(tensors))
    other = whole / "model-00003-of-00003.safetensors"
    save_file({**load_file(other), name: tensors[name]}, other)
    with pytest.raises(CheckpointError, match=f"{other.name}: {name} is in another file of this checkpoint too; "):
        load(whole)


def test_pickled_weights_are_named_as_the_reason(whole: Path):
    next(whole.glob("*.index.json")).unlink()
    (whole / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: pickled weights can run code, so they are not read"):
        load(whole)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", "below/shard.safetensors"])
def test_an_index_cannot_name_files_outside_its_folder(whole: Path, name: str):
    index = whole / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], name)
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="names files outside its folder"):
        load(whole)
