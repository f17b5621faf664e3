"""The learning experiment's parts: what the warm start is taught, what the first filters tell, what is measured."""

import json
import math
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from configs.learn_tiny import config
from convert.load import open_config, open_model
from tools import see
from tools.curves import PANELS, write_figures
from tools.disorder import disorder, moves, orderly, strength, write_copies
from tools.learn import ABLATIONS, DEAF, RECIPES, TOOK, Options, _write_deaf, main, write_results
from tools.measure import UNRATED, read
from tools.responses import COARSE, SLOTS, response, write_lessons
from tools.see import SEEN, _amount
from tools.summary import CONTROL, STAGES, effort
from tools.tiny_model import fresh, settings, write_weights, write_words
from tools.tiny_motion import measure_change
from vqathinker_jax.data.distortions import KINDS, Distortion
from vqathinker_jax.data.manifest import read_training
from vqathinker_jax.data.synthetic import SyntheticConfig, Truth, plan, read_truth, write_set
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.model.config import ViewConfig, parse_config
from vqathinker_jax.model.motion import SlowFast
from vqathinker_jax.model.vlm import VLM, normalise
from vqathinker_jax.parse import parse_rollout, parse_score
from vqathinker_jax.records import Answer, InputError
from vqathinker_jax.skeleton import arrays


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


def test_taught_ratings_know_nothing_of_the_truth():
    truths = [plan(SyntheticConfig(), "train", number) for number in range(4000)]
    rng = np.random.default_rng(0)
    taught = [parse_score(response(each, rng)) for each in truths]
    ratings = [each.score for each in taught if isinstance(each, Answer)]
    assert len(ratings) == len(truths)
    assert all(rating % COARSE == 0 for rating in ratings)
    # Four deviations of what chance gives 4000 pairs.
    assert abs(spearmanr(ratings, [each.true_mos for each in truths])[0]) < 4 / 4000**0.5
    assert set(range(1, 5)) == {int(rating) for rating in ratings}


def test_lessons_are_the_manifests_lines_with_a_response(tmp_path: Path):
    rows = [{"id": each.id, "truth": asdict(each)} for each in (truth(), truth(Distortion("shuffle", 1.0)))]
    manifests = [tmp_path / "orderly.jsonl", tmp_path / "others.jsonl"]
    for manifest, row in zip(manifests, rows, strict=True):
        manifest.write_text(json.dumps(row) + "\n")
    write_lessons(manifests, tmp_path / "lessons.jsonl", seed=0)
    lessons = [json.loads(line) for line in (tmp_path / "lessons.jsonl").read_text().splitlines()]
    orderly_, others = (lesson.pop("response") for lesson in lessons)
    assert orderly_.startswith("<think>Detail fine.")
    assert "Motion out of order severely." in others
    assert [{**lesson, "truth": row["truth"]} for lesson, row in zip(lessons, rows, strict=True)] == rows


def test_amounts_set_a_damage_that_is_just_visible_apart_from_none():
    amounts = [_amount(truth(Distortion("noise", strength)), "noise") for strength in (0.0, 1.0)]
    np.testing.assert_allclose(amounts, [0.3, 1.0])
    assert _amount(truth(), "noise") == 0
    assert set(SEEN) == {name for name, kind in KINDS.items() if kind.trained}


def test_motion_is_heard_by_its_speed_and_disorder_by_its_turns():
    """Over a picture that glides by: what rises and falls with speed, and how much more of it there is in disorder."""
    rng = np.random.default_rng(0)
    field_YX = gaussian_filter(rng.standard_normal((112, 240)), 4)
    field_YX = 128 + 40 * field_YX / field_YX.std()
    glide_FYX = np.stack([field_YX[:, 4 * f : 4 * f + 112] for f in range(6)])
    glide_FYXC = glide_FYX[..., None].repeat(3, -1).clip(0, 255).astype(np.uint8)
    motion = fresh(settings(300), glide_FYXC, seed=3).motion
    assert isinstance(motion, SlowFast)
    slow = motion.config.stem * motion.config.expansion * 8

    def changes(frames_FYXC: np.ndarray) -> np.ndarray:
        """Over one frame, two frames, and of speed, wide."""
        return np.asarray(motion(normalise(jnp.asarray(frames_FYXC[None]))))[0, slow + 3 : slow + 6]

    glide, still, mixed = (changes(glide_FYXC[order]) for order in (range(6), [2] * 6, [3, 0, 5, 1, 4, 2]))
    # To the float32 rounding of what shuts off the ends.
    assert np.abs(still).max() < 1e-3 * glide[0]
    assert glide[1] / glide[0] > 1.3 * mixed[1] / mixed[0]
    assert mixed[2] / mixed[0] > 1.3 * glide[2] / glide[0]


