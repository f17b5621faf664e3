"""Checkpoint folders of both formats, whole and damaged, through `load`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from convert.formats import open_source
from convert.load import fit, load, open_model, stream
from convert.native import convert_checkpoint
from tests.checkpoints import MOTION, Dtype, Format, Tower, draw, settings, shapes, slowfast, write
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.skeleton import abstract_model, arrays

SLOWFAST = "slowfast_model."


@dataclass(frozen=True)
class Kind:
    format: Format = "chat"
    tower: Tower = "300M"
    motion: bool = False
    tied: bool = False
    shards: int = 1
    dtype: Dtype = "float32"

    def __str__(self) -> str:
        words = [self.format, self.tower, self.dtype, f"{self.shards} shards"]
        return "-".join(words + ["motion"] * self.motion + ["tied"] * self.tied)


KINDS = [
    Kind(),
    Kind(motion=True, shards=3),
    Kind(tower="6B", tied=True, dtype="bfloat16"),
    Kind(tower="6B", motion=True, dtype="bfloat16", shards=2),
    Kind("transformers", shards=3, dtype="bfloat16"),
    Kind("transformers", motion=True),
    Kind("transformers", tower="6B", tied=True, shards=2),
    Kind("transformers", tower="6B", dtype="bfloat16"),
]


def tensors_of(kind: Kind) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = settings(kind.format, kind.tower, tied=kind.tied)
    return config, draw(shapes(config, motion=kind.motion), kind.dtype)


def folder(path: Path, kind: Kind) -> Path:
    return write(path, *tensors_of(kind), shards=kind.shards)


def sent_back(directory: Path, *, unrolled: bool = False) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, read into our arrays and made again from them."""
    source = open_source(directory)
    sizes = {path: array.shape for path, array in arrays(abstract_model(source.config, unrolled=unrolled)).items()}
    links = fit(source, sizes)
    ours = dict(stream(links, source.tensors, sizes, None))
    back: dict[str, np.ndarray] = {}
    for each in links:
        parts = [ours[path] if each.layer is None else ours[path][each.layer] for path in each.ours]
        back |= dict(zip(each.theirs, each.form.to_theirs(parts), strict=True))
    return back


def assert_same_bits(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("unrolled", [False, True], ids=["stacked", "listed"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_tensor_comes_back_bit_by_bit(tmp_path: Path, kind: Kind, unrolled: bool):
    _, tensors = tensors_of(kind)
    carried = {name: array for name, array in tensors.items() if not name.endswith(".num_batches_tracked")}
    assert_same_bits(sent_back(folder(tmp_path, kind), unrolled=unrolled), carried)


@pytest.mark.parametrize("block", [1, 7, 32])
def test_arrays_larger_than_a_block_are_copied_whole(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch):
    expected = sent_back(folder(tmp_path, KINDS[3]))
    monkeypatch.setattr("convert.packing._BLOCK", block)
    assert_same_bits(sent_back(tmp_path), expected)


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[2], KINDS[5], KINDS[6]], ids=str)
def test_the_model_holds_the_dtype_and_branches_of_the_checkpoint(tmp_path: Path, kind: Kind):
    model = load(folder(tmp_path, kind))
    assert (model.motion is not None) == kind.motion
    assert (model.language.head is None) == kind.tied
    assert {array.dtype for array in arrays(model).values()} == {jnp.dtype(kind.dtype)}


def test_listed_layers_are_the_stacked_ones(tmp_path: Path):
    folder(tmp_path, KINDS[3])
    stacked, listed = arrays(load(tmp_path)), arrays(load(tmp_path, unrolled=True))
    for path, array in listed.items():
        root, layers, rest = path.partition(".layers.")
        number, _, inner = rest.partition(".")
        whole = stacked[f"{root}.layers.{inner}"][int(number)] if layers else stacked[path]
        np.testing.assert_array_equal(whole, array)


def test_dtypes_are_cast_as_they_are_read(tmp_path: Path):
    folder(tmp_path, Kind(dtype="float32"))
    exact, cast = arrays(load(tmp_path)), arrays(load(tmp_path, dtype="bfloat16"))
    for path, array in cast.items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, np.asarray(exact[path]).astype(jnp.bfloat16))


