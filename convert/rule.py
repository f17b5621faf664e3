"""What ties a checkpoint of the PyTorch world to our model: one rule a tensor, readable in both directions.

A rule says which tensors of theirs are which arrays of ours, and how their axes correspond. Names are exact but for
`{}`, which stands for the layer's number, so no rule depends on the order of the others. Linked to a model's arrays,
the rules list every tensor that its checkpoint must hold, with its shape; `faults` compares that list with what is
there. Nothing here reads a file.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vqathinker_jax.skeleton import shape_faults

Shape = tuple[int, ...]


class Form(Protocol):
    """How the arrays on the two sides of a rule correspond; the directions are inverse to each other, bit by bit."""

    def to_ours(self, theirs: Sequence[np.ndarray], shapes: Sequence[Shape]) -> Sequence[np.ndarray]:
        """Arrays of ours, of these shapes; views where possible."""
        ...

    def to_theirs(self, ours: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The tensors that `to_ours` made these from."""
        ...


@dataclass(frozen=True)
class Axes:
    """One tensor and one array whose axes are the same but for order and grouping: `Axes("(NH)D", "DNH")`.

    Each letter is an axis, parentheses hold those of ours that are a single axis of theirs, `1` is an axis of theirs
    of that size which ours lacks.
    """

    theirs: str
    ours: str

    @property
    def _letters(self) -> str:
        return re.sub(r"[()1]", "", self.theirs)

    def to_ours(self, theirs: Sequence[np.ndarray], shapes: Sequence[Shape]) -> Sequence[np.ndarray]:
        size = dict(zip(self.ours, shapes[0], strict=True))
        split = theirs[0].reshape([size[letter] for letter in self._letters])
        return (split.transpose([self._letters.index(letter) for letter in self.ours]),)

    def to_theirs(self, ours: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        size = dict(zip(self.ours, ours[0].shape, strict=True)) | {"1": 1}
        groups = re.findall(r"\((\w+)\)|(\w)", self.theirs)
        shape = [math.prod(size[letter] for letter in group + single) for group, single in groups]
        return (ours[0].transpose([self.ours.index(letter) for letter in self._letters]).reshape(shape),)


@dataclass(frozen=True)
class Stack:
    """Several tensors of one shape and one array that has them side by side along `axis`."""

    each: Axes
    axis: int

    def to_ours(self, theirs: Sequence[np.ndarray], shapes: Sequence[Shape]) -> Sequence[np.ndarray]:
        one = shapes[0][: self.axis] + shapes[0][self.axis + 1 :]
        return (np.stack([self.each.to_ours([tensor], [one])[0] for tensor in theirs], self.axis),)

    def to_theirs(self, ours: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return tuple(self.each.to_theirs([part])[0] for part in np.moveaxis(ours[0], self.axis, 0))


@dataclass(frozen=True)
class Rule:
    """Tensors of theirs and arrays of ours that hold the same numbers; both are named from their model's root."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    form: Form


@dataclass(frozen=True)
class Ignored:
    """Tensors, by a pattern of their full name, that carry nothing our model needs, and why.

    carried: a conversion keeps them all the same, to hand them back with the weights they came with.
    """

    pattern: str
    reason: str
    carried: bool = True


@dataclass(frozen=True)
class Table:
    """The rules for one spelling of the tensors' names."""

    rules: tuple[Rule, ...]
    ignored: tuple[Ignored, ...] = ()

    def __add__(self, other: "Table") -> "Table":
        return Table(self.rules + other.rules, self.ignored + other.ignored)

    def theirs(self, ours: str) -> str:
        """Their name of the one tensor that is this array of ours."""
        return next(rule.theirs[0] for rule in self.rules if rule.ours == (ours,))


def row(theirs: str, axes: str, ours: str) -> Rule:
    """The rule of one tensor and one array: `row("lm_head.weight", "VD -> DV", "language.head.kernel")`."""
    left, right = axes.split(" -> ")
    return Rule((theirs,), (ours,), Axes(left, right))


@dataclass(frozen=True)
class Link:
    """A rule at one layer of a model: exact names, and the shapes of our arrays.

    Where layers are stacked, `layer` is the row of `ours` that is meant, and `shapes` are of that row.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layer: int | None
    shapes: tuple[Shape, ...]
    form: Form

    @property
    def their_shapes(self) -> tuple[Shape, ...]:
        """The shapes that the tensors must have: found by sending weightless arrays back."""
        blanks = [np.broadcast_to(np.int8(0), shape) for shape in self.shapes]
        return tuple(tensor.shape for tensor in self.form.to_theirs(blanks))


def link(rules: Iterable[Rule], shapes: Mapping[str, Shape]) -> list[Link]:
    """The rules at every layer of the model whose arrays have these paths and shapes.

    Rules of arrays that the model does not have (a bias, say, of a tower without) link to nothing.
    """
    return [linked for rule in rules for linked in _links(rule, shapes)]


def _links(rule: Rule, shapes: Mapping[str, Shape]) -> Iterable[Link]:
    def at(number: int | str, ours: tuple[str, ...], layer: int | None) -> Link:
        theirs = tuple(name.replace("{}", str(number)) for name in rule.theirs)
        return Link(theirs, ours, layer, tuple(shapes[path][layer is not None :] for path in ours), rule.form)

    stacked = tuple(path.replace(".{}", "") for path in rule.ours)
    if stacked == rule.ours:
        return [at("", rule.ours, None)] if rule.ours[0] in shapes else []
    if stacked[0] in shapes:
        return [at(layer, stacked, layer) for layer in range(shapes[stacked[0]][0])]
    listed = re.compile(re.escape(rule.ours[0]).replace(r"\{\}", r"(\d+)"))
    numbers = sorted(int(match[1]) for match in map(listed.fullmatch, shapes) if match)
    return [at(n, tuple(path.replace("{}", str(n)) for path in rule.ours), None) for n in numbers]


def faults(
    links: Sequence[Link], ignored: Iterable[Ignored], found: Mapping[str, Shape], shapes: Mapping[str, Shape]
) -> list[str]:
    """Everything that keeps these tensors from filling a model of these arrays exactly once, one line each."""
    expected = {name: shape for each in links for name, shape in zip(each.theirs, each.their_shapes, strict=True)}
    skipped = re.compile("|".join(f"(?:{each.pattern})" for each in ignored) or "(?!)")
    wanted = {name: shape for name, shape in found.items() if name in expected or not skipped.fullmatch(name)}
    lines = shape_faults(expected, wanted)
    claims = Counter(name for each in links for name in each.theirs)
    lines += [f"{name}: claimed by {count} rules, expected 1" for name, count in claims.items() if count > 1]
    filled = Counter((path, each.layer) for each in links for path in each.ours)
    lines += [f"our {path}: filled by {count} rules, expected 1" for (path, _), count in filled.items() if count > 1]
    lines += [f"our {path}: filled by no rule" for path in sorted(shapes.keys() - {path for path, _ in filled})]
    return lines
