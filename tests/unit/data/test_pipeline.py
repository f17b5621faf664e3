"""Batches: the same on every run, in workers or without, on one host or many, from the start or resumed."""

import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import clips
from vqathinker_jax.data import workers
from vqathinker_jax.data.frames import PERTURBATIONS
from vqathinker_jax.data.manifest import Row
from vqathinker_jax.data.pipeline import Batch, Batches, DataConfig, load_rows
from vqathinker_jax.records import InputError, VideoError

CLIPS = 10
CONFIG = DataConfig("", "", batch_size=4, epochs=3, frames=3, size=32, seed=5, perturb=True, prefetch=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos `0.mp4` … whose every frame carries their number."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(CLIPS):
        clips.write(folder / f"{number}.mp4", [clips.picture(number, 32, 24)] * 4)
    return folder


@pytest.fixture
def rows(folder: Path) -> list[Row]:
    return [row(folder / f"{number}.mp4", number) for number in range(CLIPS)]


def row(video: Path, number: int) -> Row:
    return Row(str(number), "set", video.name, video, "How?", 1 + number / 4, number + 1)


def batches(rows: list[Row], *hosts: int, **changes: Any) -> Batches:
    return Batches([rows], dataclasses.replace(CONFIG, **changes), *hosts)


def ids(batch: Batch) -> list[str]:
    return [row.id for row in batch.rows]


def marks(found: list[Batch]) -> list[tuple]:
    """All that a batch holds, to be compared by ==."""
    return [
        tuple(field.tobytes() if isinstance(field, np.ndarray) else field for field in vars(batch).values())
        for batch in found
    ]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Batch]:
    return list(batches([row(folder / f"{number}.mp4", number) for number in range(CLIPS)]))


def test_a_batch_holds_its_rows_frames_and_scores(expected: list[Batch]):
    assert len(expected) == 6
    for batch in expected:
        assert batch.frames_PFYXC.shape == (4, 3, 32, 32, 3)
        assert batch.frames_PFYXC.dtype == np.uint8
        for frames_FYXC, held in zip(batch.frames_PFYXC, batch.rows, strict=True):
            assert [str(number) for number in clips.numbers(frames_FYXC)] == [held.id] * 3
        assert batch.mos_P.dtype == np.float32
        assert batch.mos_P.tolist() == [held.mos for held in batch.rows]
        assert batch.health == ((),) * 4
        assert batch.unreadable == ()


def test_no_video_stands_twice_in_an_epoch(expected: list[Batch]):
    for number in range(3):
        epoch = [name for batch in expected[2 * number : 2 * number + 2] for name in ids(batch)]
        assert len(set(epoch)) == 8


def test_perturbations_are_drawn_anew_for_each_place(expected: list[Batch]):
    for batch in expected:
        assert batch.order_PF is not None
        assert batch.blank_PF is not None
        assert (batch.order_PF.shape, batch.order_PF.dtype) == ((4, 3), np.int32)
        assert (batch.blank_PF.shape, batch.blank_PF.dtype) == ((4, 3), bool)
    drawn = {(batch.order_PF.tobytes(), batch.blank_PF.tobytes()) for batch in expected}  # type: ignore[union-attr]
    assert len(drawn) == len(expected)
    assert any(batch.blank_PF.any() for batch in expected), "in 24 draws of six kinds none is blank"  # type: ignore
    assert len(PERTURBATIONS) == 6


def test_perturbations_are_left_out_unless_asked_for(rows: list[Row], expected: list[Batch]):
    first = next(batches(rows, perturb=False))
    assert first.order_PF is None
    assert first.blank_PF is None
    assert ids(first) == ids(expected[0])


@pytest.mark.parametrize(("processes", "prefetch"), [(0, 0), (0, 3), (1, 1), (2, 0)])
def test_batches_do_not_depend_on_who_decodes(processes: int, prefetch: int, rows: list[Row], expected: list[Batch]):
    assert marks(list(batches(rows, workers=processes, prefetch=prefetch))) == marks(expected)
    assert not multiprocessing.active_children(), "workers outlive the last batch"


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_hold_contiguous_parts_of_each_batch(hosts: int, rows: list[Row], expected: list[Batch]):
    parts = [list(batches(rows, host, hosts)) for host in range(hosts)]
    for number, whole in enumerate(expected):
        shares = [part[number] for part in parts]
        assert [name for share in shares for name in ids(share)] == ids(whole)
        for field in "frames_PFYXC", "order_PF", "blank_PF", "mos_P":
            np.testing.assert_array_equal(np.concatenate([getattr(s, field) for s in shares]), getattr(whole, field))