def test_a_stack_of_mixed_dtypes_takes_the_wider(tmp_path: Path):
    config, tensors = tensors_of(Kind(dtype="bfloat16"))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    model = load(write(tmp_path, config, {**tensors, name: tensors[name].astype(np.float32)}))
    dtypes = {path: array.dtype for path, array in arrays(model).items() if array.dtype != jnp.bfloat16}
    assert dtypes == {"language.layers.up.kernel": jnp.float32}


def test_names_of_a_running_transformers_model(tmp_path: Path):
    config, tensors = tensors_of(Kind("transformers"))
    moved = {"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"}

    def renamed(name: str) -> str:
        head = next((old for old in moved if name.startswith(old)), None)
        return moved[head] + name.removeprefix(head) if head else f"model.{name}"

    state = {renamed(name): array for name, array in tensors.items()}
    assert_same_bits(sent_back(write(tmp_path, config, state)), state)


def test_both_formats_of_the_same_weights_are_the_same_model(tmp_path: Path):
    config, tensors = tensors_of(Kind(tower="6B"))
    chat = arrays(load(write(tmp_path / "chat", config, tensors)))
    spelled = {
        "vision_model.embeddings.class_embedding": "vision_tower.embeddings.cls_token",
        "vision_model.embeddings.position_embedding": "vision_tower.embeddings.position_embeddings",
        "vision_model.embeddings.patch_embedding": "vision_tower.embeddings.patch_embeddings.projection",
        "vision_model.encoder.layers": "vision_tower.encoder.layer",
        ".attn.proj": ".attention.projection_layer",
        ".attn.": ".attention.",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "ls1": "lambda_1",
        "ls2": "lambda_2",
        "mlp1.0": "multi_modal_projector.layer_norm",
        "mlp1.1": "multi_modal_projector.linear_1",
        "mlp1.3": "multi_modal_projector.linear_2",
    }
    native: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        new = name
        for ours, theirs in spelled.items():
            new = new.replace(ours, theirs)
        parts = {"q": 0, "k": 1, "v": 2} if "qkv" in name else {}
        native |= {new.replace("qkv", f"{p}_proj"): np.split(array, 3)[i] for p, i in parts.items()} or {new: array}
    again = arrays(load(write(tmp_path / "native", settings("transformers", "6B"), native)))
    assert again.keys() == chat.keys()
    for path, array in chat.items():
        np.testing.assert_array_equal(again[path], array, err_msg=path)


# The head


def test_a_stored_head_that_equals_the_embedding_it_is_tied_to_is_left_out(tmp_path: Path):
    config, tensors = tensors_of(Kind(tied=True))
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"]
    assert load(write(tmp_path, config, tensors)).language.head is None


def test_a_head_that_contradicts_the_config_is_refused_in_chat_format(tmp_path: Path):
    config, tensors = tensors_of(Kind(tied=True))
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"] + 1
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight differs from .*embed_tokens.weight.*set llm_config.tie_"
    ):
        load(write(tmp_path, config, tensors))


def test_transformers_format_takes_a_head_of_its_own_as_transformers_does(tmp_path: Path):
    config, tensors = tensors_of(Kind("transformers", tied=True))
    head = tensors["language_model.model.embed_tokens.weight"] + 1
    tensors["language_model.lm_head.weight"] = head
    model = load(write(tmp_path, config, tensors))
    assert not model.config.language.tied
    np.testing.assert_array_equal(arrays(model)["language.head.kernel"], head.T)


# SlowFast's weights


