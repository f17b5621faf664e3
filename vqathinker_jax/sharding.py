"""Where arrays live on a mesh: one table from logical axes to mesh axes.

Every parameter carries logical axes (`layers.param`); a leading axis beyond those is the layer stack. Enters: a model's
abstract or concrete state and a mesh. Leaves: one `NamedSharding` a variable. Batches, activations and caches lie along
their axis of rows, the videos, over all devices but those that share a tensor. A model knows its `Layout` as a static
attribute, which is part of what a compiled function is kept by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from vqathinker_jax.records import InputError

Remat = Literal["none", "products", "layers", "blocks"]
Attention = Literal["blocks", "cudnn", "splash"]
AttentionChoice = Literal["auto", "blocks"]
"""auto: the kernel that is for the device at hand, where it takes the arrays; blocks: XLA alone, on any device."""

PHYSICAL: dict[str, str | tuple[str, ...] | None] = {
    "rows": ("data", "fsdp"),
    "rows_of_copy": "data",
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "vision": "fsdp",
    "norm": None,
    "width_of_decoding": ("tensor", "fsdp"),
    "head_of_decoding": "fsdp",
}
"""Mesh axes of each logical axis of parameters, activations and caches; a mesh without them leaves it whole."""

VIDEOS = PartitionSpec(PHYSICAL["rows"])
"""The placement of whatever has a video a row."""


def specification(axes: tuple[str | None, ...], ndim: int, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The placement of one array of `ndim` dimensions whose trailing ones have these logical axes.

    Raises: InputError where two of its dimensions claim the same mesh axis.
    """
    names = [_physical(axis, mesh) for axis in axes]
    claimed = [name for group in names if group for name in ((group,) if isinstance(group, str) else group)]
    if len(claimed) != len(set(claimed)):
        raise InputError(f"axes {axes} put two dimensions on one mesh axis: {names}; change sharding.PHYSICAL")
    return PartitionSpec(*[None] * (ndim - len(names)), *names)


def _physical(axis: str | None, mesh: Mesh | AbstractMesh) -> str | tuple[str, ...] | None:
    group = PHYSICAL[axis] if axis else None
    if isinstance(group, tuple):
        return tuple(name for name in group if name in mesh.axis_names) or None
    return group if group in mesh.axis_names else None


@dataclass(frozen=True)
class Layout:
    """How a model computes: on what, and what of it is kept for the backward pass.

    mesh: over which its arrays are spread; None for one device. one_by_one: attention and vision go through rows one
    after the other and not all at once, which one CPU device is faster with, and which would take the turns of several.
    remat: what the backward pass computes again: nothing, what lies between the products with weights, each layer from
    what it was given, or within a layer the weights of each block of attention once more, so that those of a whole
    layer never exist. attention: computed in XLA, a block of queries at a time, or, where that takes it
    (`attention.attend`), by cuDNN's kernel or by splash, the one that comes with JAX for TPUs.
    """

    mesh: Mesh | AbstractMesh | None = None
    one_by_one: bool = False
    remat: Remat = "layers"
    attention: Attention = "blocks"

    def place(self, x: jax.Array, *axes: str | None, uneven: bool = False) -> jax.Array:
        """`x`, told to lie where its trailing axes belong.

        uneven: cut dimensions that do not divide too, their last parts smaller or empty; otherwise those stay whole.
        """
        if self.mesh is None:
            return x
        spec = specification(axes, x.ndim, self.mesh)
        fitting = (
            group if uneven or size % _parts(group, self.mesh) == 0 else None
            for size, group in zip(x.shape, spec, strict=True)
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*fitting)))

    def cut(self, shape: tuple[int, ...], *axes: str | None) -> PartitionSpec | None:
        """How an array of this shape, of whatever axes, lies on the mesh; None where a dimension does not divide."""
        assert self.mesh is not None
        spec = specification(axes, len(shape), self.mesh)
        parts = (_parts(group, self.mesh) for group in spec)
        return spec if all(size % count == 0 for size, count in zip(shape, parts, strict=True)) else None

    def rows(self, x: jax.Array) -> jax.Array:
        """`x`, told to have its first axis spread and all others whole."""
        return self.place(x, "rows", *[None] * (x.ndim - 1))

    def place_state(self, state: nnx.State) -> nnx.State:
        """A model's weights, or a tree like them, told to lie where each belongs."""
        if self.mesh is None:
            return state
        return jax.tree.map(jax.lax.with_sharding_constraint, state, shardings(state, self.mesh))


ONE_DEVICE = Layout()


def _parts(group: str | tuple[str, ...] | None, mesh: Mesh | AbstractMesh) -> int:
    """Devices along an entry of a placement."""
    names = () if group is None else (group,) if isinstance(group, str) else group
    return math.prod(mesh.shape[name] for name in names)


def layout_of(mesh: Mesh, remat: Remat = "layers", attention: AttentionChoice = "auto") -> Layout:
    """The layout that suits a mesh; of one device, nothing has to be told where it lies."""
    alone, device = mesh.size == 1, mesh.devices.flat[0]
    kernel = attention_on(device) if attention == "auto" else attention
    return Layout(None if alone else mesh, alone and device.platform == "cpu", remat, kernel)


def attention_on(device: jax.Device) -> Attention:  # pyright: ignore[reportInvalidTypeForm]
    """What computes attention there; cuDNN's kernel is for NVIDIA's Ampere and later."""
    if device.platform == "tpu":
        return "splash"
    nvidia = device.platform == "gpu" and device.device_kind.startswith("NVIDIA")
    return "cudnn" if nvidia and float(device.compute_capability) >= 8 else "blocks"


