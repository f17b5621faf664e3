"""The house stands on its floors: who may import whom, read from the source without running it."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from vqathinker_jax.doctor import PACKAGES

ROOT = Path(__file__).parents[2]

# A room imports only from floors below its own, and from itself.
FLOORS = [
    ["records"],
    ["sharding", "stored", "processes"],
    ["tiles"],
    ["weights", "checksums", "flops", "hlo", "hardware"],
    ["folder", "budget", "compilers"],
    ["model", "data", "parse", "rewards", "grpo", "optim", "metrics"],
    ["skeleton", "generate", "step", "predictions", "fingerprint", "tasks", "tables", "expectation"],
    ["checkpoint", "rollout", "places", "summary", "journal", "savepoint"],
    ["judge", "lessons", "recipe"],
    ["batch", "policy"],
    ["train", "evaluate", "report", "timeline", "console"],
    ["doctor", "phases"],
    ["plan"],
    ["convert", "configs"],
    ["vqathinker"],
    ["commands"],
    ["run"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# These run on a bare accelerator image.
DEVICE_SIDE = {"model", "generate", "step", "rewards", "grpo", "optim", "sharding", "processes", "records"}
DEVICE_PACKAGES = {"jax", "flax", "optax", "numpy"} | set(sys.stdlib_module_names)

# Slow to import or not there on every machine: only in these rooms, and only inside functions.
LATE = {"torch": {"convert"}, "transformers": {"data", "convert"}, "decord": {"data"}, "pytorchvideo": set()}

MODULES = {"run", "vqathinker"}
OWN_PACKAGES = {"vqathinker_jax", "convert", "configs", "commands", *MODULES}
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in [
        *(ROOT / f"{module}.py" for module in MODULES),
        *(file for package in OWN_PACKAGES for file in (ROOT / package).rglob("*.py")),
    ]
    if path.exists()
)

PROSE = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".ini", ""}
COMMITTED = [*OWN_PACKAGES - MODULES, "tests", "benchmarks", "tools", ".ci"]


def room_of(source: Path) -> str:
    """vqathinker_jax/model/vision.py → model; convert/rule.py → convert; the package's own __init__ → ''."""
    inner = source.parts[1:] if source.parts[0] == "vqathinker_jax" else source.parts
    room = inner[0].removesuffix(".py")
    return "" if room == "__init__" else room


class Import(NamedTuple):
    name: str
    at: Literal["top", "function", "types only"]


def imports(source: Path) -> list[Import]:
    """Every dotted name that a file imports, and where it stands."""
    found: list[Import] = []

    def visit(node: ast.AST, at: Literal["top", "function", "types only"]) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, at) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import: write the full name"
            found.extend(Import(f"{node.module}.{alias.name}", at) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            at = "function"
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            at = "types only"
        for inner in ast.iter_child_nodes(node):
            visit(inner, at)

    visit(ast.parse((ROOT / source).read_text(encoding="utf-8")), "top")
    return found


def rooms_imported(source: Path) -> set[str]:
    """Our own rooms that a file imports, itself not counted; '' stands for the package without a room."""
    own = [parts for name, _ in imports(source) if (parts := name.split("."))[0] in OWN_PACKAGES]
    return {"".join(parts[1:2]) if parts[0] == "vqathinker_jax" else parts[0] for parts in own} - {room_of(source)}


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_imports_only_from_floors_below(source: Path):
    room = room_of(source)
    assert not room or room in FLOOR_OF, f"{source}: give {room!r} a floor in FLOORS"
    floor = FLOOR_OF.get(room, 0)
    for other in rooms_imported(source):
        assert FLOOR_OF.get(other, len(FLOORS)) < floor, f"{source} imports {other}, which is not on a floor below"


@pytest.mark.parametrize("source", [source for source in SOURCES if room_of(source) in DEVICE_SIDE], ids=str)
def test_device_side_runs_on_a_bare_accelerator_image(source: Path):
    for name, _ in imports(source):
        package = name.split(".")[0]
        assert package in DEVICE_PACKAGES | {"vqathinker_jax"}, f"{source} imports {name}"
    assert rooms_imported(source) <= DEVICE_SIDE, f"{source} imports from the host side"


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_late_imports_stay_inside_functions_of_their_rooms(source: Path):
    for name, at in imports(source):
        rooms = LATE.get(name.split(".")[0])
        if rooms is not None and at != "types only":
            assert room_of(source) in rooms, f"{source} imports {name}, which belongs in {sorted(rooms) or 'tests'}"
            assert at == "function", f"{source} imports {name} at its top: move it into the function that needs it"


def test_every_file_is_named_for_what_it_holds():
    names = [path for folder in COMMITTED for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in names if re.search("util|common|helper", path.stem)]


def test_no_text_mentions_a_machines_paths():
    machine_path = re.compile(r"(?<![\w.:])/(work|root|home|Users|tmp)/\w")
    files = [*ROOT.glob("*"), *(path for folder in COMMITTED for path in (ROOT / folder).rglob("*"))]
    texts = [path for path in files if path.is_file() and path.suffix in PROSE and path.name != ".git"]
    assert ROOT / "pyproject.toml" in texts
    for path in texts:
        found = machine_path.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(ROOT)} mentions the path {found.group()}…"


DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "absl": "absl-py", "orbax": "orbax-checkpoint"}
"""Names that packages install under where they are not the ones they are imported by."""
OPTIONAL = {"torch", "wandb"}
"""What a function asks for by name where it is missing."""


def declared() -> set[str]:
    """The packages that installing this one brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.split(r"[\[<>=; ]", line)[0] for line in project["dependencies"]}


def test_what_is_imported_is_declared_and_no_more():
    packages = {name.split(".")[0] for source in SOURCES for name, _ in imports(source)}
    packages -= set(sys.stdlib_module_names) | OWN_PACKAGES | OPTIONAL
    assert {DISTRIBUTIONS.get(package, package) for package in packages} == declared()


def test_doctor_looks_for_what_is_declared():
    # decord has no wheel everywhere; doctor tells of it among the decoders.
    assert set(PACKAGES) == declared() - {"decord"}