@pytest.mark.parametrize("processes", [0, 1])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(processes: int, rows: list[Row], expected: list[Batch]):
    first = batches(rows, workers=processes, prefetch=2)
    for _ in range(3):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = batches(rows, workers=processes)
    second.set_state(state)
    assert marks(list(second)) == marks(expected[3:])


def test_the_same_object_can_go_back_and_forth(rows: list[Row], expected: list[Batch]):
    run = batches(rows)
    start = run.get_state()
    next(run)
    later = run.get_state()
    list(run)
    run.set_state(later)
    assert marks([next(run)]) == marks(expected[1:2])
    run.set_state(start)
    assert marks(list(run)) == marks(expected)
    with pytest.raises(StopIteration):
        next(run)


def test_a_state_taken_on_one_host_resumes_on_two(rows: list[Row], expected: list[Batch]):
    one = batches(rows)
    next(one)
    halves = [batches(rows, host, 2) for host in range(2)]
    for half in halves:
        half.set_state(one.get_state())
    assert [name for half in halves for name in ids(next(half))] == ids(expected[1])


def test_a_new_process_goes_on_with_the_same_batches(folder: Path, rows: list[Row], expected: list[Batch]):
    """Also with other hash seeds, which a new process has."""
    run = batches(rows)
    next(run)
    program = """
import json, sys
from pathlib import Path
from tests.unit.data import test_pipeline as here
rows = [here.row(Path(sys.argv[1]) / f"{number}.mp4", number) for number in range(here.CLIPS)]
run = here.batches(rows)
run.set_state(json.loads(sys.argv[2]))
batch = next(run)
print(json.dumps([here.ids(batch), batch.order_PF.tolist(), int(batch.frames_PFYXC.sum())]))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, str(folder), json.dumps(run.get_state())],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    batch = expected[1]
    assert batch.order_PF is not None
    assert json.loads(finished.stdout) == [ids(batch), batch.order_PF.tolist(), int(batch.frames_PFYXC.sum())]


@pytest.mark.parametrize("change", ["seed", "batch_size", "order", "rows", "scores", "responses"])
def test_a_state_of_other_data_is_refused(change: str, rows: list[Row]):
    state = batches(rows).get_state()
    other = {
        "seed": lambda: batches(rows, seed=6),
        "batch_size": lambda: batches(rows, batch_size=2),
        "order": lambda: batches(rows, order="reference"),
        "rows": lambda: batches(rows[:-1]),
        "scores": lambda: batches([dataclasses.replace(rows[0], mos=5.0), *rows[1:]]),
        "responses": lambda: batches([dataclasses.replace(rows[0], response="<answer>1.20</answer>"), *rows[1:]]),
    }[change]()
    with pytest.raises(InputError, match="other rows"):
        other.set_state(state)


def test_epochs_and_who_decodes_may_change_on_a_resume(rows: list[Row]):
    batches(rows, epochs=9, workers=2, prefetch=0).set_state(batches(rows).get_state())


@pytest.mark.parametrize("processes", [0, 2])
def test_an_unreadable_video_is_replaced_by_the_next_batchs_and_told(
    processes: int, rows: list[Row], expected: list[Batch], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Only its own place changes, and no video comes to stand twice in a batch."""
    lost = expected[0].rows[1]
    bad = tmp_path / lost.name
    bad.write_bytes(b"\0" * 999)
    damaged = [dataclasses.replace(held, video=bad) if held == lost else held for held in rows]
    with caplog.at_level(logging.WARNING):
        found = list(batches(damaged, workers=processes))
    replaced = 0
    for batch, whole in zip(found, expected, strict=True):
        assert len(set(ids(batch))) == 4
        changed = [place for place in range(4) if ids(batch)[place] != ids(whole)[place]]
        assert [ids(whole)[place] for place in changed] == [lost.id] * len(batch.unreadable)
        assert all(str(bad) in fault for fault in batch.unreadable)
        np.testing.assert_array_equal(batch.order_PF, whole.order_PF)
        replaced += len(batch.unreadable)
    assert found[0].rows[1].id == expected[1].rows[1].id
    assert replaced >= 1
    assert [str(bad) in record.message for record in caplog.records] == [True] * replaced