def placement(mesh: Mesh | AbstractMesh, spec: PartitionSpec) -> Sharding:
    """Where an array of this specification lies, in the very words in which XLA says it of what it returns.

    An array that comes back in other words than it went in would make jit compile again: so there are no axes of one
    device, and no dimensions at the end that are whole.
    """
    if mesh.size == 1 and isinstance(mesh, Mesh):
        return SingleDeviceSharding(mesh.devices.flat[0])
    said: list[str | tuple[str, ...] | None] = []
    for group in spec:
        names = tuple(name for name in ((group,) if isinstance(group, str) else group or ()) if mesh.shape[name] > 1)
        said.append(names if len(names) > 1 else names[0] if names else None)
    while said and said[-1] is None:
        said.pop()
    return NamedSharding(mesh, PartitionSpec(*said))


def shardings(state: nnx.State, mesh: Mesh | AbstractMesh) -> Any:
    """A tree like `state` with the `placement` of each variable's array.

    Raises: InputError where a dimension does not divide by its mesh axis, with the sizes that all dimensions on it do.
    """
    along: dict[str, int] = {}
    refused: dict[str, str] = {}

    def place(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value().shape
        spec = specification(variable.axes, len(shape), mesh)
        for size, name in zip(shape, spec, strict=True):
            if name:
                along[name] = math.gcd(along.get(name, 0), size)
                if size % mesh.shape[name]:
                    where = jax.tree_util.keystr(path, simple=True, separator=".")
                    refused.setdefault(name, f"{where}: a dimension of {size}")
        return variable.replace(placement(mesh, spec))

    placed = jax.tree_util.tree_map_with_path(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    for name, dimension in refused.items():
        fitting = ", ".join(str(n) for n in range(1, along[name] + 1) if along[name] % n == 0)
        raise InputError(
            f"{dimension} does not divide by the mesh's {name}={mesh.shape[name]}; for this model it may be {fitting}"
        )
    return placed


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one of them may be -1, for all that the others leave."""

    data: int = 1
    """Copies of the model."""
    fsdp: int = -1
    """Devices over which each copy's weights are spread."""
    tensor: int = 1
    """Devices over which each matrix product is spread."""


def make_mesh(config: MeshConfig, devices: int | Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """The mesh of all devices there are, of the first so many, or of these.

    Raises: InputError where they do not make up such a mesh.
    """
    chosen = devices if isinstance(devices, Sequence) else jax.devices()[:devices]
    count = len(chosen)
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    given = math.prod(size for size in sizes.values() if size != -1)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise InputError(f"{config}: give each axis a size from 1, and -1 to one of them at most")
    if count % given or (not free and count != given):
        raise InputError(
            f"the mesh {', '.join(f'{name}={size}' for name, size in sizes.items())} does not make up {count} devices: "
            "the product of the sizes must be that, or divide it where one is -1"
        )
    shape = tuple(count // given if size == -1 else size for size in sizes.values())
    placed = np.empty(count, object)
    placed[:] = sorted(chosen, key=_place_of)
    return Mesh(placed.reshape(shape), tuple(sizes), axis_types=(AxisType.Auto,) * 3)


def _place_of(device: Any) -> tuple[Any, ...]:
    """What devices are ordered by: slices, then processes, so that each process brings videos that stand together.

    `jax.make_mesh` would follow a TPU's torus, where a process has a square and no row.
    """
    own = device.coords if device.platform == "tpu" else ()
    return getattr(device, "slice_index", 0), device.process_index, *own, device.id


def check_spread(videos: int, parts: int, mesh: Mesh) -> None:
    """Check that a batch of so many videos, taken in so many parts, spreads evenly over the mesh.

    Raises: InputError with what would.
    """
    over = mesh.shape["data"] * mesh.shape["fsdp"]
    if videos % (parts * over):
        raise InputError(
            f"batch_size {videos} in {parts} micro-batches cannot be spread over data × fsdp = {over} devices: use a "
            f"multiple of {parts * over}, such as {max(round(videos / (parts * over)), 1) * parts * over}"
        )


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is spread along its first axis, in their order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def whole(array: jax.Array) -> np.ndarray:
    """An array of all processes, on the host; every process must ask."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def share_of_videos(mesh: Mesh) -> tuple[int, int]:
    """Which share of each batch's videos this process brings, and how many shares there are.

    Processes whose devices split a tensor between them bring the same.

    Raises: InputError where a process's devices do not hold one share of as many videos as the others'.
    """
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(-1, mesh.shape["tensor"])
    held = {owner: np.flatnonzero((owners == owner).any(1)) for owner in np.unique(owners)}
    width = len(held[jax.process_index()])
    for rows in held.values():
        if len(rows) != width or rows[0] % width or rows[-1] - rows[0] != width - 1:
            raise InputError(
                f"the mesh {dict(mesh.shape)} does not give each process its own share of the videos: choose tensor so "
                f"that it divides the devices of a process, or is a multiple of them; there are {jax.device_count()} "
                f"devices on {jax.process_count()} processes"
            )
    return int(held[jax.process_index()][0]) // width, len(owners) // width


def put_videos(rows: Any, mesh: Mesh) -> Any:
    """A tree of this process's rows, one a video, as arrays of all processes' rows spread over the mesh."""
    sharding = placement(mesh, VIDEOS)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), rows)
