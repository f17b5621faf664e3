"""What a compiled module does, read from its text: bytes moved, and what chips send each other, loops counted in full.

The compiler's own analysis counts the body of a loop once. Here the body counts as often as the loop is known to run,
or as often as the caller says where data decides. Bytes are those of every operation that stands outside of fusions,
operands and result; what lies in a TPU's vector memory costs nothing, but to bring it there or back. This is an upper
estimate.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"}
_FREE |= {"after-all", "partition-id", "replica-id", "opt-barrier"}
_SOME = {"slice", "dynamic-slice", "gather"}
"""What reads of its first operand no more than it gives."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")


class Instruction(NamedTuple):
    """One line: its result's type, operation, operands, and the line itself."""

    name: str
    type: str
    operation: str
    operands: list[str]
    line: str
    root: bool


class Sent(NamedTuple):
    """count: times that each chip takes part. moved: bytes of what comes of it. passed: bytes that leave each chip."""

    count: int
    moved: int
    passed: int


@dataclass(frozen=True)
class Work:
    """bytes: read and written by each chip. collectives: by kind."""

    bytes: int
    collectives: dict[str, Sent] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """Bytes that leave each chip."""
        return sum(sent.passed for sent in self.collectives.values())


def read_work(text: str, devices: int, unknown_trips: int = 1) -> Work:
    """The work of a compiled module; loops whose length data decides run `unknown_trips` times."""
    modules, entry = _computations(text)
    times: dict[str, int] = defaultdict(int)
    fused: set[str] = set()
    _count(modules, entry, 1, times, fused, unknown_trips)
    moved, sent = 0, defaultdict(lambda: Sent(0, 0, 0))
    started: set[str] = set()
    for name, often in times.items():
        types = {each.name: each.type for each in modules[name]}
        for each in modules[name]:
            kind = each.operation.removesuffix("-start")
            channel = _CHANNEL.search(each.line)
            # A collective that runs beside others is written into the fusion of each of them.
            again = name in fused and channel is not None and channel[1] in started
            if kind in _COLLECTIVES and not again:
                started |= {channel[1]} if channel else set()
                size, group = _result(each), _group_size(each.line, devices)
                passed = _passed(kind, size, group)
                before = sent[kind]
                sent[kind] = Sent(before.count + often, before.moved + often * size, before.passed + often * passed)
            if name not in fused:
                moved += often * _traffic(each, types, modules)
    return Work(moved, dict(sent))


def largest_arrays(text: str, count: int = 5) -> list[tuple[int, str]]:
    """Bytes and type of the largest arrays that some operation outside of fusions makes, largest first."""
    sizes = {}
    for match in re.finditer(
        r"^\s+(?:ROOT )?%?[\w.\-]+ = (\w+\[[\d,]*\])\S* (?!parameter)[\w\-]+\(", text, re.MULTILINE
    ):
        sizes[match[1]] = type_bytes(match[1])
    return sorted(((size, name) for name, size in sizes.items()), reverse=True)[:count]


def type_bytes(text: str) -> int:
    """Bytes of an array or tuple type as HLO writes it, but for parts in vector memory or the host's."""
    return sum(_arrays(text))


def _arrays(text: str) -> list[int]:
    return [
        _BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape, layout in _ARRAY.findall(text)
        if "S(1)" not in layout and "S(5)" not in layout
    ]


