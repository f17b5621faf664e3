"""Conversion needs little memory, and what is killed halfway is no checkpoint; restoring reads each device's part."""

import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from convert.export import export_checkpoint
from convert.load import open_model
from convert.native import convert_checkpoint
from tests.checkpoints import draw, settings, shapes, write
from tests.devices import run_on_devices
from tests.unit.test_convert_export import MOVING, published
from vqathinker_jax import tiles
from vqathinker_jax.checkpoint import is_native, restore
from vqathinker_jax.records import CheckpointError


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 30 equal layers, whose stacks are most of it: no tensor is larger than a hundredth."""
    config = settings("chat")
    config["llm_config"] |= {"num_hidden_layers": 30, "hidden_size": 128, "intermediate_size": 512}
    folder = tmp_path_factory.mktemp("deep")
    return write(folder, config, draw(shapes(config, motion=False)), shards=3)


def test_either_way_holds_a_few_tensors_and_never_a_stack(deep: Path, tmp_path: Path):
    total = sum(path.stat().st_size for path in deep.glob("*.safetensors"))
    largest = 512 * 128 * 4
    peaks = {}
    native = tmp_path / "native"
    for name, run in {
        "in": lambda: convert_checkpoint(deep, native, force=True),
        "out": lambda: export_checkpoint(native, tmp_path / "chat", "chat", force=True),
        "across": lambda: export_checkpoint(deep, tmp_path / "transformers", "transformers", force=True),
    }.items():
        run()  # what is imported and traced the first time is not counted
        tracemalloc.start()
        run()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A tensor as it was read and as it is written, and the next one, read ahead: and a few headers and names.
    assert max(peaks.values()) < 4 * largest + 2_000_000 < total / 3, peaks


KILLED = """
import os, signal, sys
from pathlib import Path
import convert.export, convert.native

count, packed = 0, convert.native.packed
def killed(array, dtype):
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return packed(array, dtype)
convert.native.packed = convert.export.packed = killed
source, target = map(Path, sys.argv[3:])
if sys.argv[2] == "convert":
    convert.native.convert_checkpoint(source, target)
else:
    convert.export.export_checkpoint(source, target, "chat")
"""


@pytest.mark.parametrize("way", ["convert", "export"])
def test_what_is_killed_halfway_is_not_taken_for_a_checkpoint(tmp_path: Path, way: str):
    published(tmp_path / "source", MOVING)
    arguments = ["150", way, str(tmp_path / "source"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "out").exists()
    (partial,) = tmp_path.glob("out.partial-*")
    assert not is_native(partial)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_model(partial)


SPREAD = """
import sys
from pathlib import Path
import jax, numpy as np
import tensorstore
from jax.sharding import Mesh
from vqathinker_jax.checkpoint import restore
from vqathinker_jax.skeleton import arrays

def read():
    (count,) = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return count["values"][0]["value"]

directory = Path(sys.argv[1])
whole = arrays(restore(directory))
total = sum(array.nbytes for array in whole.values())
described = sum(path.stat().st_size for path in directory.glob("weights/*/zarr.json"))
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))
before = read()
spread = arrays(restore(directory, mesh=mesh))
taken = read() - before
kernels = {name: array for name, array in spread.items() if not array.sharding.is_fully_replicated}
assert len(kernels) > 15
for name, array in spread.items():
    np.testing.assert_array_equal(array, whole[name])
    assert len(array.sharding.device_set) == 4
print((taken - described) / total)
"""


def test_each_device_reads_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "TILE", 512)  # as much smaller than a whole array as at 8B
    published(tmp_path / "source", MOVING)
    convert_checkpoint(tmp_path / "source", tmp_path / "native")
    done = run_on_devices(4, "-c", SPREAD, str(tmp_path / "native"))
    # Tiles on the border of two parts are read for both, and by each where its tiles lie; whole arrays would make it 3.
    assert float(done.stdout) < 1.4, done.stdout


def test_the_model_does_not_hang_on_its_files(tmp_path: Path):
    """A checkpoint may be replaced while a model that came from it is in use."""
    published(tmp_path / "source", MOVING)
    convert_checkpoint(tmp_path / "source", tmp_path / "native")
    model = restore(tmp_path / "native")
    before = float(model.language.norm.scale[...].sum())
    for path in (tmp_path / "native" / "weights").glob("*/*"):
        path.write_bytes(b"")
    assert float(model.language.norm.scale[...].sum()) == before
