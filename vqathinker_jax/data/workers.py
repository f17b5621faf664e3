"""The processes that decode: what they need of the machine, and how they end.

Grain starts them afresh (spawn), so a program that uses them keeps its start behind `if __name__ == "__main__"`, and
hands their arrays over in shared memory.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path

from vqathinker_jax.records import InputError

READ_AHEAD = 2  # samples that each worker keeps ready, so that one slow video does not stop the others
_SHARED_MEMORY = Path("/dev/shm")


def check_shared_memory(workers: int, batch: int, sample_bytes: int) -> None:
    """Make sure that the samples of `workers` workers and of a batch fit; where they do not, writing kills a worker.

    Raises:
        InputError: they do not fit.
    """
    if not workers or not _SHARED_MEMORY.is_dir():
        return
    # A worker's samples wait in its queue, in the reader's queue, and in hand on either side; a batch until stacked.
    needed = (workers * (2 * READ_AHEAD + 2) + 2 * batch) * sample_bytes
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < needed:
        raise InputError(
            f"{_SHARED_MEMORY} has {free >> 20} MiB free where {workers} workers need {needed >> 20}: "
            "give the container more (docker --shm-size), or take fewer workers; 0 need none"
        )


def start_worker(_index: int, _count: int) -> None:
    """Leave signals to the parent, which saves before it ends its workers; end with it, whatever ended it."""
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