def _result(collective: Instruction) -> int:
    """Bytes of what a collective gives, wherever that lies."""
    arrays = _arrays(re.sub(r"S\(\d\)", "", collective.type))
    # Several arrays may be summed at once; other asynchronous starts give their operand too.
    whole = not collective.operation.endswith("-start") or collective.operation.startswith("all-reduce")
    return sum(arrays) if whole else max(arrays, default=0)


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    modules: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if not line.startswith(" "):
            opened = _COMPUTATION.match(line)
            if opened:
                current = modules.setdefault(opened[2], [])
                entry = opened[2] if opened[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            name, kind, operation, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            current.append(Instruction(name, kind, operation, operands, line, line.lstrip().startswith("ROOT")))
    return modules, entry


def _count(
    modules: dict[str, list[Instruction]], name: str, often: int, times: dict[str, int], fused: set[str], unknown: int
) -> None:
    times[name] += often
    for each in modules[name]:
        called = _called(each)
        trips = 1
        if each.operation == "while":
            trips = _trips(each.line, modules) or unknown
        for inner in called:
            if inner in modules:
                if each.operation not in {"while", "conditional", "call"} and not each.operation.startswith("async"):
                    fused.add(inner)
                _count(modules, inner, often * trips, times, fused, unknown)


def _called(each: Instruction) -> list[str]:
    """Names of the computations that an operation runs, and perhaps words that are none."""
    return [name.strip(" %") for group in _CALLED.findall(each.line) for name in group.split(", ")]


def _trips(line: str, modules: dict[str, list[Instruction]]) -> int | None:
    """How often a loop runs, where that is known: as its backend says, or as its condition compares a counter."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = list(modules.get(condition[1], [])) if condition else []
    for each in list(lines):
        for inner in _called(each):
            lines += modules.get(inner, [])
    if {each.operation for each in lines} - {
        "parameter",
        "get-tuple-element",
        "constant",
        "compare",
        "fusion",
        "bitcast",
    }:
        return None
    limits = [int(found[1]) for each in lines if (found := re.search(r"s32\[\]\S* constant\((\d+)\)", each.line))]
    return limits[0] if len(limits) == 1 else None


def _traffic(each: Instruction, types: dict[str, str], modules: dict[str, list[Instruction]]) -> int:
    """Bytes that one operation reads and writes."""
    if each.operation == "copy-start":
        # Between memories: of where to and where from, what is the chip's main one.
        return type_bytes(each.type)
    if each.operation in _FREE or each.operation.endswith(("-start", "-done")):
        return 0
    if each.operation in _SOME:
        return 2 * type_bytes(each.type)
    if each.operation == "dynamic-update-slice":
        return 2 * type_bytes(types.get(each.operands[1], ""))
    called = _called(each)
    body = modules.get(called[0], []) if called and each.operation == "fusion" else []
    read = sum(_read(body, index, types.get(name, ""), modules) for index, name in enumerate(each.operands))
    return read + _written(body, each.type)


def _read(body: list[Instruction], index: int, kind: str, modules: dict[str, list[Instruction]]) -> int:
    """Bytes that a fusion reads of an operand: of one that is only sliced, by it or by fusions in it, the slices."""
    parameter = next((x.name for x in body if x.operation == "parameter" and f"parameter({index})" in x.line), None)
    same = {parameter}
    # A result that lies where its operand does is the operand, laid out otherwise.
    renamed = [x for x in body if x.operation == "bitcast" or "output_to_operand_aliasing" in x.line]
    for each in renamed:
        if each.operands[0] in same:
            same.add(each.name)
    whole, parts = type_bytes(kind), 0
    users = [x for x in body if same & set(x.operands) and x not in renamed]
    for user in users:
        first = user.operands[0] in same
        if user.operation in _SOME and first:
            parts += type_bytes(user.type)
        elif user.operation == "fusion":
            inner = modules.get(_called(user)[0], [])
            parts += sum(_read(inner, at, kind, modules) for at, name in enumerate(user.operands) if name in same)
        elif user.operation != "dynamic-update-slice" or not first:
            return whole
    return min(parts, whole) if users else whole


def _written(body: list[Instruction], kind: str) -> int:
    """Bytes that a fusion writes: where it ends in an update in place, those of the update."""
    by_name = {x.name: x for x in body}
    root = next((x for x in body if x.root), None)
    while root is not None and root.operation == "bitcast":
        root = by_name.get(root.operands[0])
    if root is None or root.operation != "dynamic-update-slice":
        return type_bytes(kind)
    return type_bytes(by_name[root.operands[1]].type)


def _group_size(line: str, devices: int) -> int:
    """Chips that take part in one collective together."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", found[2]) if name in sizes)
    return devices


def _passed(kind: str, size: int, group: int) -> int:
    """Bytes that leave each chip, round a ring, for a result of so many bytes."""
    others = group - 1
    share = size // max(group, 1)
    return {
        "all-gather": share * others,
        "all-reduce": 2 * share * others,
        "reduce-scatter": size * others,
        "all-to-all": share * others,
        "collective-permute": size,
    }[kind]
