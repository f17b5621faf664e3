"""Where arrays live on a mesh: one table from logical axes to mesh axes.

Every parameter carries logical axes (`layers.param`); a leading axis beyond those is the layer stack. Enters: a model's
abstract or concrete state and a mesh. Leaves: one `NamedSharding` a variable.
"""

from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

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
