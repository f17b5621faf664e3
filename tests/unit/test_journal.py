"""A run's directory: rows survive a crash, another run's are not touched."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from vqathinker_jax.journal import Journal
from vqathinker_jax.records import InputError

CONFIG = {"seed": 1, "data": {"folders": "a:b", "weights": (0.5, 0.5)}, "save_every": 10}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_from_the_resumed_step_on_are_cut_off_and_so_is_a_torn_one(tmp_path: Path):
    with Journal(tmp_path / "run", CONFIG) as journal:
        journal.begin(0)
        for step in range(3):
            journal.write(step, {"loss": step / 2})
            journal.write_samples([{"step": step, "text": "a\nb"}])
            journal.write_unreadable(step, ["clip.mp4: no frame"])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    with Journal(tmp_path / "run", CONFIG) as journal:
        journal.begin(2)
        journal.write(2, {"loss": 9.0})
    assert rows(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 0, "loss": 0.0},
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 9.0},
    ]
    assert [row["step"] for row in rows(tmp_path / "run" / "samples.jsonl")] == [0, 1]
    assert [row["step"] for row in rows(tmp_path / "run" / "unreadable.jsonl")] == [0, 1]


def test_another_configuration_is_refused_but_for_what_is_free(tmp_path: Path):
    # Until it begins, a run may be started with other settings.
    for config in ({**CONFIG, "seed": 7}, CONFIG):
        with Journal(tmp_path / "run", config, ["save_every"]) as journal:
            pass
    with Journal(tmp_path / "run", CONFIG, ["save_every"]) as journal:
        journal.begin(0)
    with Journal(tmp_path / "run", {**CONFIG, "save_every": 3, "since_added": True}, ["save_every"]):
        pass
    with pytest.raises(InputError, match=r"seed was 1 and is 2.*name another --run-dir"):
        Journal(tmp_path / "run", {**CONFIG, "seed": 2}, ["save_every"])
    other = {**CONFIG, "data": {**CONFIG["data"], "folders": "c"}}
    with pytest.raises(InputError, match=r"data\.folders was 'a:b' and is 'c'"):
        Journal(tmp_path / "run", other, ["save_every"])


def test_a_damaged_configuration_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="no configuration of a run"):
        Journal(tmp_path, CONFIG)


def test_a_folder_of_other_things_or_a_file_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things than a run"):
        Journal(tmp_path, CONFIG)
    with pytest.raises(InputError, match="is a file"):
        Journal(tmp_path / "notes.txt", CONFIG)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_killed_while_its_configuration_was_written_starts_again(tmp_path: Path):
    (tmp_path / "config.json.partial").write_text("{")
    with Journal(tmp_path, CONFIG) as journal:
        journal.begin(0)
    assert not (tmp_path / "config.json.partial").exists()


def test_two_processes_on_one_run_are_refused(tmp_path: Path):
    other = (
        "import sys\nfrom pathlib import Path\nfrom vqathinker_jax.journal import Journal\n"
        "from tests.unit.test_journal import CONFIG\nJournal(Path(sys.argv[1]), CONFIG)"
    )
    with Journal(tmp_path / "run", CONFIG):
        made = subprocess.run(
            [sys.executable, "-c", other, str(tmp_path / "run")], capture_output=True, text=True, check=False
        )
    assert "another process is at work on this run" in made.stderr
    with Journal(tmp_path / "run", CONFIG):
        pass


def test_wandb_gets_the_metrics_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="the package is missing"):
        Journal(tmp_path / "run", CONFIG, wandb="quality")
    logged: list[Any] = []
    run = types.SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda exit_code: None)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    with Journal(tmp_path / "run", CONFIG, wandb="quality") as journal:
        journal.begin(0)
        journal.write(0, {"loss": 1.0})
    assert logged == [(0, {"loss": 1.0})]