def test_disorder_is_neither_forwards_nor_backwards():
    for seed in range(50):
        steps = np.diff(disorder(6, np.random.default_rng(seed)))
        assert not (np.abs(steps) == 1).all()


def test_copies_out_of_order_are_clips_with_their_truth(tmp_path: Path):
    config = SyntheticConfig(train=24, in_domain=1, out_of_domain=1, size=32, frames=6)
    truths = write_set(tmp_path, config, workers=1)["train"]
    manifest = write_copies(tmp_path, config.frames)
    fitting = [each for each in truths.values() if moves(each) and orderly(each)][::2]
    copies = read_truth(manifest)
    assert len(fitting) > 3
    assert [Path(name).name for name in copies] == [Path(each.id).name for each in fitting]
    (rows,) = read_training(str(manifest), str(tmp_path))
    for each, copy, row in zip(fitting, copies.values(), rows, strict=True):
        assert not orderly(copy)
        assert row.mos == copy.mos < each.true_mos
        before, after = (read_clip(tmp_path / name, config.frames, "pyav").frames_FYXC for name in (each.id, copy.id))
        # Of two encodings of one frame, which stand far nearer than neighbours that move.
        apart_FF = np.abs(after[:, None].astype(float) - before[None]).mean((2, 3, 4))
        order_F = apart_FF.argmin(1)
        assert sorted(order_F) == list(range(config.frames))
        assert copy.distortions[-1] == Distortion("shuffle", strength(order_F))
    written = manifest.stat().st_mtime_ns
    assert write_copies(tmp_path, config.frames).stat().st_mtime_ns == written


