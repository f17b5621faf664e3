"""What the reference's own code computed, read from a folder of recorded cases."""

import json
from pathlib import Path
from typing import Any

import pytest


def recorded(file: Path) -> Any:
    """The content of a JSON file of recorded numbers; skips, by name, where REFERENCE_CASES lacks that case."""
    if not file.is_file():
        pytest.skip(f"{file} is not among the reference cases")
    return json.loads(file.read_text())
