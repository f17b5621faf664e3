"""What a run needs to go on as if nothing had happened: weights that move, the optimizer's memory, and where it stood.

Written by orbax while the run goes on, beside its place and moved there when whole, the last few kept. So a kill, or a
disk that fills up during a save, leaves the earlier savepoint as it was.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp

from vqathinker_jax.records import CheckpointError

Tree = TypeVar("Tree")


class Savepoint(NamedTuple):
    """A tree of arrays, and JSON values beside it."""

    arrays: Any
    place: dict[str, Any]


class Savepoints:
    """The savepoints of one run, by the number of steps that were finished."""

    def __init__(self, directory: Path, keep: int):
        """keep: how many stay."""
        self.directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        handlers = {"arrays": ocp.StandardCheckpointHandler(), "place": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def __enter__(self) -> "Savepoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with nullcontext() if error else self._one_line():
            self._manager.close()

    def latest(self) -> int | None:
        """Steps finished at the newest whole savepoint."""
        return self._manager.latest_step()

    def save(self, step: int, savepoint: Savepoint) -> None:
        """Begin to write the state after `step` steps; it is copied at once, so the run may go on to change it.

        One that is there already stays: a state is a function of its step.

        Raises: OSError where this one, or the one begun before, cannot be written; earlier ones stay.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(_named(savepoint.arrays)), place=ocp.args.JsonSave(savepoint.place)
        )
        with self._one_line():
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Return when all that was begun is written.

        Raises: OSError where it cannot be.
        """
        with self._one_line():
            self._manager.wait_until_finished()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turns whatever orbax raises for a write that failed into an OSError that says what there is, and what now."""
        try:
            yield
        except Exception as error:
            fault = " ".join(str(error).split())
            full = "RESOURCE_EXHAUSTED" in fault or os.strerror(errno.ENOSPC) in fault
            number = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
            latest = self._manager.latest_step()
            left = "no earlier one is there" if latest is None else f"that of step {latest} is whole"
            raise OSError(
                number,
                f"{os.strerror(number)} ({fault[:200]}): no savepoint could be written, {left}; make room and run the "
                "same command again",
                str(self.directory),
            ) from error

    def restore(self, step: int, like: Tree) -> tuple[Tree, dict[str, Any]]:
        """The tree saved after `step` steps, each array in the place and dtype of its like, and the JSON values.

        Raises: CheckpointError where it holds other arrays.
        """
        path = self.directory / str(step)
        wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in _named(like).items()}
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted), place=ocp.args.JsonRestore())
        try:
            # Held against what is there first: a restore that fails half-way leaves futures that complain later.
            _fit(self._manager.item_metadata(step)["arrays"].tree, wanted)
            found = self._manager.restore(step, args=args)
        except Exception as error:  # orbax raises bare ones where files are missing or damaged
            fault = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path}: does not fit this run's model or cannot be read ({fault}): remove it to go on from the one "
                "before, or name another folder"
            ) from error
        return jax.tree.unflatten(jax.tree.structure(like), [found["arrays"][name] for name in wanted]), found["place"]


def _fit(found: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raises: ValueError where a savepoint's arrays have other names or shapes than those wanted."""
    for name in sorted(found.keys() ^ wanted.keys()):
        raise ValueError(f"{name} is {'not in this run' if name in found else 'not in the savepoint'}")
    for name, array in wanted.items():
        if tuple(found[name].shape) != array.shape:
            raise ValueError(f"{name} is {list(found[name].shape)} and should be {list(array.shape)}")


def _named(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their path: orbax then stores names, not the classes of a library's present release."""
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in _leaves(tree)}


def _leaves(tree: Any) -> list[tuple[Any, jax.Array]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]
