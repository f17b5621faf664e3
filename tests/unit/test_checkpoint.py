"""The native checkpoint: what is saved comes back, and what is not whole does not load."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from convert.load import load, open_model
from convert.native import convert_checkpoint
from tests.checkpoints import Dtype, draw, settings, shapes, write
from vqathinker_jax import checkpoint
from vqathinker_jax.checkpoint import is_native, restore, save
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.skeleton import arrays


def source_folder(path: Path, *, motion: bool = False, tied: bool = False, dtype: Dtype = "float32") -> Path:
    config = settings("chat", tied=tied)
    return write(path, config, draw(shapes(config, motion=motion), dtype))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_folder(tmp_path_factory.mktemp("checkpoint") / "source")


@pytest.fixture(scope="module")
def native(source: Path) -> Path:
    convert_checkpoint(source, source.with_name("native"))
    return source.with_name("native")


@pytest.fixture
def copy(native: Path, tmp_path: Path) -> Path:
    return shutil.copytree(native, tmp_path / "native")


def assert_equal(found: VLM, expected: VLM) -> None:
    ours, theirs = arrays(found), arrays(expected)
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        assert ours[path].dtype == array.dtype, path
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


@pytest.mark.parametrize("unrolled", [False, True], ids=["stacked", "listed"])
@pytest.mark.parametrize(("motion", "tied", "dtype"), [(True, False, "bfloat16"), (False, True, "float32")])
def test_a_converted_checkpoint_is_the_same_model(
    tmp_path: Path, motion: bool, tied: bool, dtype: Dtype, unrolled: bool
):
    source = source_folder(tmp_path / "source", motion=motion, tied=tied, dtype=dtype)
    convert_checkpoint(source, tmp_path / "native")
    model = open_model(tmp_path / "native", unrolled=unrolled)
    expected = load(source, unrolled=unrolled)
    assert model.config == expected.config
    assert_equal(model, expected)


def test_the_sources_config_and_tokenizer_come_along(source: Path, native: Path):
    beside = {path.name for path in source.iterdir()} - {"model.safetensors"}
    assert {"config.json", "vocab.json", "merges.txt"} <= beside
    for name in beside:
        assert (native / name).read_bytes() == (source / name).read_bytes()
    assert {path.name for path in native.iterdir()} == beside | {"weights", "vqathinker.json", "checksums.json"}
    assert not list(native.parent.glob("native.*"))


def test_weights_are_cast_when_written_or_when_read(source: Path, native: Path, tmp_path: Path):
    expected = load(source, dtype=jnp.bfloat16)
    assert_equal(restore(native, dtype="bfloat16"), expected)
    convert_checkpoint(source, tmp_path / "cast", dtype="bfloat16")
    assert_equal(restore(tmp_path / "cast"), expected)


def test_a_head_that_the_config_calls_tied_stays_untied(tmp_path: Path):
    """What the names of Transformers' format said about the head is not asked again of a native checkpoint."""
    config = settings("transformers", tied=True)
    tensors = draw(shapes(config, motion=False))
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"] + 1
    source = write(tmp_path / "source", config, tensors)
    convert_checkpoint(source, tmp_path / "native")
    assert_equal(restore(tmp_path / "native"), load(source))


def test_arrays_are_restored_where_they_are_told_to_be(native: Path):
    device = jax.devices()[0]
    mesh = Mesh(np.array([device]).reshape(1, 1), ("fsdp", "tensor"))
    model = restore(native, mesh=mesh)
    assert_equal(model, restore(native))
    query = arrays(model)["language.layers.query.kernel"]
    assert query.sharding == SingleDeviceSharding(device)


OPENED = """
import hashlib, json, sys
import jax, numpy as np, orbax.checkpoint as ocp
with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(sys.argv[1])
name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
digest = lambda array: hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
print(json.dumps({name(path): digest(array) for path, array in jax.tree_util.tree_leaves_with_path(tree)}))
assert not [name for name in sys.modules if name.partition(".")[0] in ("vqathinker", "vqathinker_jax", "convert")]
"""


