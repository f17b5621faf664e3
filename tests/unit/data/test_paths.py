"""What a user types becomes files, each once, and nothing silently disappears."""

from pathlib import Path

import pytest

from vqathinker_jax.data.paths import expand
from vqathinker_jax.records import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MKV", "notes.txt", "below/c.jpg", "odd[1].mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_gives_its_videos_and_pictures_sorted(folder: Path):
    assert names(expand([str(folder)])) == ["a.MKV", "b.mp4", "c.jpg", "odd[1].mp4"]


def test_order_is_the_users_and_each_file_comes_once(folder: Path):
    assert names(expand([f"{folder}/b.mp4", str(folder)])) == ["b.mp4", "a.MKV", "c.jpg", "odd[1].mp4"]


def test_a_glob_matches_files_and_folders(folder: Path):
    assert names(expand([f"{folder}/b*"])) == ["b.mp4", "c.jpg"]


def test_brackets_in_an_existing_name_are_no_glob(folder: Path):
    assert names(expand([f"{folder}/odd[1].mp4"])) == ["odd[1].mp4"]


def test_a_missing_file_stays_for_the_reader_to_report(folder: Path):
    assert names(expand([f"{folder}/gone.mp4"])) == ["gone.mp4"]


@pytest.mark.parametrize("pattern", ["empty", "*.avi"])
def test_nothing_found_is_an_error_that_names_it(folder: Path, pattern: str):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty|avi"):
        expand([f"{folder}/{pattern}"])
