"""The placement table: every parameter has a place, and a model spread over devices computes what one device does."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tests.devices import run_on_devices
from tests.models import MOVING, tiny_model
from vqathinker_jax.model.config import ModelConfig
from vqathinker_jax.records import InputError
from vqathinker_jax.sharding import _place_of, check_spread, placement, shardings, share_of_videos, specification
from vqathinker_jax.skeleton import abstract_model

MESH = AbstractMesh((2, 2), ("fsdp", "tensor"))


def test_axes_take_their_places_and_a_layer_stack_stays_whole():
    assert specification(("embed", "heads", None), 4, MESH) == PartitionSpec(None, "fsdp", "tensor", None)


def test_a_mesh_without_an_axis_leaves_it_whole():
    assert specification(("embed", "mlp"), 2, AbstractMesh((4,), ("fsdp",))) == PartitionSpec("fsdp", None)


def test_two_dimensions_on_one_mesh_axis_are_refused():
    with pytest.raises(InputError, match="one mesh axis"):
        specification(("heads", "mlp"), 2, MESH)


def test_a_dimension_that_does_not_divide_is_named():
    state = nnx.state(tiny_model())
    mesh = Mesh(jax.devices()[:1], ("tensor",))
    shardings(state, mesh)
    with pytest.raises(InputError, match=r"does not divide by the mesh's tensor=3; for this model it may be 1, 2$"):
        shardings(state, AbstractMesh((3,), ("tensor",)))


def test_an_abstract_model_is_placed_before_it_has_weights():
    state = nnx.state(abstract_model(ModelConfig()))
    placed = shardings(state, MESH)["language"]["layers"]["up"]["kernel"].get_value()
    assert placed.spec == PartitionSpec(None, "fsdp", "tensor")


def test_placements_are_said_as_xla_says_them():
    mesh = AbstractMesh((2, 1, 4), ("data", "fsdp", "tensor"))
    said = placement(mesh, PartitionSpec(None, ("data", "fsdp"), "tensor", "fsdp", None))
    assert isinstance(said, NamedSharding)
    assert said.spec == PartitionSpec(None, "data", "tensor")


def test_every_parameter_of_every_part_knows_its_axes():
    variables = jax.tree.leaves(nnx.state(tiny_model(MOVING)), is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert variables
    for variable in variables:
        assert len(variable.axes) in (variable[...].ndim, variable[...].ndim - 1)


def test_the_recipe_for_8b_spreads_over_any_usual_number_of_devices():
    config = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "grpo_lsvq_8b.py"))["config"]
    for devices in (1, 2, 4, 8):
        mesh = AbstractMesh((1, devices, 1), ("data", "fsdp", "tensor"))
        for parts in (config.micro_batches, config.rollout.micro_batches):
            check_spread(config.data.batch_size, parts, mesh)
    with pytest.raises(InputError, match="use a multiple of 64, such as 64"):
        check_spread(32, 4, AbstractMesh((1, 16, 1), ("data", "fsdp", "tensor")))


class Chip(NamedTuple):
    """As much of a device as a mesh of several processes shows."""

    process_index: int


def mesh_of(processes: list[int], shape: tuple[int, int, int]) -> SimpleNamespace:
    """A mesh whose devices, in its order, belong to these processes; the first one asks."""
    devices = np.empty(len(processes), object)
    devices[:] = [Chip(process) for process in processes]
    return SimpleNamespace(
        devices=devices.reshape(shape), shape=dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    )


@pytest.mark.parametrize(
    ("processes", "shape", "share"),
    [
        ([0, 0, 1, 1], (1, 4, 1), (0, 2)),
        ([1, 1, 0, 0], (2, 2, 1), (1, 2)),
        # Two processes hold the halves of each matrix of one copy, and two others those of the other.
        ([0, 1, 2, 3], (2, 1, 2), (0, 2)),
        ([0, 1], (1, 1, 2), (0, 1)),
    ],
)
def test_each_process_brings_its_share_of_the_videos(
    processes: list[int], shape: tuple[int, int, int], share: tuple[int, int]
):
    assert share_of_videos(cast(Mesh, mesh_of(processes, shape))) == share


@pytest.mark.parametrize("processes", [[0, 1, 0, 1], [0, 0, 0, 1]])
def test_a_mesh_that_scatters_a_process_is_refused(processes: list[int]):
    with pytest.raises(InputError, match="its own share of the videos: choose tensor"):
        share_of_videos(cast(Mesh, mesh_of(processes, (1, 4, 1))))


class Tpu(NamedTuple):
    """As much of a TPU as its place in a mesh depends on."""

    id: int
    process_index: int
    coords: tuple[int, ...]
    slice_index: int = 0
    platform: str = "tpu"


@pytest.mark.parametrize(("slices", "side", "tensor"), [(1, 8, 1), (1, 4, 2), (1, 4, 4), (1, 4, 8), (2, 4, 1)])
def test_hosts_of_a_tpu_slice_each_bring_videos_that_stand_together(slices: int, side: int, tensor: int):
    # A host has a square of 2 x 2 chips; ids go along the torus's rows, as libtpu gives them.
    grid = [(slice_, y, x) for slice_ in range(slices) for y in range(side) for x in range(side)]
    hosts = [slice_ * side**2 // 4 + y // 2 * (side // 2) + x // 2 for slice_, y, x in grid]
    chips = [
        Tpu(number, host, (x, y, 0), slice_)
        for number, ((slice_, y, x), host) in enumerate(zip(grid, hosts, strict=True))
    ]
    rows = np.empty(len(chips), object)
    rows[:] = sorted(chips, key=_place_of)
    mesh = SimpleNamespace(
        devices=rows.reshape(1, -1, tensor), shape={"data": 1, "fsdp": len(chips) // tensor, "tensor": tensor}
    )
    assert share_of_videos(cast(Mesh, mesh)) == (0, len(chips) // max(tensor, 4))
    assert [chip.slice_index for chip in rows] == sorted(chip.slice_index for chip in rows)
    # Those that share a tensor stand beside each other.
    assert {abs(a.coords[0] - b.coords[0]) + abs(a.coords[1] - b.coords[1]) for a, b in rows.reshape(-1, 2)} == {1}


SPREAD = """
import jax, numpy as np
from flax import nnx
from jax.sharding import Mesh
from tests.models import CONTEXT, PAD, STOP, tiny_frames, tiny_model, tiny_prompt
from vqathinker_jax.data.prompt import pad_left
from vqathinker_jax.generate import Sampling, encode, generate
from vqathinker_jax.sharding import shardings

graph, state = nnx.split(tiny_model())
ids, mask = pad_left([tiny_prompt([8, 9]), tiny_prompt([10])], PAD, bucket=32)
run = lambda state: generate(graph, state, encode(graph, state, tiny_frames(2)), ids, mask, context_id=CONTEXT,
                             stop_id=STOP, pad_id=PAD, sampling=Sampling(max_new_tokens=8))
alone = run(state)
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))
spread_state = jax.device_put(state, shardings(state, mesh))
spread = run(spread_state)
assert not nnx.merge(graph, spread_state).language.layers.up.kernel[...].sharding.is_fully_replicated
np.testing.assert_array_equal(alone.ids_PGC, spread.ids_PGC)
# float32: partial sums of four devices are added in another order.
np.testing.assert_allclose(alone.log_probs_PGC, spread.log_probs_PGC, atol=1e-4)
with jax.set_mesh(mesh):
    np.testing.assert_array_equal(run(spread_state).ids_PGC, alone.ids_PGC)
print("equal")
"""


def test_four_devices_write_what_one_does_inside_a_mesh_context_and_outside():
    assert run_on_devices(4, "-c", SPREAD).stdout.strip() == "equal"
