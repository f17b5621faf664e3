"""What to evaluate on: every form of list gives the same items, and every fault is told with its place."""

import json
from pathlib import Path

import pytest

from vqathinker_jax.data.labels import Choice, Item, read_choices, read_sets
from vqathinker_jax.data.paper import PAPER, published, read_paper
from vqathinker_jax.records import InputError

SCORES = {"a/one.mp4": 62.4, "two.mp4": 3.0}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "a").mkdir(parents=True)
    for name in SCORES:
        (folder / name).write_bytes(b"video")
    return folder


def meta(scores: dict) -> str:
    rows = [{"image_id": name, "ann_type": "score", "score": f"{score:.3f}"} for name, score in scores.items()]
    return json.dumps({"annotations": rows})


def training_lines(scores: dict) -> str:
    def line(number: int, name: str, score: float) -> str:
        turns = [{"from": "human", "value": "How good?"}, {"from": "gpt", "value": score}]
        return json.dumps({"id": number, "image": [name], "conversations": turns})

    return "\n".join(line(number, name, score) for number, (name, score) in enumerate(scores.items()))


def table(scores: dict) -> str:
    rows = "".join(f'{score},"{name}",x\n' for name, score in scores.items())
    return f"\ufeffmos, video ,other\n{rows}"


FORMS = {"set.json": meta, "set.jsonl": training_lines, "set.csv": table}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_items(tmp_path: Path, videos: Path, form: str):
    (tmp_path / form).write_text(FORMS[form](SCORES), encoding="utf-8")
    (found,) = read_sets(tmp_path / form, videos)
    assert found.name == "set"
    assert found.items == tuple(Item(name, videos / name, mos) for name, mos in SCORES.items())


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_spreadsheet_may_write_its_table_otherwise(tmp_path: Path, videos: Path, between: str):
    rows = [
        ("Video", "Scene, note", "MOS", "mos of others"),
        *((name, "a, b", score, 9) for name, score in SCORES.items()),
    ]
    text = "\r\n".join(between.join(map(str, row)) for row in rows)
    (tmp_path / "set.csv").write_text(text, encoding="utf-8")
    (found,) = read_sets(tmp_path / "set.csv", videos)
    assert found.items == tuple(Item(name, videos / name, mos) for name, mos in SCORES.items())


def test_of_columns_that_differ_in_capitals_the_small_one_counts(tmp_path: Path, videos: Path):
    text = "video,mos,MOS\n" + "".join(f"{name},{score},68\n" for name, score in SCORES.items())
    (tmp_path / "set.csv").write_text(text, encoding="utf-8")
    (found,) = read_sets(tmp_path / "set.csv", videos)
    assert found.items == tuple(Item(name, videos / name, mos) for name, mos in SCORES.items())


def test_a_folder_gives_its_videos_without_labels(videos: Path):
    (videos / "notes.txt").write_text("no video")
    (found,) = read_sets(videos)
    assert found.name == "videos"
    assert found.items == tuple(Item(name, videos / name) for name in SCORES)


def test_a_yaml_list_gives_several_sets_with_their_folders(tmp_path: Path, videos: Path):
    (tmp_path / "set.json").write_text(meta(SCORES))
    (tmp_path / "set.csv").write_text(table({"one.mp4": 1.5}), encoding="utf-8")
    listed = "- meta: set.json\n  videos: videos\n- name: second\n  meta: set.csv\n  videos: videos/a\n"
    (tmp_path / "sets.yaml").write_text(listed)
    first, second = read_sets(tmp_path / "sets.yaml")
    assert (first.name, [item.video for item in first.items]) == ("set", [videos / name for name in SCORES])
    assert (second.name, second.items) == ("second", (Item("one.mp4", videos / "a" / "one.mp4", 1.5),))


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("set.csv", "video,mos\nx.mp4,fine\n", "set.csv:2: mos 'fine' is no finite number"),
        ("set.csv", "video,mos,mos\nx.mp4,3,68\n", "set.csv: more than one column mos"),
        ("set.csv", "video,mos\nx.mp4\n", "set.csv:2: mos None is no finite number"),
        ("set.csv", "video,mos\n../x.mp4,3\n", "set.csv:2: video '../x.mp4' leaves the folder"),
        ("set.csv", "video,mos\n,3\n", 'set.csv:2: no "video"'),
        ("set.csv", "video,mos\nx.mp4,3\nx.mp4,4\n", "set.csv:3: 'x.mp4' stands at"),
        ("set.csv", "file,mos\nx.mp4,3\n", "no column video (found: file, mos)"),
        ("set.csv", "", "set.csv: is empty"),
        ("set.csv", "video,mos\n", "holds no rows"),
        ("set.csv", 'video,mos\n"x.mp4,3\n', "not valid CSV"),
        ("set.json", '{"annotations": [{"image_id": "x.mp4"}]}', "annotation 1: score None is no finite number"),
        ("set.json", '{"annotations": [{"score": "3"}]}', 'annotation 1: no video: name its file as "image_id"'),
        ("set.json", "{}", 'no list "annotations"'),
        ("set.jsonl", training_lines({"x.mp4": 1}) + "\n" + training_lines({"x.mp4": 2}), "stands at"),
        ("set.txt", "x", "not a kind of list that is known"),
        ("set.yaml", "- 3", "holds no list of sets"),
        ("set.yaml", "a: [", "not valid YAML"),
        ("set.yaml", "- meta: 2024-99-99", "not valid YAML (month must be in 1..12)"),
        ("set.yaml", "- !!int ''", "not valid YAML"),
        ("set.yaml", "[" * 9999, "not valid YAML (maximum recursion depth exceeded"),
        ("set.yaml", "- meta: gone.csv", 'set 1: no "videos"'),
        ("set.yaml", "- meta: gone.csv\n  videos: videos", "gone.csv: cannot be read"),
        ("gone.csv", None, "cannot be read"),
    ],
)
def test_faults_are_told_with_their_place(tmp_path: Path, videos: Path, name: str, text: str | None, fault: str):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as told:
        read_sets(tmp_path / name, videos)
    assert fault in str(told.value)


