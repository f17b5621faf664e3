"""The weights of a native checkpoint on their way to disk: an orbax checkpoint that no memory has to hold.

The names, shapes and dtypes of all arrays come first, and orbax makes of them the tree that it keeps; then the numbers
come, an array or a layer of a stack at a time, and are written while the next are being made. What is written, orbax
restores without anything of ours.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax.traverse_util import unflatten_dict

from vqathinker_jax.records import CheckpointError
from vqathinker_jax.stored import DTYPES, NAMES, Spec
from vqathinker_jax.tiles import cut, scheme

Part = tuple[str, int | None, np.ndarray]
"""An array's name, the layer where it is one of a stack, and the numbers."""


def write_weights(folder: Path, arrays: Mapping[str, Spec], parts: Iterable[Part]) -> dict[str, str]:
    """Write these arrays, by their dotted names, as a new folder that orbax can restore; returns the SHA-256 of each.

    parts: all their numbers, layers in their order. Of several processes, the one that calls this writes alone.

    Raises: OSError where it cannot be written.
    """
    handler = _InParts(parts)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.ShapeDtypeStruct, handler), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})
    tree = {tuple(name.split(".")): jax.ShapeDtypeStruct(shape, DTYPES[kind]) for name, (shape, kind) in arrays.items()}
    writer = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_zarr3=True, type_handler_registry=registry, multiprocessing_options=alone
    )
    writer.finalize = lambda directory: None  # there are no parts of a database to merge, of which orbax would warn
    try:
        with ocp.Checkpointer(writer, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(folder.absolute(), unflatten_dict(tree))
    except CheckpointError:
        raise
    except ValueError as error:  # so TensorStore calls whatever the disk refuses
        raise OSError(errno.EIO, " ".join(str(error).split())[:300], str(folder)) from error
    os.sync()  # once for all files: one by one, a disk is slow to say that it has them
    return {name: digest.hexdigest() for name, digest in handler.digests.items()}


class _InParts(ocp.type_handlers.NumpyHandler):
    """Writes leaves of which orbax sees shapes and dtypes, as their parts come."""

    def __init__(self, parts: Iterable[Part]):
        super().__init__()
        self._parts = parts
        self.digests: dict[str, Any] = {}

    async def serialize(
        self,
        values: Sequence[jax.ShapeDtypeStruct],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,  # noqa: ARG002 orbax's signature
    ) -> list[Any]:
        stores, heights = {}, {}
        for value, info in zip(values, infos, strict=True):
            kind = NAMES[np.dtype(value.dtype)]
            part, tile = cut(info.name, value.shape, kind)
            heights[info.name] = part[0]
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{info.path}/", "file_io_sync": False},
                "metadata": scheme(value.shape, part, tile, kind),
                "store_data_equal_to_fill_value": True,
            }
            stores[info.name] = await tensorstore.open(spec, create=True)
        self.digests = {name: hashlib.sha256() for name in stores}
        writing = None
        for name, layer, array in self._parts:
            store, height = (stores[name], heights[name]) if layer is None else (stores[name][layer], len(array))
            for start in range(0, len(array), height):  # a file at a time: a large array is not in memory once more
                rows = array[start : start + height]
                self.digests[name].update(rows.reshape(-1).view(np.uint8).data)
                if writing is not None:
                    await writing
                writing = store[start : start + len(rows)].write(rows)
        if writing is not None:
            await writing
        return []
