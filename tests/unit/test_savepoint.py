"""Savepoints: what was saved comes back bit by bit, and a write that fails leaves the earlier ones whole."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.devices import run_on_devices
from vqathinker_jax.records import CheckpointError
from vqathinker_jax.savepoint import Savepoint, Savepoints


def tree(scale: float) -> dict:
    # Names out of alphabetical order, and a leaf of each kind that training has.
    return {"weights": {"z": scale * jnp.arange(6.0), "a": jnp.ones(2, jnp.bfloat16)}, "count": jnp.int32(scale)}


def test_the_newest_comes_back_as_it_was_and_old_ones_go(tmp_path: Path):
    with Savepoints(tmp_path, keep=2) as savepoints:
        assert savepoints.latest() is None
        for step in (1, 2, 3):
            savepoints.save(step, Savepoint(tree(step), {"data": {"next_batch": step}}))
        savepoints.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    with Savepoints(tmp_path, keep=2) as savepoints:
        assert savepoints.latest() == 3
        found, place = savepoints.restore(3, tree(0))
    assert place == {"data": {"next_batch": 3}}
    for name in ("z", "a"):
        expected = tree(3)["weights"][name]
        assert found["weights"][name].dtype == expected.dtype
        np.testing.assert_array_equal(found["weights"][name], expected)
    assert found["count"] == 3


def test_what_is_there_already_stays(tmp_path: Path):
    with Savepoints(tmp_path, keep=2) as savepoints:
        for _ in range(2):
            savepoints.save(1, Savepoint(tree(1), {}))
            savepoints.wait()
        assert savepoints.latest() == 1


MOVED = """
import sys
from pathlib import Path
import jax, numpy as np
from flax import nnx
from tests.models import tiny_model
from vqathinker_jax.savepoint import Savepoint, Savepoints
from vqathinker_jax.sharding import MeshConfig, make_mesh, shardings

state = nnx.state(tiny_model())
on = lambda *sizes: jax.device_put(state, shardings(state, make_mesh(MeshConfig(*sizes), int(np.prod(sizes)))))
with Savepoints(Path(sys.argv[1]), keep=1) as savepoints:
    savepoints.save(1, Savepoint(on(2, 2, 2), {}))
    savepoints.wait()
    for sizes in [(1, 8, 1), (4, 1, 2), (1, 2, 1), (1, 1, 1)]:
        like = on(*sizes)
        empty = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        found, _ = savepoints.restore(1, empty)
        for array, expected in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
            assert array.sharding == expected.sharding
            np.testing.assert_array_equal(array, expected)
print("equal")
"""


def test_what_one_mesh_wrote_is_read_on_others(tmp_path: Path):
    assert run_on_devices(8, "-c", MOVED, str(tmp_path)).stdout.strip() == "equal"


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ({"z": jnp.ones(7), "a": jnp.ones(2)}, r"weights.z is \[6\] and should be \[7\]"),
        ({"z": jnp.ones(6)}, "weights.a is not in this run"),
        ({"z": jnp.ones(6), "a": jnp.ones(2), "b": jnp.ones(2)}, "weights.b is not in the savepoint"),
    ],
)
def test_arrays_of_another_model_are_refused(tmp_path: Path, weights: dict, fault: str):
    with Savepoints(tmp_path, keep=1) as savepoints:
        savepoints.save(1, Savepoint(tree(1), {}))
        savepoints.wait()
        with pytest.raises(CheckpointError, match=f"does not fit this run's model.*{fault}"):
            savepoints.restore(1, {"weights": weights, "count": jnp.int32(0)})


FULL = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from vqathinker_jax.savepoint import Savepoint, Savepoints

def tree(seed):
    return {"w": jnp.asarray(np.random.default_rng(seed).standard_normal(200_000), jnp.float32)}

with Savepoints(Path(sys.argv[1]), keep=3) as savepoints:
    savepoints.save(1, Savepoint(tree(1), {}))
    savepoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        savepoints.save(2, Savepoint(tree(2), {}))
        savepoints.wait()
    except OSError as error:
        print("refused:", error)
with Savepoints(Path(sys.argv[1]), keep=3) as savepoints:
    found, _ = savepoints.restore(savepoints.latest(), tree(0))
    np.testing.assert_array_equal(found["w"], tree(1)["w"])
    print("whole:", savepoints.latest())
"""


def test_a_disk_that_fills_up_during_a_save_leaves_the_earlier_one_whole(tmp_path: Path):
    made = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], env=os.environ, capture_output=True, text=True, check=False
    )
    assert "refused:" in made.stdout, made.stdout + made.stderr[-2000:]
    assert "that of step 1 is whole" in made.stdout
    assert "whole: 1" in made.stdout, made.stdout + made.stderr[-2000:]
