"""One object of a checkpoint's `config.json`, read setting by setting: values in, values of the right kind out.

Whatever is not as it should be is noted as a fault, one line with the setting, what was found and what is expected, and
reading goes on, so that all faults are told together.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

Wholes = TypeVar("Wholes", bound=tuple[int, ...])

LARGEST, FEW = 2**20, 1000
"""Bounds on sizes, and on numbers of layers and the like, far beyond any model: they tell a slip from a size."""


@dataclass(frozen=True)
class Section:
    """An object of the config; what is wrong in it goes to `faults`, and reading goes on with 0 for any number."""

    name: str
    values: Mapping[str, Any]
    faults: list[str]

    def inner(self, key: str) -> "Section":
        """The object under `key`; where there is none, that is the one fault, and nothing is said of its inside."""
        found = self.values.get(key)
        if isinstance(found, Mapping) and found:
            return Section(f"{self.name}{key}.", found, self.faults)
        self.refuse(key, "an object with its settings")
        return Section(f"{self.name}{key}.", {}, [])

    def one_of(self, key: str, default: Any, supported: list[Any]) -> Any:
        """The setting, which is a fault unless this model supports it."""
        found = self.values.get(key, default)
        if not any(found == value and isinstance(found, bool) == isinstance(value, bool) for value in supported):
            known = ", ".join(map(repr, supported))
            self.faults.append(f"{self.name}{key} is {reprlib.repr(found)}; supported: {known}")
        return found

    def flag(self, key: str, default: bool) -> bool:
        """The setting, true or false."""
        return self.one_of(key, default, [False, True]) is True

    def whole(self, key: str, default: int | None = None, most: int = LARGEST) -> int:
        """The whole number from 1 to `most` under `key`."""
        found = self.values.get(key, default)
        return found if _is_whole(found, most) else self.refuse(key, f"a whole number from 1 to {most}")

    def side(self, key: str, default: int) -> int:
        """The side of a square, which native configs write as a pair."""
        found = self.values.get(key, default)
        square = isinstance(found, list) and len(found) == 2 and found[0] == found[1]
        side: Any = found[0] if square else found
        return side if _is_whole(side) else self.refuse(key, f"a whole number from 1 to {LARGEST}, or a pair of one")

    def real(self, key: str, default: float) -> float:
        """The positive number under `key`, of a size that float32 holds."""
        found = self.values.get(key, default)
        if isinstance(found, int | float) and not isinstance(found, bool) and 1e-30 <= found <= 1e30:
            return float(found)
        return self.refuse(key, "a number from 1e-30 to 1e30")

    def wholes(self, key: str, default: Wholes) -> Wholes:
        """The list of whole numbers from 1 to `FEW`, as many as `default` has."""
        found = self.values.get(key, default)
        if isinstance(found, list | tuple) and len(found) == len(default) and all(_is_whole(n, FEW) for n in found):
            return cast("Wholes", tuple(found))
        self.refuse(key, f"a list of {len(default)} whole numbers from 1 to {FEW}")
        return default

    def divides(self, key: str, part: int, whole: int, of: str) -> bool:
        """Whether both are numbers and the setting `part` divides the setting `of`; a fault where it does not."""
        if part and whole % part:
            self.refuse(key, f"a number that divides {of}, {whole}")
        return bool(part and whole) and whole % part == 0

    def refuse(self, key: str, expected: str) -> int:
        """Note that the setting is missing or not as expected; returns the 0 that stands in for it."""
        found = reprlib.repr(self.values[key]) if key in self.values else "missing"
        self.faults.append(f"{self.name}{key} is {found}; expected {expected}")
        return 0


def _is_whole(value: Any, most: int = LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
