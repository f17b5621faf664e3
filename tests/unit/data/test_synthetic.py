"""Synthetic sets: the same from the same seed, split as promised, and nothing but pictures tells the rating."""

import inspect
import json
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.stats import spearmanr

from commands.training import synthesize
from vqathinker_jax.data import scenes, synthetic
from vqathinker_jax.data.distortions import KINDS
from vqathinker_jax.data.frames import sample_indices
from vqathinker_jax.data.manifest import read_evaluation, read_training
from vqathinker_jax.data.synthetic import SPLITS, SyntheticConfig, Truth, plan, read_truth, render, write_set
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.records import InputError

CONFIG = SyntheticConfig(train=24, in_domain=6, out_of_domain=6, size=48, frames=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_set(folder, CONFIG, workers=1)
    return folder


def test_the_command_has_the_defaults_of_the_config():
    parameters = inspect.signature(synthesize).parameters
    config = asdict(SyntheticConfig())
    assert {name: parameters[name].default for name in config} == config


def plans(split: str, count: int) -> list[Truth]:
    return [plan(CONFIG, split, index) for index in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_gives_the_same_files_whoever_makes_them(folder: Path, tmp_path: Path):
    write_set(tmp_path / "again", CONFIG, workers=2)
    assert contents(tmp_path / "again") == contents(folder)


def test_another_seed_gives_other_clips():
    other = replace(CONFIG, seed=1)
    assert plan(other, "train", 0) != plan(CONFIG, "train", 0)
    assert (render(other, "train", 0, ())[0] != render(CONFIG, "train", 0, ())[0]).any()


def test_a_larger_set_begins_with_the_smaller():
    larger = replace(CONFIG, train=1000)
    frames_FYXC, _ = render(CONFIG, "train", 3, ())
    assert (render(larger, "train", 3, ())[0] == frames_FYXC).all()
    assert repr(plan(larger, "train", 3)) == repr(plan(CONFIG, "train", 3))


def test_a_scene_does_not_hang_on_its_damages():
    pristine_FYXC, motion = render(CONFIG, "train", 0, ())
    noisy = (synthetic.Distortion("noise", 0.5),)
    frames_FYXC, same_motion = render(CONFIG, "train", 0, noisy)
    assert motion == same_motion
    # Noise of 8 % of the range: a mean difference of some 15 steps; another scene's is above 40.
    assert 5 < np.abs(frames_FYXC.astype(float) - pristine_FYXC).mean() < 25


def test_training_and_test_share_no_scenes():
    assert not set(scenes.TRAINED) & set(scenes.UNSEEN)
    for part in "surface", "actor":
        trained, unseen = (
            {getattr(family, part) for family in families.values()} - {None}
            for families in (scenes.TRAINED, scenes.UNSEEN)
        )
        assert trained
        assert not trained & unseen
    seen = {split: {truth.family for truth in plans(split, 200)} for split in SPLITS}
    assert seen == {"train": set(scenes.TRAINED), "in_domain": set(scenes.UNSEEN), "out_of_domain": set(scenes.UNSEEN)}


def test_what_is_out_of_domain_stands_in_no_other_split():
    drawn = {split: [d for truth in plans(split, 400) for d in truth.distortions] for split in SPLITS}
    trained = {name for name, kind in KINDS.items() if kind.trained}
    for split in "train", "in_domain":
        assert {damage.kind for damage in drawn[split]} == trained
        assert all(_within(damage.strength, synthetic.STRENGTHS) for damage in drawn[split])
    assert {damage.kind for damage in drawn["out_of_domain"]} == set(KINDS)
    of_training = [damage for damage in drawn["out_of_domain"] if damage.kind in trained]
    assert all(_within(damage.strength, synthetic.OTHER_STRENGTHS) for damage in of_training)


def _within(strength: float, ranges: tuple[tuple[float, float], ...]) -> bool:
    return any(low <= strength <= high for low, high in ranges)


@pytest.mark.parametrize("split", SPLITS)
def test_damages_of_one_clip_do_not_hide_each_other(split: str):
    for truth in plans(split, 200):
        spoilt = [aspect for damage in truth.distortions for aspect in KINDS[damage.kind].aspects]
        assert len(spoilt) == len(set(spoilt))


def test_raters_scatter_about_the_true_rating():
    made = plans("train", 400)
    true, mos = (np.array([getattr(truth, name) for truth in made]) for name in ("true_mos", "mos"))
    assert (mos >= 1).all()
    assert (mos <= 5).all()
    assert 0.98 < spearmanr(true, mos)[0] < 1
    # The mean of 20 raters who err by 0.5 errs by 0.11; the ends of the scale pull inwards by at most 0.2.
    assert np.abs(mos - true).max() < 0.2 + 4 * 0.11
    assert np.quantile(true, 0.9) - np.quantile(true, 0.1) > 2


def test_manifests_read_as_any_other_set(folder: Path):
    for split in SPLITS:
        truths = read_truth(folder / f"{split}.jsonl")
        (rows,) = read_training(f"{folder / split}.jsonl", f"{folder}")
        meta = read_evaluation(folder / f"{split}.json", folder)
        assert len(rows) == len(truths) == getattr(CONFIG, split)
        assert [row.mos for row in rows] == [row.mos for row in meta] == [truth.mos for truth in truths.values()]
        assert [row.video for row in rows] == [row.video for row in meta]
        assert [row.id for row in rows] == list(truths)
        for index, truth in enumerate(truths.values()):
            assert replace(truth, motion=0) == replace(plan(CONFIG, split, index), motion=0)
            assert truth.motion > 0


def test_a_model_samples_each_frame_once(folder: Path):
    clip = read_clip(folder / "train" / "000000.mp4", CONFIG.frames)
    assert clip.indices == tuple(range(CONFIG.frames)) == sample_indices(CONFIG.frames, CONFIG.frames)
    assert clip.frames_FYXC.shape == (CONFIG.frames, CONFIG.size, CONFIG.size, 3)
    assert not clip.health


def test_files_show_what_was_rendered(folder: Path):
    for index in range(6):
        truth = plan(CONFIG, "train", index)
        due_FYXC, _ = render(CONFIG, "train", index, truth.distortions)
        found_FYXC = read_clip(folder / truth.id, CONFIG.frames).frames_FYXC
        luma_2 = [frames.astype(float) @ scenes.LUMA for frames in (due_FYXC[:-1], found_FYXC)]
        # uint8: a constant rate factor of 8 errs by a step or two, conversion to YUV and back by one; noise 0.1 is 7.
        assert np.abs(luma_2[0] - luma_2[1]).mean() < 3


def test_nothing_but_the_pictures_tells_the_rating(folder: Path):
    facts, questions = set(), set()
    for split in SPLITS:
        (rows,) = read_training(f"{folder / split}.jsonl", f"{folder}")
        for row in rows:
            questions.add((row.problem, row.dataset))
            facts.add(_facts(row.video))
    assert len(facts) == len(questions) == 1


def _facts(video: Path) -> tuple[object, ...]:
    """Everything that a file tells beside its pictures, and how many bytes those take."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        tags = *sorted(container.metadata.items()), *sorted(stream.metadata.items())
        shape = codec.name, codec.width, codec.height, codec.pix_fmt, codec.profile, codec.extradata
        times = stream.frames, stream.duration, stream.time_base, stream.average_rate, container.duration
        packet = next(container.demux(stream))
        settings = bytes(packet).partition(b"options: ")[2].partition(b"\0")[0]
        assert settings
        kinds = [packet.is_keyframe, *(packet.is_keyframe for packet in container.demux(stream) if packet.size)]
    return tags, shape, times, settings, tuple(kinds)


def test_neither_place_nor_family_tells_the_rating():
    made = plans("train", 1200)
    mos = np.array([truth.mos for truth in made])
    # Of 1200 draws, a rank correlation of 0.1 is 3.5 deviations from none.
    assert abs(spearmanr(np.arange(len(mos)), mos)[0]) < 0.1
    means = [np.mean([truth.mos for truth in made if truth.family == family]) for family in scenes.TRAINED]
    # About 100 clips a family, whose ratings deviate by 1.05: 0.42 is four deviations of their mean.
    assert np.abs(np.array(means) - mos.mean()).max() < 0.42


def test_a_whole_set_is_left_alone(folder: Path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    truths = write_set(folder, CONFIG, workers=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert truths["train"] == read_truth(folder / "train.jsonl")


def test_a_set_cut_short_is_made_whole(tmp_path: Path):
    small = replace(CONFIG, train=2, in_domain=1, out_of_domain=1)
    write_set(tmp_path, small, workers=1)
    whole = contents(tmp_path)
    seal = tmp_path / "set.json"
    seal.write_text(seal.read_text().replace('"whole": true', '"whole": false'))
    for name in "train.jsonl", "train/000001.mp4":
        (tmp_path / name).unlink()
    (tmp_path / "train/000000.mp4").write_bytes(b"half")
    write_set(tmp_path, small, workers=1)
    assert contents(tmp_path) == whole


def test_another_set_is_not_written_over(folder: Path):
    with pytest.raises(InputError, match=r"holds another synthetic set \(size 48, not 64\): choose another folder"):
        write_set(folder, replace(CONFIG, size=64))


def test_other_things_are_not_written_over(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(InputError, match="holds other things than a synthetic set"):
        write_set(tmp_path, CONFIG, workers=1)
    assert (tmp_path / "train.jsonl").read_text() == "mine"


@pytest.mark.parametrize("torn", ["", "[1]", '"'])
def test_a_damaged_seal_is_told_with_its_cure(tmp_path: Path, torn: str):
    (tmp_path / "set.json").write_text(torn)
    with pytest.raises(InputError, match=r"set.json: damaged \(.*\): delete it, and the set is written anew"):
        write_set(tmp_path, CONFIG, workers=1)


def test_a_seal_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replaced, seals = Path.replace, []

    def kill(self: Path, target: Path) -> Path:
        if target.name == "set.json":
            seals.append(self)
        if len(seals) == 2:
            raise KeyboardInterrupt
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path, replace(CONFIG, train=1, in_domain=1, out_of_domain=1), workers=1)
    assert (tmp_path / "train.json").is_file()
    assert not json.loads((tmp_path / "set.json").read_text())["whole"]


@pytest.mark.parametrize("workers", [-1, 0])
def test_no_workers_are_refused(tmp_path: Path, workers: int):
    with pytest.raises(InputError, match=f"workers is {workers}: give 1 or more"):
        write_set(tmp_path, CONFIG, workers)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"train": 0}, "train is 0: give 1 or more"),
        ({"frames": 3}, "frames is 3: give 4 or more"),
        ({"size": 49}, "size is 49: give an even number"),
    ],
)
def test_a_config_that_cannot_be_made_is_refused(change: dict[str, int], fault: str):
    with pytest.raises(InputError, match=fault):
        replace(CONFIG, **change)


def test_another_manifest_holds_no_truth(tmp_path: Path):
    manifest = tmp_path / "lsvq.jsonl"
    manifest.write_text(json.dumps({"id": 1, "image": ["a.mp4"]}) + "\n")
    with pytest.raises(InputError, match=r"lsvq.jsonl: no manifest of synthetic videos"):
        read_truth(manifest)