def without_slowfast(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    config, tensors = tensors_of(Kind(motion=True))
    kept = {name: array for name, array in tensors.items() if not name.startswith(SLOWFAST)}
    return write(tmp_path / "checkpoint", config, kept), tensors


def hub(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same SlowFast under torch hub's names, with the classifier that comes along."""
    root = SLOWFAST + "feature_extraction."
    blocks = {name.replace(root, "blocks."): array for name, array in tensors.items() if name.startswith(root)}
    assert blocks.keys() == slowfast("blocks.", MOTION["stem"], MOTION["depths"]).keys()
    return {**blocks, "blocks.6.proj.weight": np.zeros((400, 288), np.float32), "blocks.6.proj.bias": np.zeros(400)}


@pytest.mark.parametrize("suffix", ["pyth", "state.pyth", "safetensors"])
def test_slowfast_comes_from_a_file_of_its_own(tmp_path: Path, suffix: str):
    directory, tensors = without_slowfast(tmp_path)
    file = tmp_path / f"SLOWFAST_8x8_R50.{suffix}"
    state = {name: torch.tensor(array) for name, array in hub(tensors).items()}
    if suffix == "safetensors":
        save_file(hub(tensors), file)
    else:
        torch.save({"model_state": state, "epoch": 1} if suffix == "pyth" else state, file)
    found = arrays(load(directory, slowfast=file))
    expected = arrays(load(write(tmp_path / "whole", settings("chat"), tensors)))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_a_transformers_checkpoint_keeps_its_motion_branch_in_a_file_beside(tmp_path: Path):
    config, tensors = tensors_of(Kind("transformers", motion=True))
    moved = {name: array for name, array in tensors.items() if name.startswith((SLOWFAST, "motion_mlp."))}
    write(tmp_path, config, {name: array for name, array in tensors.items() if name not in moved})
    assert load(tmp_path).motion is None
    save_file(moved, tmp_path / "motion.safetensors")
    assert load(tmp_path).motion is not None


def test_a_pickle_is_never_run(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    directory, _ = without_slowfast(tmp_path)
    torch.save({"model_state": {"blocks.0": Trap()}}, tmp_path / "trap.pyth")
    with pytest.raises(CheckpointError, match=r"trap.pyth: holds more than tensors, so it is not read"):
        load(directory, slowfast=tmp_path / "trap.pyth")
    assert not (tmp_path / "sprung").exists()


def test_torch_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory, _ = without_slowfast(tmp_path)
    (tmp_path / "SLOWFAST_8x8_R50.pyth").write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"R50.pyth: reading this file needs torch; pip install torch==2.13.0"):
        load(directory, slowfast=tmp_path / "SLOWFAST_8x8_R50.pyth")


def test_where_slowfast_cannot_be_taken_from(tmp_path: Path):
    directory, tensors = without_slowfast(tmp_path)
    with pytest.raises(CheckpointError, match="but not SlowFast's weights; give the file of torch hub with --slowfast"):
        load(directory)
    with pytest.raises(CheckpointError, match=r"none.pyth: no such file"):
        load(directory, slowfast=tmp_path / "none.pyth")
    (tmp_path / "text.pyth").write_text("not weights")
    with pytest.raises(CheckpointError, match=r"text.pyth: "):
        load(directory, slowfast=tmp_path / "text.pyth")
    save_file({"weight": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other.safetensors: no SlowFast weights"):
        load(directory, slowfast=tmp_path / "other.safetensors")
    save_file(hub(tensors), tmp_path / "hub.safetensors")
    whole = write(tmp_path / "whole", settings("chat"), tensors)
    with pytest.raises(CheckpointError, match=r"brings SlowFast's weights itself.*leave --slowfast out"):
        load(whole, slowfast=tmp_path / "hub.safetensors")
    with pytest.raises(CheckpointError, match=r"has no motion branch.*leave --slowfast out"):
        load(folder(tmp_path / "plain", Kind()), slowfast=tmp_path / "hub.safetensors")


def test_a_plain_checkpoint_gets_a_motion_branch_to_train(tmp_path: Path):
    config = settings("chat")
    names = shapes(config, motion=False)
    plain = write(tmp_path / "plain", config, draw(names))
    slowfast_names = {k: v for k, v in shapes(config, motion=True).items() if k.startswith("slowfast_model.")}
    save_file(draw(slowfast_names), tmp_path / "slowfast.safetensors")
    given = {"slowfast": tmp_path / "slowfast.safetensors", "fresh_motion": True}
    convert_checkpoint(plain, tmp_path / "native", **given)
    model = open_model(tmp_path / "native")
    projector = model.motion_projector
    for kernel in (projector.up.kernel[...], projector.down.kernel[...]):
        # Uniform in [0, 0.01): the reference's start.
        assert 0 <= kernel.min() < 0.001
        assert 0.009 < kernel.max() < 0.01
        assert abs(float(kernel.mean()) - 0.005) < 5e-4
    assert not np.any(projector.up.bias[...])
    assert not np.any(projector.norm.bias[...])
    assert np.all(projector.norm.scale[...] == 1)
    moving = write(tmp_path / "moving", config, draw(shapes(config, motion=True)))
    with pytest.raises(CheckpointError, match="has a motion branch already; leave --fresh-motion out"):
        convert_checkpoint(moving, tmp_path / "other", fresh_motion=True)
