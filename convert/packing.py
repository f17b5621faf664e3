"""Arrays on their way from one layout and file to another."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

_BLOCK = 256

Item = TypeVar("Item")


def packed(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in this dtype with its numbers one behind the other; itself where it is so already."""
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    target = np.empty(array.shape, dtype)
    if array.dtype == dtype:
        bits = f"u{dtype.itemsize}"  # numpy copies integers without asking how bfloat16 is to be copied
        copy_into(array.view(bits), target.view(bits))
    else:
        copy_into(array, target)
    return target


def ahead(makers: Iterable[Callable[[], Item]]) -> Iterator[Item]:
    """What each of these makes, in their order; the next two are made in other threads while one is in use."""
    with ThreadPoolExecutor(2) as pool:
        making: deque[Future[Item]] = deque()
        for make in makers:
            making.append(pool.submit(make))
            if len(making) > 2:
                yield making.popleft().result()
        while making:
            yield making.popleft().result()


def copy_into(source: np.ndarray, target: np.ndarray) -> None:
    """`target[...] = source`, in square blocks: most sources are transposed matrices, and this is 5 times as fast."""
    source, target = _matrix(source), target.reshape(_matrix(source).shape)
    if source.ndim != 2 or source.flags.c_contiguous:
        target[...] = source
        return
    for i, j in itertools.product(*(range(0, size, _BLOCK) for size in source.shape)):
        block = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
        target[block] = source[block]


def _matrix(array: np.ndarray) -> np.ndarray:
    """The array with each run of axes that lie one within the other in memory as one axis."""
    shape: list[int] = []
    for axis, size in enumerate(array.shape):
        inside = axis > 0 and array.strides[axis - 1] == size * array.strides[axis]
        shape = [*shape[:-1], shape[-1] * size] if inside else [*shape, size]
    return array.reshape(shape)
