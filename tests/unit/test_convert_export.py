"""Out into the PyTorch world again: every tensor comes back bit by bit, whatever the way."""

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.export import Format, export_checkpoint
from convert.load import load
from convert.native import convert_checkpoint
from tests.checkpoints import Dtype, Tower, draw, settings, shapes, write
from vqathinker_jax.checkpoint import restore, save
from vqathinker_jax.model.config import ViewConfig
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.skeleton import arrays
from vqathinker_jax.stored import Writer


@dataclass(frozen=True)
class Kind:
    format: Format
    tower: Tower
    motion: bool
    tied: bool
    dtype: Dtype

    def __str__(self) -> str:
        words = [self.format, self.tower, self.dtype, *["motion"] * self.motion, *["tied"] * self.tied]
        return "-".join(words)


KINDS = [
    Kind(*choice)
    for choice in itertools.product(
        ("chat", "transformers"), ("300M", "6B"), (False, True), (False, True), ("float32", "bfloat16")
    )
]
VIEW = {"frames": 6, "image_size": 112}
PLAIN = Kind("chat", "300M", False, False, "float32")
MOVING = Kind("chat", "300M", True, False, "bfloat16")


def published(directory: Path, kind: Kind, *, shards: int = 2) -> dict[str, np.ndarray]:
    """A checkpoint as it may be published, in shards, its counters of batches not zero; returns its tensors."""
    config = settings(kind.format, kind.tower, tied=kind.tied) | {"view": VIEW}
    tensors = draw(shapes(config, motion=kind.motion), kind.dtype)
    counted = [name for name in tensors if name.endswith(".num_batches_tracked")]
    tensors |= {name: np.array(1000 + i, np.int64) for i, name in enumerate(counted)}
    write(directory, config, tensors, shards=shards)
    return tensors


def tensors_in(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder, read by safetensors' own library; none is in two files, and the index lists them."""
    files = [load_file(path) for path in sorted(directory.glob("*.safetensors"))]
    found = {name: array for tensors in files for name, array in tensors.items()}
    assert len(found) == sum(map(len, files))
    index = directory / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        home = content["weight_map"]
        assert all(name in load_file(directory / file) for name, file in home.items())
        assert content["metadata"]["total_size"] == sum(found[name].nbytes for name in home)
    return found


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_there_and_back_by_a_native_checkpoint(tmp_path: Path, kind: Kind):
    tensors = published(tmp_path / "source", kind)
    convert_checkpoint(tmp_path / "source", tmp_path / "native")
    export_checkpoint(tmp_path / "native", tmp_path / "back", kind.format, limit=50_000)
    assert_same_bits(tensors_in(tmp_path / "back"), tensors)
    for path in (tmp_path / "source").glob("*.*"):
        if "safetensors" not in path.name:
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.dtype == "bfloat16"], ids=str)
def test_there_and_back_by_the_other_format(tmp_path: Path, kind: Kind):
    tensors = published(tmp_path / "source", kind)
    other: Format = "transformers" if kind.format == "chat" else "chat"
    export_checkpoint(tmp_path / "source", tmp_path / "other", other)
    crossed = tensors_in(tmp_path / "other")
    assert set(crossed) != set(tensors)
    assert (tmp_path / "other" / "motion.safetensors").exists() == (kind.motion and other == "transformers")
    export_checkpoint(tmp_path / "other", tmp_path / "back", kind.format)
    assert_same_bits(tensors_in(tmp_path / "back"), tensors)
    assert load(tmp_path / "source").config == load(tmp_path / "other").config == load(tmp_path / "back").config
    assert load(tmp_path / "other").config.view == ViewConfig(**VIEW)


def test_names_of_a_running_transformers_model_go_back_as_they_came(tmp_path: Path):
    config = settings("transformers")
    moved = {"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"}
    tensors = {}
    for name, array in draw(shapes(config, motion=False)).items():
        prefix = next((old for old in moved if name.startswith(old)), None)
        tensors[name.replace(prefix, moved[prefix]) if prefix else f"model.{name}"] = array
    write(tmp_path / "source", config, tensors)
    convert_checkpoint(tmp_path / "source", tmp_path / "native")
    export_checkpoint(tmp_path / "native", tmp_path / "back", "transformers")
    assert_same_bits(tensors_in(tmp_path / "back"), tensors)