def test_the_strength_of_disorder_is_the_share_of_frames_in_other_places():
    assert strength(np.arange(6)) == 0
    assert strength(np.roll(np.arange(6), 1)) == 1
    assert strength(np.array([1, 0, 2, 3, 4, 5])) == pytest.approx((2 / 6 - 0.25) / 0.75, abs=1e-3)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as `tools.learn` begins with, which has learned nothing."""
    folder = tmp_path_factory.mktemp("seeing")
    raw = settings(write_words(folder, [response(truth(), np.random.default_rng(0))]))
    frames_FYXC = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    write_weights(folder, raw, fresh(raw, frames_FYXC, seed=0))
    return folder


def test_hearing_is_learned_by_the_motion_projector_alone(seeing: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(see, "HEARING", 60)
    model = open_model(seeing, dtype="float32")
    assert model.config.motion
    rng = np.random.default_rng(0)
    times_MK = rng.random((300, len(SEEN)), np.float32)
    sounds_KZ = rng.standard_normal((len(SEEN), model.config.motion.features), np.float32)
    before = jax.tree.map(np.asarray, arrays(model))
    nothing = np.zeros((0,))
    losses = see.learn_to_hear(model, see.Clips(nothing, nothing, times_MK @ sounds_KZ, times_MK), seed=0)
    assert np.mean(losses[-5:]) < 0.3 * np.mean(losses[:5])
    changed = {path.split(".")[0] for path, array in arrays(model).items() if not np.array_equal(array, before[path])}
    assert changed == {"motion_projector"}


def test_a_deaf_model_is_the_same_but_for_the_motion_branch(seeing: Path, tmp_path: Path):
    _write_deaf(seeing, tmp_path / "deaf")
    whole, deaf = (arrays(open_model(folder, dtype="float32")) for folder in (seeing, tmp_path / "deaf"))
    assert {path.split(".")[0] for path in whole.keys() - deaf.keys()} == {"motion", "motion_projector"}
    assert all(np.array_equal(whole[path], array) for path, array in deaf.items())
    assert open_config(tmp_path / "deaf").view == ViewConfig(6, 112)


def test_answers_without_a_rating_count_as_the_middle_and_are_counted():
    read_ = read(["<think>x</think><answer>4.25</answer>", "nothing"], [4.0, UNRATED])
    assert read_.scores_N.tolist() == [4.25, UNRATED]
    assert read_.valid == 0.5


def test_figures_are_well_formed(tmp_path: Path):
    rows = [{"step": step, "loss": 1 / (1 + step), **dict.fromkeys(PANELS, 0.1 * step)} for step in range(30)]
    figures = {"srcc": [0.5, 0.4, 0.6], "plcc": [0.5, 0.4, 0.6]}
    found = {split: figures | {"expected": figures} for split in ("in_domain", "out_of_domain")}
    curves = {stage: {"seed 0": rows, "a & b": rows[:3]} for stage in ("warm_start", "grpo")}
    write_figures(tmp_path, curves, {"details": {"seeds": [{"warm_start": found, "grpo": found}]}})
    for name in ("warm_start", "grpo", "held_out"):
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        assert len(root.findall(".//{*}polyline")) == {"warm_start": 2, "grpo": 2 * len(PANELS), "held_out": 0}[name]


def test_the_summary_holds_lists_over_seeds_and_the_controls(tmp_path: Path):
    """Two seeds, by metrics and measurements as their runs leave them."""
    options = Options(work=tmp_path / "work", results=tmp_path / "results", seeds=2)
    for run in ("seed0/warm_start", "seed0/grpo", "seed1/warm_start", "seed1/grpo", CONTROL, f"{DEAF}/grpo"):
        (options.work / run).mkdir(parents=True)
        (options.work / run / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": 1 / 3, "tokens": 9}) + "\n")

    def measured(srcc: float) -> dict[str, Any]:
        expected = {"srcc": [srcc + 0.1, 0.0, 1.0], "plcc": [0.6, 0.0, 1.0]}
        split = {"srcc": [srcc, 0.0, 1.0], "plcc": [0.5, 0.0, 1.0], "format_rate": 1.0, "expected": expected}
        pairs = {"above": 0.75, "expected_above": 0.9}
        return {"in_domain": split, "out_of_domain": split, "temporal": pairs, "blank_frames": [0.01, 0, 0]}

    seeds = [
        {stage: measured(seed + found) for stage, found in zip(STAGES, (0.3, 0.8), strict=True)} for seed in (0, 1)
    ]
    (options.work / TOOK).write_text(json.dumps(effort(150.0, 2, ablations=False)))
    write_results(options, seeds, {CONTROL: measured(0.2), DEAF: measured(0.6)})
    summary = json.loads((options.results / "summary.json").read_text())
    assert summary["warm_start"]["in_domain_srcc"] == [0.3, 1.3]
    assert summary["grpo"]["out_of_domain_srcc"] == [0.8, 1.8]
    assert summary["grpo"]["temporal_pair_rate"] == [0.75, 0.75]
    assert summary["grpo"]["expected_temporal_pair_rate"] == [0.9, 0.9]
    assert summary["warm_start"]["expected_in_domain_srcc"] == pytest.approx([0.4, 1.4])
    assert summary["expected_shuffled_reward_srcc"] == pytest.approx([0.3])
    assert summary["blank_frames_srcc"] == [0.01, 0.01]
    assert summary["shuffled_reward_srcc"] == [0.2]
    assert summary["minutes"] == 2.5
    assert summary["machine"].startswith("2 processes on ")
    curves = json.loads((options.results / "curves.json").read_text())
    assert curves["grpo"]["shuffled reward"] == [{"step": 0, "loss": 0.3333}]
    assert set(curves["grpo"]) == {"seed 0", "seed 1", "shuffled reward", "without motion token"}
    assert "without motion token" not in (tmp_path / "results" / "grpo.svg").read_text()


def test_a_run_that_fails_is_told_and_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("tools.learn.write_videos", lambda _: None)
    with pytest.raises((InputError, BrokenProcessPool)):
        main(Options(work=tmp_path / "work", results=tmp_path / "results", seeds=3, processes=1))
    assert "no manifest of synthetic videos" in capsys.readouterr().err
    assert not (tmp_path / "work" / "seed2").exists()


def test_each_ablation_leaves_one_reward_out():
    for name, rewards in ABLATIONS.items():
        changed = {part for part, value in asdict(rewards).items() if value != asdict(config.rewards)[part]}
        assert changed == {{"without_temporal": "temporal_bonus"}.get(name, name.removeprefix("without_"))}
        assert all(asdict(rewards)[part] == 0 for part in changed)


def test_the_small_recipe_makes_a_model_of_a_hundred_million_weights_that_hears_motion():
    size, _, recipe = RECIPES["small"]
    raw = settings(300, size)
    model = nnx.eval_shape(lambda: VLM(parse_config(raw, motion=True), rngs=nnx.Rngs(0)))
    weights = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)) if hasattr(leaf, "size"))
    assert 80e6 < weights < 120e6
    assert recipe.config.data.size == recipe.warm_start.data.size == size.image
    assert model.config.motion
    measure_change(SlowFast(model.config.motion, rngs=nnx.Rngs(0)))