def test_a_folder_of_videos_takes_no_other_folder(videos: Path, tmp_path: Path):
    with pytest.raises(InputError, match="is itself a folder of videos; leave --videos out"):
        read_sets(videos, tmp_path)


@pytest.mark.usefixtures("videos")
def test_two_sets_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "set.csv").write_text(table(SCORES), encoding="utf-8")
    (tmp_path / "sets.yaml").write_text("- {meta: set.csv, videos: videos}\n" * 2)
    with pytest.raises(InputError, match="2 sets are called 'set'"):
        read_sets(tmp_path / "sets.yaml")


def question(**changes: object) -> str:
    asked = {"video": "two.mp4", "question": "What is wrong?", "options": ["Blur", "Noise"], "answer": "B"}
    return json.dumps(asked | {"category": "kind"} | changes)


def test_questions_come_with_options_and_the_right_one(tmp_path: Path, videos: Path):
    listed = {"A": "Blur", "B": "Noise"}
    lines = [question(), question(answer="Noise", category=None), question(options=listed, answer="B.")]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    (found,) = read_choices(tmp_path / "q.jsonl", videos)
    assert [item.name for item in found.items] == ["two.mp4#1", "two.mp4#2", "two.mp4#3"]
    assert {item.video for item in found.items} == {videos / "two.mp4"}
    kinds = [Choice("What is wrong?", ("Blur", "Noise"), 1, category) for category in ("kind", "all", "kind")]
    assert [item.choice for item in found.items] == kinds


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"options": ["one"]}, '"options" is no list'),
        ({"options": {"A": "x", "C": "y"}}, '"options" is no list'),
        ({"answer": "C"}, "\"answer\" is 'C'"),
        ({"answer": 1}, 'no "answer"'),
        ({"video": "../x.mp4"}, "leaves the folder"),
        ({"question": " "}, 'no "question"'),
    ],
)
def test_faulty_questions_are_told(tmp_path: Path, videos: Path, changes: dict, fault: str):
    (tmp_path / "q.jsonl").write_text(question() + "\n" + question(**changes))
    with pytest.raises(InputError) as told:
        read_choices(tmp_path / "q.jsonl", videos)
    assert "q.jsonl:2: " in str(told.value)
    assert fault in str(told.value)


def test_the_papers_sets_take_its_names_and_the_folders_called_so(tmp_path: Path):
    for known in PAPER[2:4]:
        (tmp_path / f"{known.meta}.json").write_text(meta(SCORES))
    sets = read_paper(tmp_path, tmp_path / "videos")
    assert [found.name for found in sets] == ["KoNViD-1k", "LIVE-VQC"]
    assert sets[1].items[1].video == tmp_path / "videos" / "LIVE-VQC" / "two.mp4"
    known = published("konvid-1k")
    assert known is not None
    assert (known.srcc, known.plcc, known.videos, known.domain) == (0.881, 0.884, 1200, "in-domain")
    assert sum(known.videos for known in PAPER) == 17036


def test_other_sets_are_not_the_papers(tmp_path: Path, videos: Path):
    (tmp_path / "mine.csv").write_text(table(SCORES), encoding="utf-8")
    with pytest.raises(InputError, match="mine not in the paper"):
        read_paper(tmp_path / "mine.csv", videos)
    with pytest.raises(InputError, match="none of the paper's metas"):
        read_paper(videos, None)
