"""Checkpoints are examined without being run: what was written is told from what was damaged since."""

import re
from pathlib import Path

import pytest

from convert.export import export_checkpoint
from convert.integrity import examine_checkpoint
from convert.native import convert_checkpoint
from tests.unit.test_convert_export import MOVING, published
from vqathinker_jax.doctor import report
from vqathinker_jax.stored import open_file


@pytest.fixture(params=["native", "transformers"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    published(tmp_path / "source", MOVING)
    if request.param == "native":
        convert_checkpoint(tmp_path / "source", tmp_path / "written")
    else:
        export_checkpoint(tmp_path / "source", tmp_path / "written", "transformers", limit=100_000)
    return tmp_path / "written"


def faults(directory: Path) -> list[str]:
    return [finding.text for finding in examine_checkpoint(directory) if finding.sound is False]


def test_a_sound_checkpoint_has_three_good_findings(written: Path, capsys: pytest.CaptureFixture):
    assert report(examine_checkpoint(written)) == 0
    described, tokenizer, numbers = capsys.readouterr().out.splitlines()
    assert "vision 2 layers of 32; language 3 layers of 32; motion branch; 0.3 million weights in BF16" in described
    assert tokenizer.startswith("✓ tokenizer")
    assert numbers.startswith("✓ ")
    assert numbers.endswith("tensors are those that were written: SHA-256 of each")


def places(directory: Path) -> list[tuple[Path, int, str]]:
    """Bytes of tensors, as a file and a place in it, and how the tensor is called: of every file of tensors the first
    and the last one's, of arrays in tiles every twentieth tile's."""
    tiles = sorted(directory.glob("weights/*/c.*"))
    found = [(path, 0, f"weights: {path.parent.name}") for path in tiles[::20]]
    for path in directory.glob("*.safetensors"):
        offsets = {stored.offset: name for name, stored in open_file(path).items()}
        found += [(path, end, f"{path.name}: {offsets[end]}") for end in (min(offsets), max(offsets))]
    return found


def test_one_flipped_bit_anywhere_is_found_and_its_tensor_named(written: Path):
    assert len({path for path, _, _ in places(written)}) > 1
    for path, offset, name in places(written):
        whole = path.read_bytes()
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        (fault,) = faults(written)
        assert fault.startswith(f"{name}: SHA-256 is ")
        path.write_bytes(whole)
    assert faults(written) == []


def test_a_file_that_is_cut_or_gone_is_named(written: Path):
    path = max((path for path, _, _ in places(written)), key=lambda path: path.stat().st_size)
    where = ": ".join(path.relative_to(written).parts)
    path.write_bytes(path.read_bytes()[:-1])
    assert any(re.match(rf"{where}: (not a whole|\d+ bytes, expected)", fault) for fault in faults(written))
    path.unlink()
    assert any(fault.startswith(f"{where}: missing") for fault in faults(written))


def test_a_checkpoint_from_elsewhere_has_no_checksums_which_is_no_fault(tmp_path: Path):
    published(tmp_path / "source", MOVING)
    assert [finding.sound for finding in examine_checkpoint(tmp_path / "source")] == [True, True, None]
    (tmp_path / "source" / "vocab.json").unlink()
    next((tmp_path / "source").glob("*.index.json")).unlink()
    weights, tokenizer = faults(tmp_path / "source")
    assert "no weights found" in weights
    assert "no tokenizer found" in tokenizer
