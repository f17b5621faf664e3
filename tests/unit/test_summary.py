"""Summaries: what counts, weighted means, published figures beside ours, and names that break no table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from vqathinker_jax import summary
from vqathinker_jax.data.labels import Choice, Item, VideoSet
from vqathinker_jax.data.paper import PAPER
from vqathinker_jax.metrics import agreement
from vqathinker_jax.tables import markdown, tables


def rated(name: str, videos: int, seed: int = 0, video: str = "{}.mp4") -> tuple[VideoSet, dict]:
    """A set with labels 0..videos-1, and a noisy rating for each."""
    rng = np.random.default_rng(seed)
    items = tuple(Item(video.format(number), Path("x"), float(number)) for number in range(videos))
    ratings = np.clip(1 + 4 * np.arange(videos) / videos + rng.normal(0, 0.4, videos), 1, 5).round(2)
    answer = {"status": "ok", "reason": None, "text": "…", "cut_off": False}
    rows = {(name, item.name): answer | {"score": float(r)} for item, r in zip(items, ratings, strict=True)}
    return VideoSet(name, items), rows


def test_what_failed_is_counted_and_left_out():
    found, rows = rated("mine", 40)
    failed = {"status": "failed", "score": None}
    rows["mine", "0.mp4"] = failed | {"reason": "torn"}
    rows["mine", "1.mp4"] = failed | {"reason": "no <answer> tags", "text": "I", "cut_off": True}
    rows["mine", "2.mp4"] = failed | {"reason": "empty", "text": "", "cut_off": False}
    del rows["mine", "3.mp4"]
    (result,) = summary.join([found], rows, resamples=10)
    numbers = result.numbers()
    assert (numbers["videos"], numbers["rated"], numbers["coverage"]) == (40, 36, "36 of 40")
    assert (numbers["unreadable"], numbers["unparsable"], numbers["cut_off"]) == (1, 2, 1)
    assert numbers["absent"] == ["3.mp4"]
    assert numbers["parse_failure_rate"] == pytest.approx(2 / 38)
    assert numbers["truncation_rate"] == pytest.approx(1 / 38)
    kept = list(range(4, 40))
    expected = agreement(
        np.array([rows["mine", f"{number}.mp4"]["score"] for number in kept]), np.array(kept), resamples=10
    )
    assert numbers["srcc"] == vars(expected.srcc)
    assert numbers["rmse_fitted"] == vars(expected.rmse_fitted)


def test_expected_ratings_are_held_against_labels_beside_those_written(tmp_path: Path):
    found, rows = rated("mine", 40)
    (without,) = summary.join([found], rows, resamples=10)
    assert "expected" not in without.numbers()
    rows["mine", "7.mp4"] = {"status": "failed", "score": None, "reason": "no <answer> tags", "text": ""}
    for number in {*range(40)} - {7}:
        rows["mine", f"{number}.mp4"] |= {"expected": 1 + number / 10, "deviation": 0.5}
    results = summary.join([found], rows, resamples=10)
    made = summary.summarise(results, {})
    assert made["sets"]["mine"]["expected"]["srcc"]["value"] == pytest.approx(1)
    assert made["sets"]["mine"]["srcc"]["value"] < 1
    text = markdown(tables(made))
    assert "| mine, expected | 39 of 40 | 1.000" in text
    assert "- Expected: not the rating as written" in text
    summary.write(tmp_path, results, made)
    with (tmp_path / "predictions.csv").open() as file:
        written = {row["video"]: (row["expected"], row["deviation"]) for row in csv.DictReader(file)}
    assert (written["3.mp4"], written["7.mp4"]) == (("1.3", "0.5"), ("", ""))


def test_expectations_of_some_ratings_only_are_held_against_nothing():
    found, rows = rated("mine", 40)
    for number in range(39):
        rows["mine", f"{number}.mp4"] |= {"expected": 3.0 + number / 40, "deviation": 0.5}
    (result,) = summary.join([found], rows, resamples=10)
    assert result.expected is None
    made = summary.summarise([result], {})
    assert "expected" not in made["sets"]["mine"]
    assert "- mine: only 39 of 40 ratings have an expected value" in markdown(tables(made))


def test_means_are_weighted_by_videos_and_stand_beside_the_published_ones():
    planted = [
        rated(PAPER[2].name, 90, 1),
        rated(PAPER[3].name, 30, 2),
        rated(PAPER[5].name, 20, 3),
        rated("mine", 10, 4),
    ]
    sets = [found for found, _ in planted]
    rows = {key: row for _, each in planted for key, row in each.items()}
    made = summary.summarise(summary.join(sets, rows, resamples=10), {"task": "score"})
    inside, outside, everything = (made["averages"][name] for name in ("in-domain", "out-of-domain", "all"))
    one, two = (made["sets"][known.name]["srcc"]["value"] for known in (PAPER[2], PAPER[3]))
    assert inside["srcc"] == pytest.approx((90 * one + 30 * two) / 120)
    # The published mean weights by the videos of the published sets.
    expected = (0.881 * 1200 + 0.808 * 585) / 1785
    assert inside["published"]["srcc"] == pytest.approx(expected)
    assert inside["difference"]["srcc"] == pytest.approx(inside["srcc"] - expected)
    assert outside["sets"] == ["LIVE-YT-Gaming"]
    assert (len(everything["sets"]), "published" in everything) == (4, False)
    known = made["sets"]["KoNViD-1k"]
    assert known["difference"]["srcc"] == pytest.approx(known["srcc"]["value"] - 0.881)
    assert "published" not in made["sets"]["mine"]
    text = markdown(tables(made))
    assert "| KoNViD-1k | 90 of 90 |" in text
    assert "- KoNViD-1k: 90 videos here, 1200 in the paper" in text


def test_a_mean_over_an_undefined_set_is_undefined():
    (first, rows), (second, more) = rated("one", 30), rated("two", 2)
    made = summary.summarise(summary.join([first, second], rows | more, resamples=10), {})
    assert made["averages"]["all"]["srcc"] is None
    assert "two: 2 videos: correlation needs 3" in markdown(tables(made))
    assert "A mean is undefined (–) where that of one of its sets is." in markdown(tables(made))


def test_names_break_neither_tables_nor_files(tmp_path: Path):
    name = "a|b<script>\n# [x](y)"
    found, rows = rated(name, 8, video='{}\n",=<b>.mp4')
    results = summary.join([found], rows, resamples=10)
    made = summary.summarise(results, {"task": "score"})
    summary.write(tmp_path, results, made)
    text = (tmp_path / "summary.md").read_text()
    assert "<script>" not in text
    assert all(line.count("|") - line.count("\\|") in {0, 8} for line in text.splitlines())
    assert json.loads((tmp_path / "summary.json").read_text()) == made
    with (tmp_path / "predictions.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [(row["video"], float(row["mos"])) for row in listed] == [(item.name, item.mos) for item in found.items]


def test_accuracy_counts_questions_without_an_answer_as_wrong():
    def item(number: int, category: str) -> Item:
        return Item(f"q{number}", Path("x"), choice=Choice("?", ("a", "b"), 1, category))

    found = VideoSet("q", (item(0, "x"), item(1, "x"), item(2, "overall"), item(3, "overall")))
    chosen = {0: "B", 1: "A", 2: None}
    rows = {
        ("q", f"q{number}"): {"status": "ok" if letter else "failed", "text": "", "chosen": letter, "reason": None}
        for number, letter in chosen.items()
    }
    accuracy = summary.summarise(summary.join([found], rows), {})["sets"]["q"]["accuracy"]
    assert accuracy == {
        "overall": {"right": 1, "questions": 4, "share": 0.25},
        "categories": {
            "overall": {"right": 0, "questions": 2, "share": 0.0},
            "x": {"right": 1, "questions": 2, "share": 0.5},
        },
    }


def test_rates_and_absent_videos_stand_in_the_counts():
    found, rows = rated("mine", 30)
    for number in range(2, 17):
        del rows["mine", f"{number}.mp4"]
    rows["mine", "0.mp4"] |= {"status": "failed", "score": None, "reason": "no <answer> tags", "cut_off": True}
    text = markdown(tables(summary.summarise(summary.join([found], rows, resamples=10), {})))
    assert "| mine | 30 | 14 | 0 | 1 (6.7%) | 1 (6.7%) | 15 |" in text
    names = ", ".join(f"{number}.mp4" for number in range(2, 12))
    assert f"- mine: absent: {names} and 5 more, in predictions.csv" in text
    text = markdown(tables(summary.summarise(summary.join([found], {}, resamples=10), {})))
    assert "- mine: all 30 are absent: check the folder; 0.mp4, " in text


def test_sets_without_labels_tell_their_ratings():
    found, rows = rated("mine", 4)
    unlabelled = VideoSet("mine", tuple(Item(item.name, item.video) for item in found.items))
    for number, score in enumerate((1.5, 4.25, 2.0)):
        rows["mine", f"{number}.mp4"]["score"] = score
    rows["mine", "3.mp4"] = {"status": "failed", "score": None, "reason": "no <answer> tags", "text": ""}
    made = summary.summarise(summary.join([unlabelled], rows), {})
    assert made["sets"]["mine"]["ratings"] == {"mean": pytest.approx(7.75 / 3), "lowest": 1.5, "highest": 4.25}
    assert "| mine | 2.58 | 1.50 | 4.25 |" in markdown(tables(made))
    assert "Lowest" not in markdown(tables(summary.summarise(summary.join([found], rows, resamples=10), {})))


def test_labels_are_not_held_against_descriptions():
    found, _ = rated("mine", 2)
    row = {"status": "ok", "reason": None, "text": "Sharp.", "answer": "Sharp.", "cut_off": False}
    (result,) = summary.join([found], {("mine", "0.mp4"): row}, rated=False)
    assert "srcc" not in result.numbers()
    assert result.entries[0].fields()["mos"] == 0.0
    # Nor do they count in the averages of the paper's sets.
    (paper, _), (unlabelled,) = rated(PAPER[2].name, 2), [VideoSet(PAPER[3].name, (Item("a.mp4", Path("a.mp4")),))]
    assert summary.summarise(summary.join([paper, unlabelled], {}, rated=False), {})["averages"] == {}
    assert summary.summarise(summary.join([unlabelled], {}), {})["averages"] == {}


def test_a_name_that_is_no_utf_8_ends_no_run(tmp_path: Path):
    found, rows = rated("mine", 6, video="{}\udcff.mp4")
    rows.pop(("mine", "0\udcff.mp4"))
    results = summary.join([found], rows, resamples=10)
    summary.write(tmp_path, results, summary.summarise(results, {}))
    assert "1\\udcff.mp4" in (tmp_path / "predictions.csv").read_text(encoding="utf-8")
    assert "absent: 0\\udcff.mp4" in (tmp_path / "summary.md").read_text(encoding="utf-8")