@pytest.mark.parametrize(("motion", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_orbax_alone_opens_the_weights(tmp_path: Path, motion: bool, dtype: Dtype, caplog: pytest.LogCaptureFixture):
    convert_checkpoint(source_folder(tmp_path / "source", motion=motion, dtype=dtype), tmp_path / "native")
    assert not caplog.messages
    command = [sys.executable, "-I", "-c", OPENED, str(tmp_path / "native/weights")]
    opened = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr
    sums = json.loads((tmp_path / "native/checksums.json").read_bytes())["weights"]
    assert len(sums) > 20
    assert json.loads(opened.stdout) == sums


def test_orbax_alone_lays_the_weights_of_a_saved_model_over_a_mesh(native: Path, tmp_path: Path):
    model = restore(native, dtype="bfloat16")
    save(tmp_path / "saved", model, native)
    spread = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("fsdp",)), PartitionSpec())
    like = {
        tuple(name.split(".")): jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=spread)
        for name, array in arrays(model).items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "saved/weights", unflatten_dict(like))
    flat: dict[str, Any] = flatten_dict(tree, sep=".")
    for path, array in flat.items():
        assert array.sharding == spread
        np.testing.assert_array_equal(array, arrays(model)[path], err_msg=path)


# Never half a checkpoint


def test_an_interrupted_save_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "native")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["writing", "moving"])
def test_an_interrupted_replacement_leaves_the_former(copy: Path, at: str, monkeypatch: pytest.MonkeyPatch):
    model, before = restore(copy), sorted(path.name for path in copy.iterdir())
    rename = Path.rename

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def rename_or_not(path: Path, target: Path) -> Path | None:
        return interrupted() if ".partial-" in path.name else rename(path, target)

    if at == "writing":
        monkeypatch.setattr(checkpoint, "whole", interrupted)
    else:
        monkeypatch.setattr(Path, "rename", rename_or_not)
    with pytest.raises(KeyboardInterrupt):
        save(copy, model, copy, force=True)
    assert sorted(path.name for path in copy.iterdir()) == before
    assert_equal(restore(copy), model)
    assert list(copy.parent.iterdir()) == [copy]


def test_a_killed_save_leaves_a_folder_that_does_not_load(copy: Path):
    """The manifest is what is written last: without it all else may be there, and it is no checkpoint."""
    (copy / "vqathinker.json").unlink()
    assert not is_native(copy)
    with pytest.raises(CheckpointError, match="no weights found"):
        open_model(copy)


def test_a_folder_that_is_taken_is_not_overwritten_unless_forced(source: Path, copy: Path):
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"native: holds a checkpoint already; name another folder, or replace it by --force"
    ):
        convert_checkpoint(source, copy)
    assert (copy / "notes.txt").read_text() == "mine"
    convert_checkpoint(source, copy, force=True)
    assert not (copy / "notes.txt").exists()
    assert_equal(restore(copy), load(source))
    assert list(copy.parent.iterdir()) == [copy]


