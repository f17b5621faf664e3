"""How a folder comes to its place: what a killed process left behind is in nobody's way."""

from pathlib import Path

from vqathinker_jax.folder import replacing


def test_what_a_process_of_the_same_id_left_behind_is_in_nobodys_way(tmp_path: Path):
    killed = replacing(tmp_path / "model")
    with replacing(tmp_path / "model") as folder:
        left = killed.__enter__()  # and never left, as after a kill
        (folder / "config.json").write_text("{}")
    assert left.is_dir()
    assert (tmp_path / "model" / "config.json").read_text() == "{}"
