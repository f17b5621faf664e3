"""The Python interface: files and frames in memory, in order, the same on every call and in any batch."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import vqathinker
from tests import checkpoints, clips
from vqathinker_jax import sharding
from vqathinker_jax.model.config import ViewConfig
from vqathinker_jax.records import InputError

VIEW, SHORT = vqathinker.View(4, 56), vqathinker.Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=True))
    return checkpoints.write(tmp_path_factory.mktemp("checkpoint") / "chat", config, tensors)


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> vqathinker.Judge:
    return vqathinker.load(checkpoint, view=VIEW, sampling=SHORT)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [clips.write(folder / f"{number}.mp4", 4 + number) for number in range(5)]


def texts(verdicts: list[vqathinker.Verdict]) -> list[str]:
    return [verdict.text for verdict in verdicts]


def test_verdicts_come_in_order_and_are_those_of_score(judge: vqathinker.Judge, videos: list[Path]):
    found = vqathinker.score(judge, [*videos, "gone.mp4"], batch_size=3)
    for verdict, video in zip(found, videos, strict=False):
        alone = judge.score(video)
        assert replace(verdict, seconds=0) == replace(alone, seconds=0)
    assert "no such file" in str(found[-1].reason)
    (endless,) = vqathinker.score(judge, ["long" * 100 + ".mp4"])
    assert "cannot be opened (File name too long)" in str(endless.reason)
    assert len(set(texts(found))) > 1


def test_frames_in_memory_are_rated_as_their_file(judge: vqathinker.Judge, videos: list[Path]):
    with av.open(str(videos[3])) as container:
        frames_TYXC = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    (memory,), (file,) = vqathinker.score(judge, [frames_TYXC]), vqathinker.score(judge, [videos[3]])
    assert memory.video == "videos[0]"
    assert memory.frame_indices == file.frame_indices
    assert memory.text == file.text


def test_the_same_call_gives_the_same_verdicts_drawn_or_not(checkpoint: Path, videos: list[Path]):
    drawn = replace(SHORT, temperature=1.0)
    one, other = (vqathinker.load(checkpoint, view=VIEW, sampling=drawn, seed=seed) for seed in (3, 4))
    expected = texts(vqathinker.score(one, videos))
    assert texts(vqathinker.score(one, videos, batch_size=1)) == expected
    assert texts(vqathinker.score(other, videos)) != expected


def test_a_file_that_cannot_be_read_changes_no_others_draws(checkpoint: Path, videos: list[Path]):
    judge = vqathinker.load(checkpoint, view=VIEW, sampling=replace(SHORT, temperature=1.0))
    expected = texts(vqathinker.score(judge, videos))
    assert texts(vqathinker.score(judge, ["gone.mp4", *videos[1:]]))[1:] == expected[1:]


def test_the_seconds_of_a_verdict_count_the_reading(
    judge: vqathinker.Judge, videos: list[Path], monkeypatch: pytest.MonkeyPatch
):
    read = vqathinker.read_clip
    monkeypatch.setattr(vqathinker, "read_clip", lambda *given: time.sleep(0.5) or read(*given))
    found = vqathinker.score(judge, [videos[0], "gone.mp4"], batch_size=1)
    assert all(verdict.seconds >= 0.5 for verdict in found)


@pytest.mark.parametrize("given", [None, vqathinker.View(5, 56)])
def test_a_checkpoint_is_shown_what_it_was_made_to_see_unless_told_otherwise(
    checkpoint: Path, tmp_path: Path, given: vqathinker.View | None
):
    made = shutil.copytree(checkpoint, tmp_path / "made")
    raw = json.loads((made / "config.json").read_text()) | {"view": {"frames": 4, "image_size": 84}}
    (made / "config.json").write_text(json.dumps(raw))
    judge = vqathinker.load(made, view=given, sampling=SHORT)
    assert judge.view == (given or vqathinker.View(4, 84))
    assert vqathinker.view_of(judge.config, image_size=56) == vqathinker.View(4, 56)
    assert vqathinker.view_of(replace(judge.config, view=ViewConfig())) == vqathinker.View(12, 560)


def test_attention_is_the_devices_own_kernel_unless_told_otherwise(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "attention_on", lambda _: "cudnn")
    given = {"auto": vqathinker.load(checkpoint, view=VIEW, sampling=SHORT)}
    given["blocks"] = vqathinker.load(checkpoint, view=VIEW, sampling=SHORT, attention="blocks")
    for asked, kernel in {"auto": "cudnn", "blocks": "blocks"}.items():
        model = nnx.merge(given[asked].graph, given[asked].state)
        assert [part.layout.attention for part in (model, model.vision, model.language)] == [kernel] * 3
        assert sharding.layout_of(Mesh(np.array(jax.devices()[:1]), ("data",)), attention=asked).attention == kernel


def test_a_batch_of_none_is_refused(judge: vqathinker.Judge, videos: list[Path]):
    with pytest.raises(InputError, match="batch_size is 0: give at least 1"):
        vqathinker.score(judge, videos, batch_size=0)


@pytest.mark.parametrize(
    ("videos", "fault"),
    [
        ("clip.mp4", "videos is a str: give a list"),
        (Path("clip.mp4"), "videos is a .*Path: give a list"),
        (np.zeros((2, 4, 4, 3), np.uint8), "videos is a ndarray: give a list"),
        ([None], r"videos\[0\] is a NoneType: give a file"),
        ([[np.zeros((4, 4, 3), np.uint8)]], r"videos\[0\] is a list: give a file, or frames as one array"),
    ],
)
def test_what_is_no_list_of_videos_is_refused(judge: vqathinker.Judge, videos: Any, fault: str):
    with pytest.raises(InputError, match=fault):
        vqathinker.score(judge, videos)


@pytest.mark.parametrize("wrong", ["dtype", "weights", "cache", "attention"])
def test_settings_that_are_unknown_are_refused_before_anything_is_read(wrong: str):
    with pytest.raises(InputError, match=f"{wrong} is 'int4': choose one of"):
        vqathinker.load("nowhere", **{wrong: "int4"})


WRONG = [((2, 4, 4, 3), np.float32), ((4, 4, 3), np.uint8), ((0, 4, 4, 3), np.uint8)]


@pytest.mark.parametrize(("shape", "dtype"), WRONG)
def test_other_arrays_are_refused(judge: vqathinker.Judge, shape: tuple, dtype: type):
    with pytest.raises(InputError, match=r"videos\[0\]: .*give uint8 RGB frames"):
        vqathinker.score(judge, [np.zeros(shape, dtype)])
