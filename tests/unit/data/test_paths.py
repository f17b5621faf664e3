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
    endless = "long" * 100 + ".mp4"
    assert names(expand([f"{folder}/b.mp4", endless])) == ["b.mp4", endless]


def test_a_file_comes_once_however_it_is_spelled(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    (folder / "linked").symlink_to(folder / "below")
    spellings = ["b.mp4", "./b.mp4", f"{folder}/b.mp4", "below/../b.mp4", "*.mp4", "linked/c.jpg", "below"]
    assert [str(path) for path in expand(spellings)] == ["b.mp4", "odd[1].mp4", "linked/c.jpg"]


def test_a_link_to_itself_is_a_file_that_cannot_be_read(folder: Path):
    (folder / "loop.mp4").symlink_to("loop.mp4")
    assert names(expand([f"{folder}/loop.mp4"])) == ["loop.mp4"]


def test_folders_behind_links_are_searched_once_and_links_to_nowhere_are_told(folder: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.mp4").touch()
    (folder / "below" / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "lost.mp4").symlink_to(folder / "gone.mp4")
    (folder / "._b.mp4").touch()
    assert names(expand([str(folder)])) == ["a.MKV", "b.mp4", "c.jpg", "far.mp4", "lost.mp4", "odd[1].mp4"]


def test_an_empty_folder_among_a_globs_matches_is_passed_over(folder: Path):
    (folder / "bare").mkdir()
    assert names(expand([f"{folder}/b*"])) == ["b.mp4", "c.jpg"]


@pytest.mark.parametrize("pattern", ["empty", "empty*", "*.avi"])
def test_what_holds_no_videos_stays_in_its_place_while_others_do(folder: Path, pattern: str):
    (folder / "empty").mkdir()
    assert names(expand([f"{folder}/a.MKV", f"{folder}/{pattern}", f"{folder}/b.mp4"])) == ["a.MKV", pattern, "b.mp4"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("empty", "empty: no videos or pictures in this folder"),
        ("empty*", r"empty\*: matches only folders without videos"),
        ("*.avi", r"\*.avi: nothing matches"),
    ],
)
def test_nothing_found_at_all_is_an_error_that_names_it(folder: Path, pattern: str, found: str):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=found) as error:
        expand([f"{folder}/{pattern}"])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=found) as error:
        expand([f"{folder}/{pattern}", f"{folder}/*.flv"])
    assert str(error.value).count("\n") == 1


def test_a_blank_path_is_refused(folder: Path):
    with pytest.raises(InputError, match="an empty path was given"):
        expand([f"{folder}/b.mp4", ""])


def test_a_url_is_refused(folder: Path):
    with pytest.raises(InputError, match=r"https://example\.com/a\.mp4: a URL, and nothing is fetched"):
        expand([f"{folder}/b.mp4", "https://example.com/a.mp4"])