def test_a_place_that_nobody_can_fill_stops_the_run(rows: list[Row], tmp_path: Path):
    gone = [dataclasses.replace(held, video=tmp_path / held.name) for held in rows]
    with pytest.raises(VideoError, match=r"no such file.*nor can any of the 1 videos that might replace it"):
        next(batches(gone))


def test_a_picture_stands_for_copies_of_itself(tmp_path: Path):
    for number in range(2):
        Image.fromarray(clips.picture(number, 32, 24)).save(tmp_path / f"{number}.jpg", quality=95)
    batch = next(batches([row(tmp_path / f"{number}.jpg", number) for number in range(2)], batch_size=2))
    assert [clips.numbers(frames_FYXC) for frames_FYXC in batch.frames_PFYXC] == [[int(i)] * 3 for i in ids(batch)]


def test_rows_are_loaded_and_absent_ones_left_out_where_allowed(folder: Path, caplog: pytest.LogCaptureFixture):
    turns = [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "3"}]
    lines = [{"id": n, "image": name, "conversations": turns} for n, name in enumerate(["0.mp4", "gone.mp4"])]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = dataclasses.replace(CONFIG, manifests=f"{folder / 'train.jsonl'}", folders=f"{folder}")
    with pytest.raises(InputError, match=r"train\.jsonl:2: .*gone\.mp4 does not exist"):
        load_rows(config)
    ((kept,),) = load_rows(dataclasses.replace(config, absent="leave_out"))
    assert kept.name == "0.mp4"
    assert "gone.mp4 does not exist" in caplog.text
    assert "1 of 2 videos are left out" in caplog.text


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"batch_size": 0}, "batch_size is 0: give 1 or more"),
        ({"epochs": 0}, "epochs is 0"),
        ({"frames": 0}, "frames is 0"),
        ({"size": 0}, "size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"decoder": "vlc"}, "choose one of pyav, decord"),
        ({"weights": (1.0,), "order": "reference"}, "knows no weights"),
        ({"batch_size": 11}, "an epoch has only 10 videos: give 10 or less"),
    ],
)
def test_settings_that_cannot_be_met_say_which_would_do(changes: dict[str, Any], fault: str, rows: list[Row]):
    with pytest.raises(InputError, match=fault):
        batches(rows, **changes)


@pytest.mark.parametrize(("hosts", "fault"), [(3, "give 3 or 6"), (8, "give 8")])
def test_a_batch_must_split_over_the_hosts(hosts: int, fault: str, rows: list[Row]):
    with pytest.raises(InputError, match=fault):
        batches(rows, 0, hosts)


def test_too_little_shared_memory_is_told_before_it_kills_a_worker(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(workers, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 20))
    with pytest.raises(InputError, match="has 3 MiB free where 2 workers need 19"):
        next(batches(rows, workers=2, size=336))
    assert len(next(batches(rows, size=336)).rows) == 4


def test_workers_end_with_their_parent_and_by_no_signal(folder: Path, tmp_path: Path):
    program = """
import multiprocessing, os, signal, sys
from pathlib import Path
from tests.unit.data import test_pipeline as here
if __name__ == "__main__":
    rows = [here.row(Path(sys.argv[1]) / f"{number}.mp4", number) for number in range(here.CLIPS)]
    run = here.batches(rows, workers=1, epochs=1000)
    next(run)
    (worker,) = multiprocessing.active_children()
    Path(sys.argv[2]).write_text(str(worker.pid))
    for number in signal.SIGINT, signal.SIGTERM:
        os.kill(worker.pid, number)
    for _ in range(20):
        next(run)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    pid = tmp_path / "pid"  # in a file, for whoever reads a pipe waits for the worker too
    killed = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(pid)], stderr=subprocess.DEVNULL, check=False
    )
    assert killed.returncode == -signal.SIGKILL, "a worker went by a signal, and its parent after it"
    worker = int(pid.read_text())
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker lives on without its parent")


def test_answers_off_the_scale_are_told(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    said = {"id": 1, "image": "0.mp4", "conversations": [{"from": "human", "value": "How?"}]}
    lines = [{**said, "id": n, "conversations": [*said["conversations"], {"from": "gpt", "value": n}]} for n in (2, 75)]
    (tmp_path / "off.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.WARNING):
        load_rows(DataConfig(str(tmp_path / "off.jsonl"), str(folder), absent="leave_out"))
    assert "1 of 2 answers are off the scale, such as 75 of 0.mp4: rescale the set to 1..5" in caplog.text
