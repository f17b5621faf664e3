"""The learning experiment's parts: what the warm start is taught, what the first filters tell, what is measured."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from tools.curves import PANELS, write_figures
from tools.measure import UNRATED, _disorder, read
from tools.responses import SLOTS, response, write_lessons
from tools.see import SEEN, _amount
from tools.tiny_model import fresh, settings
from vqathinker_jax.data.distortions import KINDS, Distortion
from vqathinker_jax.data.synthetic import SyntheticConfig, Truth, plan
from vqathinker_jax.model.motion import SlowFast
from vqathinker_jax.parse import parse_rollout, parse_score
from vqathinker_jax.records import Answer


def truth(*damages: Distortion) -> Truth:
    return Truth("train/000000.mp4", "sky", damages, 3.0, 3.0, math.nan)


def test_a_response_names_every_damage_and_has_the_form():
    text = response(truth(Distortion("blur", 0.9), Distortion("stutter", 0.2)), np.random.default_rng(0))
    reading = parse_rollout(text, trailing_zeros=True)
    assert reading.formatted
    assert reading.decimals == 2
    assert "Detail blurred severely. Light fine." in text
    assert "Motion stuttering slightly." in text


def test_every_kind_of_damage_has_a_slot():
    for kind in KINDS:
        text = response(truth(Distortion(kind, 0.5)), np.random.default_rng(0))
        assert text.count(f"{KINDS[kind].look} clearly") == 1
        assert text.count("fine") == len(SLOTS) - 1


def test_taught_ratings_follow_the_truth_a_little_and_no_more():
    truths = [plan(SyntheticConfig(), "train", number) for number in range(1500)]
    rng = np.random.default_rng(0)
    taught = [parse_score(response(each, rng)) for each in truths]
    ratings = [each.score for each in taught if isinstance(each, Answer)]
    assert len(ratings) == len(truths)
    assert 0.15 < spearmanr(ratings, [each.true_mos for each in truths]).statistic < 0.45


def test_lessons_are_the_manifests_lines_with_a_response(tmp_path: Path):
    row = {"id": "train/000000.mp4", "image": ["train/000000.mp4"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    write_lessons(tmp_path / "train.jsonl", {row["id"]: truth()}, tmp_path / "lessons.jsonl", seed=0)
    (lesson,) = map(json.loads, (tmp_path / "lessons.jsonl").read_text().splitlines())
    assert lesson.pop("response").startswith("<think>Detail fine.")
    assert lesson == row


def test_amounts_set_a_damage_that_is_just_visible_apart_from_none():
    amounts = [_amount(truth(Distortion("noise", strength)), "noise") for strength in (0.0, 1.0)]
    np.testing.assert_allclose(amounts, [0.3, 1.0])
    assert _amount(truth(), "noise") == 0
    assert set(SEEN) == {name for name, kind in KINDS.items() if kind.trained}


def test_the_first_motion_filters_answer_to_disorder():
    """They answer more strongly where a picture that glides by jumps back and forth, and not where it stands."""
    rng = np.random.default_rng(0)
    field_YX = gaussian_filter(rng.standard_normal((112, 240)), 4)
    field_YX = 128 + 40 * field_YX / field_YX.std()
    glide_FYX = np.stack([field_YX[:, 4 * f : 4 * f + 112] for f in range(6)])
    glide_FYXC = glide_FYX[..., None].repeat(3, -1).clip(0, 255).astype(np.uint8)
    motion = fresh(settings(300), glide_FYXC, seed=3).motion
    assert isinstance(motion, SlowFast)

    def answer(frames_FYXC: np.ndarray) -> float:
        answers = motion.stem.fast((frames_FYXC[None] / 255).astype(np.float32))
        return float(np.maximum(answers[:, 2:-2], 0).mean())

    still, mixed = answer(glide_FYXC[[2] * 6]), answer(glide_FYXC[[3, 0, 5, 1, 4, 2]])
    assert abs(still) < 1e-3 * answer(glide_FYXC)
    assert mixed > 1.5 * answer(glide_FYXC)


def test_disorder_is_neither_forwards_nor_backwards():
    for seed in range(50):
        steps = np.diff(_disorder(6, np.random.default_rng(seed)))
        assert not (np.abs(steps) == 1).all()


def test_answers_without_a_rating_count_as_the_middle_and_are_counted():
    read_ = read(["<think>x</think><answer>4.25</answer>", "nothing"])
    assert read_.scores_N.tolist() == [4.25, UNRATED]
    assert read_.valid == 0.5


def test_figures_are_well_formed(tmp_path: Path):
    rows = [{"step": step, "loss": 1 / (1 + step), **dict.fromkeys(PANELS, 0.1 * step)} for step in range(30)]
    found = {split: {"srcc": [0.5, 0.4, 0.6], "plcc": [0.5, 0.4, 0.6]} for split in ("in_domain", "out_of_domain")}
    curves = {stage: {"seed 0": rows, "a & b": rows[:3]} for stage in ("warm_start", "grpo")}
    write_figures(tmp_path, curves, {"details": {"seeds": [{"warm_start": found, "grpo": found}]}})
    for name in ("warm_start", "grpo", "held_out"):
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        assert len(root.findall(".//{*}polyline")) == {"warm_start": 2, "grpo": 2 * len(PANELS), "held_out": 0}[name]