def test_force_never_removes_a_folder_of_other_things(source: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds other things than a checkpoint made here"):
        convert_checkpoint(source, tmp_path, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_where_a_checkpoint_cannot_go_or_come_from(source: Path, native: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file: is a file; name a folder"):
        convert_checkpoint(source, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"native: is a native checkpoint already"):
        convert_checkpoint(native, tmp_path / "again")
    for target in (source, source.parent):
        with pytest.raises(CheckpointError, match=r"holds .*; name another folder"):
            convert_checkpoint(source, target, force=True)
        assert (source / "config.json").exists()
    with pytest.raises(CheckpointError, match=r"a native checkpoint has no use for .*; leave --slowfast out"):
        open_model(native, slowfast=tmp_path / "SLOWFAST_8x8_R50.pyth")
    (tmp_path / "empty").mkdir()
    convert_checkpoint(source, tmp_path / "empty")
    assert is_native(tmp_path / "empty")


# Damage


FULL = """
import resource, sys
from pathlib import Path
from typing import Any
from convert.native import convert_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    convert_checkpoint(*map(Path, sys.argv[1:]))
except OSError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_told_in_a_line_and_nothing_stays(source: Path, tmp_path: Path):
    command = [sys.executable, "-c", FULL, str(source), str(tmp_path / "native")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"\[Errno \d+\] .*: '.*weights'\n", refused.stdout), refused.stdout + refused.stderr
    assert not list(tmp_path.iterdir())


def rewrite(name: str, **values: object) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        settings = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**settings, **values}))

    return change


QUERY = "weights/language.layers.query.kernel"

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "older format": (rewrite("vqathinker.json", format=2), r"vqathinker.json: format 2 .* expected format 3 .*; con"),
    "manifest of text": (lambda d: (d / "vqathinker.json").write_text("{"), r"vqathinker.json: not JSON"),
    "manifest cut": (lambda d: (d / "vqathinker.json").write_text('{"format": 3}'), r"format 3 with 1 entries, exp"),
    "no config": (lambda d: (d / "config.json").unlink(), r"native: no config.json"),
    "no weights": (lambda d: shutil.rmtree(d / "weights"), r"weights: missing; write the checkpoint again$"),
    "no layer": (
        lambda d: (d / QUERY / "c.1.0.0.0").unlink(),
        r"kernel/c.1.0.0.0: missing; write the checkpoint again$",
    ),
    "cut layer": (
        lambda d: (d / QUERY / "c.1.0.0.0").write_bytes((d / QUERY / "c.1.0.0.0").read_bytes()[:-3]),
        r"query.kernel/c.1.0.0.0: \d+ bytes, expected \d+; write the checkpoint again$",
    ),
    "text for an array": (
        lambda d: (d / QUERY / "zarr.json").write_text("[]"),
        r"query.kernel/zarr.json: does not describe an array \(.*\); write the checkpoint again$",
    ),
    "no checksums": (lambda d: (d / "checksums.json").unlink(), r"checksums.json: cannot be read"),
    "checksums of text": (lambda d: (d / "checksums.json").write_text("[]"), r"checksums.json: cannot be read"),
    "weights elsewhere": (
        lambda d: (d / "checksums.json").write_text('{"weights/../../x": {}}'),
        r"checksums.json: names files outside its folder \(weights/../../x\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_are_told_apart(copy: Path, damage: str):
    inflict, message = DAMAGE[damage]
    inflict(copy)
    with pytest.raises(CheckpointError, match=message) as fault:
        restore(copy)
    assert "\n" not in str(fault.value)


def test_weights_that_do_not_fit_the_config_are_listed(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    config["llm_config"] |= {"num_hidden_layers": 4, "tie_word_embeddings": False}
    config["vision_config"] |= {"qkv_bias": False}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as fault:
        restore(copy)
    first, *lines, _ = str(fault.value).splitlines()
    assert first == f"{copy / 'weights'}: {len(lines)} faults in the weights"
    assert "vision.layers.qkv.bias: unexpected, found (2, 3, 4, 8)" in lines
    assert "language.layers.gate.kernel: found (3, 32, 48), expected (4, 32, 48)" in lines
    assert len(lines) == 1 + 12


def test_what_is_missing_and_what_is_damaged_are_reported_together(copy: Path):
    shutil.copytree(copy / QUERY, copy / "weights/language.layers.quarry.kernel")
    (copy / QUERY / "c.2.0.0.0").unlink()
    (positions,) = (copy / "weights/vision.positions").glob("c.*")
    positions.write_bytes(b"cut")
    (copy / "weights/language.embedding/zarr.json").unlink()
    with pytest.raises(CheckpointError) as fault:
        restore(copy)
    first, missing, unexpected, *damaged, _ = str(fault.value).splitlines()
    assert first == f"{copy / 'weights'}: 4 faults in the weights"
    assert missing.startswith("language.embedding: missing, expected (")
    assert unexpected.startswith("language.layers.quarry.kernel: unexpected, found (")
    assert damaged[0].startswith(f"{copy / QUERY}/c.2.0.0.0: missing")
    assert damaged[1].startswith(f"{positions}: 3 bytes, expected ")