def test_what_the_model_has_no_use_for_goes_back_too(tmp_path: Path):
    """A head stored though it is tied, a buffer of old releases, layers of mixed dtypes, and code nobody runs."""
    tensors = published(tmp_path / "source", Kind("chat", "300M", True, True, "bfloat16"))
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"]
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.arange(4, dtype=np.float32)
    wider = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors[wider] = tensors[wider].astype(np.float32) + np.float32(1e-6)
    shutil.rmtree(tmp_path / "source")
    write(tmp_path / "source", settings("chat", tied=True), tensors)
    (tmp_path / "source" / "modeling_internvl_chat.py").write_text("raise SystemExit")
    assert convert_checkpoint(tmp_path / "source", tmp_path / "native") == (
        "language_model.lm_head.weight: equals the embedding that it is tied to",
    )
    export_checkpoint(tmp_path / "native", tmp_path / "back", "chat")
    assert_same_bits(tensors_in(tmp_path / "back"), tensors)
    assert (tmp_path / "back" / "modeling_internvl_chat.py").exists()
    apart, motion = export_checkpoint(tmp_path / "native", tmp_path / "other", "transformers")
    assert apart.endswith("rotary_emb.inv_freq: left out, as it belongs to another format")
    assert motion.startswith("the motion branch is in motion.safetensors")


def test_slowfast_of_torch_hub_takes_its_place_in_the_checkpoint(tmp_path: Path):
    tensors = published(tmp_path / "whole", MOVING)
    root = "slowfast_model.feature_extraction."
    hub = {name.replace(root, "blocks."): array for name, array in tensors.items() if name.startswith(root)}
    kept = {name: array for name, array in tensors.items() if not name.startswith(root)}
    write(tmp_path / "source", settings("chat"), kept)
    write(tmp_path / "hub", {}, {**hub, "blocks.6.proj.bias": np.zeros(400, np.float32)})
    (left_out,) = convert_checkpoint(
        tmp_path / "source", tmp_path / "native", slowfast=tmp_path / "hub" / "model.safetensors"
    )
    assert left_out == "blocks.6.proj.bias: SlowFast's own pooling and classifier"
    export_checkpoint(tmp_path / "native", tmp_path / "back", "chat")
    assert_same_bits(tensors_in(tmp_path / "back"), tensors)


def test_trained_weights_go_out_in_place_of_those_that_came(tmp_path: Path):
    tensors = published(tmp_path / "source", MOVING)
    convert_checkpoint(tmp_path / "source", tmp_path / "native")
    model = restore(tmp_path / "native")
    model.language.norm.scale[...] += 1
    save(tmp_path / "trained", model, tmp_path / "native")
    export_checkpoint(tmp_path / "trained", tmp_path / "back", "chat")
    name = "language_model.model.norm.weight"
    assert_same_bits(tensors_in(tmp_path / "back"), {**tensors, name: tensors[name] + tensors[name].dtype.type(1)})
    save(tmp_path / "from-published", load(tmp_path / "source"), tmp_path / "source")
    export_checkpoint(tmp_path / "from-published", tmp_path / "fresh", "chat")
    zeros = {name: np.zeros((), np.int64) for name in tensors if name.endswith("num_batches_tracked")}
    assert_same_bits(tensors_in(tmp_path / "fresh"), tensors | zeros)


def test_weights_are_cast_when_exported_and_the_config_says_so(tmp_path: Path):
    published(tmp_path / "source", PLAIN)
    for kind in ("chat", "transformers"):
        export_checkpoint(tmp_path / "source", tmp_path / kind, kind, dtype="bfloat16")
        assert {array.dtype for array in tensors_in(tmp_path / kind).values()} == {jnp.dtype("bfloat16")}
        assert json.loads((tmp_path / kind / "config.json").read_text())["torch_dtype"] == "bfloat16"
        for path, array in arrays(load(tmp_path / kind)).items():
            np.testing.assert_array_equal(array, arrays(load(tmp_path / "source"))[path].astype(jnp.bfloat16))


def test_where_an_export_cannot_go(tmp_path: Path):
    published(tmp_path / "source", PLAIN)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"thesis: holds other things"):
        export_checkpoint(tmp_path / "source", tmp_path / "thesis", "chat", force=True)
    with pytest.raises(CheckpointError, match=r"source: holds other things"):
        export_checkpoint(tmp_path / "source", tmp_path / "source", "chat", force=True)
    export_checkpoint(tmp_path / "source", tmp_path / "out", "chat")
    with pytest.raises(CheckpointError, match=r"out: holds \S*out, which is still needed"):
        export_checkpoint(tmp_path / "out", tmp_path / "out", "chat", force=True)
    with pytest.raises(CheckpointError, match=r"out: holds a checkpoint already; .* --force"):
        export_checkpoint(tmp_path / "source", tmp_path / "out", "transformers")
    export_checkpoint(tmp_path / "source", tmp_path / "out", "transformers", force=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "internvl"


@pytest.mark.parametrize("at", [0, 7, -1])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch):
    published(tmp_path / "source", PLAIN)
    count, append = itertools.count(), Writer.append
    last = len(tensors_in(tmp_path / "source")) - 1

    def interrupted(self: Writer, name: str, array: np.ndarray) -> None:
        if next(count) == at % (last + 1):
            raise KeyboardInterrupt
        append(self, name, array)

    monkeypatch.setattr(Writer, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tmp_path / "source", tmp_path / "out", "chat")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
