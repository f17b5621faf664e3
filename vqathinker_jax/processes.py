"""Several processes as one run: how they find each other, and what they tell each other beside arrays.

Arrays need nothing of this: jit and orbax see those of all processes as one (`sharding.py`). JAX is imported where
it is used, so that the command line can name these options without waiting for it.
"""

import json
from dataclasses import dataclass
from typing import Any

from vqathinker_jax.records import InputError

_LEAST = 1024
"""Bytes of the shortest message; longer ones come in doublings, so that few programs are compiled."""


@dataclass(frozen=True)
class Processes:
    """The processes that make up a run: one a host, or one a GPU."""

    count: int = 1
    """How many there are; 0 lets JAX find those that a TPU pod, SLURM or Open MPI started, and their addresses."""
    coordinator: str = ""
    """Address of the first process and a free port there, as 10.0.0.1:8476; the same for all."""
    index: int = 0
    """Which of them this is, from 0."""


ALONE = Processes()


def join(processes: Processes) -> None:
    """Wait until all are there; from then on `jax.devices()` are those of all. To be called before any computation.

    Raises: InputError where there can be no such processes, or they do not find each other.
    """
    import jax

    _check(processes)
    if processes.count == 1:
        return
    try:
        if processes.count:
            jax.distributed.initialize(processes.coordinator, processes.count, processes.index)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:  # whatever the cluster's manager or the network has to say
        fault = " ".join(str(error).split())[:300]
        cure = "start all processes together, the same way" if processes.count else "give count, coordinator and index"
        raise InputError(f"{processes}: the processes do not find each other ({fault}): {cure}") from error


def _check(processes: Processes) -> None:
    count, index = processes.count, processes.index
    if count < 0 or not 0 <= index < max(count, 1):
        raise InputError(f"process {index} of {count}: give a count from 0, and an index from 0 below it")
    if (count > 1) != bool(processes.coordinator):
        raise InputError(
            f"{count} processes with coordinator {processes.coordinator!r}: more than one need the first one's address "
            "and port, as 10.0.0.1:8476, and others have no use for it"
        )


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    import jax

    return jax.process_index() == 0


def exchange(value: Any) -> list[Any]:
    """The JSON values that all processes come with, in their order; every process must call this, and waits for all."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [value]
    told = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(told.size))
    room = max(_LEAST, 1 << (int(sizes.max()) - 1).bit_length())
    texts = multihost_utils.process_allgather(np.pad(told, (0, room - told.size)))
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]
