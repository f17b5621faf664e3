"""Where arrays live on a mesh: one table from logical axes to mesh axes.

Every parameter carries logical axes (`layers.param`); a leading axis beyond those is the layer stack. Enters: a model's
abstract or concrete state and a mesh. Leaves: one `NamedSharding` a variable. Batches lie along their first axis, the
videos, over all devices but those that share a tensor.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vqathinker_jax.records import InputError

PHYSICAL: dict[str, str | None] = {
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "vision": "fsdp",
    "norm": None,
}
"""Mesh axis of each logical axis; a mesh without that axis leaves it whole."""


def specification(axes: tuple[str | None, ...], ndim: int, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The placement of one array of `ndim` dimensions whose trailing ones have these logical axes.

    Raises: InputError where two of its dimensions claim the same mesh axis.
    """
    names = [PHYSICAL[axis] if axis else None for axis in axes]
    names = [name if name in mesh.axis_names else None for name in names]
    claimed = [name for name in names if name]
    if len(claimed) != len(set(claimed)):
        raise InputError(f"axes {axes} put two dimensions on one mesh axis: {names}; change sharding.PHYSICAL")
    return PartitionSpec(*[None] * (ndim - len(names)), *names)


def shardings(state: nnx.State, mesh: Mesh | AbstractMesh) -> Any:
    """A tree like `state` with the `NamedSharding` of each variable's array.

    Raises: InputError where a dimension does not divide by its mesh axis, naming both.
    """

    def place(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value().shape
        spec = specification(variable.axes, len(shape), mesh)
        for size, name in zip(shape, spec, strict=True):
            if name and size % mesh.shape[name]:
                whole = jax.tree_util.keystr(path, simple=True, separator=".")
                raise InputError(
                    f"{whole}: a dimension of {size} does not divide by the mesh's {name}={mesh.shape[name]}; "
                    f"use a divisor of {size}"
                )
        return variable.replace(NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


VIDEOS = PartitionSpec(("data", "fsdp"))
"""The placement of whatever has a video a row."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one of them may be -1, for all that the others leave.

    data: copies of the model. fsdp: over how many devices each copy's weights are spread. tensor: over how many each
    matrix product is.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: int | None = None) -> Mesh:
    """The mesh of all devices there are, or of the first so many.

    Raises: InputError where they do not make up such a mesh.
    """
    count = jax.device_count() if devices is None else devices
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
    return jax.make_mesh(shape, tuple(sizes), (AxisType.Auto,) * 3, devices=jax.devices()[:count])


def check_spread(videos: int, parts: int, mesh: Mesh) -> None:
    """Nothing, where a batch of so many videos, taken in so many parts, spreads evenly over the mesh.

    Raises: InputError with what would.
    """
    over = mesh.shape["data"] * mesh.shape["fsdp"]
    if videos % (parts * over):
        raise InputError(
            f"batch_size {videos} in {parts} micro-batches cannot be spread over data × fsdp = {over} devices: use a "
            f"multiple of {parts * over}, such as {max(round(videos / (parts * over)), 1) * parts * over}"
        )


def put_videos(rows: Any, mesh: Mesh) -> Any:
    """A tree of this process's rows, one a video, as arrays of all processes' rows spread over the mesh."""
    sharding = NamedSharding(mesh, VIDEOS)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), rows)
