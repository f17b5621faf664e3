"""Lists of videos: what reads without loss, and which faults are told, all together and with their lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from vqathinker_jax.data.manifest import Row, read_evaluation, read_training, split_absent
from vqathinker_jax.records import InputError


def line(name: object = "a/clip.mp4", answer: object = 3.418571, **changes: object) -> dict[str, Any]:
    turns = [{"from": "human", "value": "How good is it?"}, {"from": "gpt", "value": answer}]
    return {"id": 1, "dataset_name": "lsvq", "image": [name], "conversations": turns} | changes


def write(folder: Path, *lines: object, name: str = "train.jsonl") -> Path:
    """A manifest of these lines; text and bytes stay as they are."""
    texts = [text if isinstance(text, bytes) else json.dumps(text).encode() for text in lines]
    (folder / name).write_bytes(b"\n".join(texts) + b"\n")
    return folder / name


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with two videos, `a/clip.mp4` and `b.mp4`."""
    folder = tmp_path / "videos"
    (folder / "a").mkdir(parents=True)
    for name in "a/clip.mp4", "b.mp4":
        (folder / name).write_bytes(b"video")
    return folder


def faults(manifest: Path, folder: Path, require_files: bool = True) -> list[str]:
    """The lines of the report but the first, which counts them; without the manifest's name."""
    with pytest.raises(InputError) as report:
        read_training(f"{manifest}", f"{folder}", require_files)
    first, *found = str(report.value).split("\n")
    assert first.startswith(f"{len(found)} fault")
    return [fault.removeprefix(f"{manifest}:") for fault in found]


def test_a_training_line_becomes_a_row(tmp_path: Path, videos: Path):
    ((row,),) = read_training(f"{write(tmp_path, line())}", f"{videos}")
    video = videos.resolve() / "a/clip.mp4"
    assert row == Row("1", "lsvq", "a/clip.mp4", video, "How good is it?", 3.418571, line=1)


def test_a_response_to_be_taught_is_kept_and_must_be_text(tmp_path: Path, videos: Path):
    said = "<think>Sharp.</think><answer>3.42</answer>"
    ((row,),) = read_training(f"{write(tmp_path, line(response=said))}", f"{videos}")
    assert row.response == said
    assert faults(write(tmp_path, line(response=[said])), videos) == [
        '1: "response" is a list: write the text that training is to teach'
    ]


@pytest.mark.parametrize(
    ("answer", "mos"),
    [
        (3, 3.0),
        ("3.5", 3.5),
        (" <answer> 2.25 </answer>\n", 2.25),
        ("<answer>.5</answer>", 0.5),
        ("-1e-2", -0.01),
        (0.1 + 0.2, 0.1 + 0.2),
    ],
)
def test_answers_are_read_as_numbers_or_text_with_tags_or_without(
    answer: object, mos: float, tmp_path: Path, videos: Path
):
    ((row,),) = read_training(f"{write(tmp_path, line(answer=answer))}", f"{videos}")
    assert row.mos == mos


def test_a_video_may_stand_bare_and_the_slots_leave_the_question(tmp_path: Path, videos: Path):
    turns = [{"from": "human", "value": "<image><image>\nHow?"}, {"from": "gpt", "value": 1}]
    ((row,),) = read_training(f"{write(tmp_path, line(image='b.mp4', conversations=turns))}", f"{videos}")
    assert (row.name, row.problem) == ("b.mp4", "\nHow?")


def test_ids_and_data_sets_may_be_left_out(tmp_path: Path, videos: Path):
    bare = {key: value for key, value in line().items() if key not in {"id", "dataset_name"}}
    manifest = write(tmp_path, bare, b"", bare | {"id": 0})
    ((first, third),) = read_training(f"{manifest}", f"{videos}")
    assert (first.id, first.dataset, first.line) == (f"{manifest}:1", "train", 1)
    assert (third.id, third.line) == ("0", 3)


def test_several_manifests_come_as_several_sets(tmp_path: Path, videos: Path):
    one = write(tmp_path, line(), name="one.jsonl")
    two = write(tmp_path, line("clip.mp4", dataset_name="other"), name="two.jsonl")
    first, second = read_training(f"{one}:{two}", f"{videos}:{videos / 'a'}")
    assert first[0].video == second[0].video


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([1], "expected a JSON object {…}, found a list"),
        (line(image=[]), 'no video: name its file as "image"'),
        (line(image=None), "no video"),
        (line(" "), "no video"),
        (line(7), "no video"),
        (line(image=["a/clip.mp4", "b.mp4"]), '"image" names 2 files'),
        (line("../videos/b.mp4"), "leaves the folder"),
        (line("a/../b.mp4"), "leaves the folder"),
        (line("/etc/hostname"), "leaves the folder"),
        (line("b\0.mp4"), "cannot be reached"),
        (line("x" * 5000), "cannot be reached"),
        (line("gone.mp4"), "does not exist"),
        (line("a"), "does not exist"),
        (line(answer="good"), "answer 'good' is no finite number"),
        (line(answer=float("nan")), "answer nan is no finite number"),
        (line(answer=float("-inf")), "answer -inf is no finite number"),
        (line(answer="1e999"), "is no finite number"),
        (line(answer=True), "is no finite number"),
        (line(answer=None), "is no finite number"),
        (line(answer="3_4"), "is no finite number"),
        (line(answer="<answer></answer>"), "is no finite number"),
        (line(conversations=[]), 'no turn of "human"'),
        (line(conversations={"from": "human"}), 'no turn of "human"'),
        (
            line(conversations=[{"from": "human", "value": "<image> "}, {"from": "gpt", "value": 1}]),
            "is empty or no text",
        ),
        (line(conversations=[{"from": "human", "value": "How?"}]), 'no turn of "gpt"'),
    ],
)
def test_a_fault_is_told_with_its_line(entry: object, fault: str, tmp_path: Path, videos: Path):
    told = faults(write(tmp_path, line("b.mp4", id="sound"), entry), videos)
    assert told[0].startswith("2: ")
    assert fault in told[0]


def test_all_faults_stand_in_one_report(tmp_path: Path, videos: Path):
    manifest = write(tmp_path, line(), b"{", line("../b.mp4", "good"), b"", line("gone.mp4", id=2), line("b.mp4"))
    told = faults(manifest, videos)
    assert [fault.split(":")[0] for fault in told] == ["2", "3", "3", "5", "6"]
    assert f"id '1' of lsvq stands at {manifest}:1 too" in told[4]


def test_a_link_may_point_inside_the_folder_but_not_out(tmp_path: Path, videos: Path):
    (tmp_path / "out.mp4").write_bytes(b"video")
    (videos / "out.mp4").symlink_to(tmp_path / "out.mp4")
    (videos / "in.mp4").symlink_to(videos / "b.mp4")
    (videos / "round.mp4").symlink_to(videos / "round.mp4")
    told = faults(write(tmp_path, line("out.mp4"), line("in.mp4", id=2), line("round.mp4", id=3)), videos)
    assert [fault.split(":")[0] for fault in told] == ["1", "3"]
    assert "leaves the folder" in told[0]


def test_the_folder_itself_may_be_a_link(tmp_path: Path, videos: Path):
    (tmp_path / "link").symlink_to(videos)
    ((row,),) = read_training(f"{write(tmp_path, line())}", f"{tmp_path / 'link'}")
    assert row.video.is_file()


def test_a_wrong_folder_is_one_fault_not_thousands(tmp_path: Path, videos: Path):
    manifest = write(tmp_path, line(), line("b.mp4", id=2))
    (told,) = faults(manifest, videos / "nowhere")
    assert "none of its 2 videos exists" in told


def test_absent_videos_can_be_let_through_and_split_off(tmp_path: Path, videos: Path):
    manifest = write(tmp_path, line(), line("gone.mp4", id=2))
    (rows,) = read_training(f"{manifest}", f"{videos}", require_files=False)
    present, absent = split_absent(rows)
    assert ([row.id for row in present], [row.id for row in absent]) == (["1"], ["2"])


def test_the_same_id_may_stand_in_two_data_sets_but_not_in_two_files_of_one(tmp_path: Path, videos: Path):
    one = write(tmp_path, line(), name="one.jsonl")
    other = write(tmp_path, line(dataset_name="other"), name="other.jsonl")
    assert len(read_training(f"{one}:{other}", f"{videos}:{videos}")) == 2
    same = write(tmp_path, line(), name="same.jsonl")
    with pytest.raises(InputError, match=r"same\.jsonl:1: id '1' of lsvq stands at .*one\.jsonl:1 too"):
        read_training(f"{one}:{same}", f"{videos}:{videos}")


@pytest.mark.parametrize(
    ("manifests", "folders", "fault"),
    [
        ("{m}", "{v}:{v}", "1 manifests .* but 2 folders"),
        ("{m}:", "{v}:{v}", "an empty name"),
        ("{m}:{m}", "{v}:{v}", "names a file twice"),
        ("{v}/gone.jsonl", "{v}", "cannot be read"),
        ("{v}", "{v}", "cannot be read"),
        ("{v}/empty.jsonl", "{v}", "holds no rows"),
    ],
)
def test_manifests_and_folders_must_pair_and_hold_rows(
    manifests: str, folders: str, fault: str, tmp_path: Path, videos: Path
):
    (videos / "empty.jsonl").write_bytes(b"\n \n")
    places = {"m": write(tmp_path, line()), "v": videos}
    with pytest.raises(InputError, match=fault):
        read_training(manifests.format(**places), folders.format(**places))


def test_an_evaluation_meta_reads_without_loss(tmp_path: Path):
    annotations = [
        {"image_id": "yfcc-batch1/7..2.mp4", "ann_type": "score", "score": "62.400"},
        {"image_id": "8129160337.mp4", "ann_type": "score", "score": "6.06"},
    ]
    (tmp_path / "konvid.json").write_text(json.dumps({"annotations": annotations}))
    rows = read_evaluation(tmp_path / "konvid.json", tmp_path)
    assert [(row.name, row.mos, row.line, row.dataset) for row in rows] == [
        ("yfcc-batch1/7..2.mp4", 62.4, 1, "konvid"),
        ("8129160337.mp4", 6.06, 2, "konvid"),
    ]
    assert rows[0].video == tmp_path.resolve() / "yfcc-batch1/7..2.mp4"


def test_all_faults_of_a_meta_stand_in_one_report(tmp_path: Path):
    sound = {"image_id": "a.mp4", "ann_type": "score", "score": "1"}
    annotations = [sound, "b", sound | {"image_id": "../c.mp4"}, {"score": "x"}, sound | {"ann_type": "box"}, sound]
    (tmp_path / "set.json").write_text(json.dumps({"annotations": annotations}))
    with pytest.raises(InputError) as report:
        read_evaluation(tmp_path / "set.json", tmp_path)
    told = [fault.removeprefix(f"{tmp_path / 'set.json'}: annotation ") for fault in str(report.value).split("\n")[1:]]
    assert [fault[:2] for fault in told] == ["2:", "3:", "4:", "4:", "5:", "6:"]
    assert "'a.mp4' is annotation 1 too" in told[-1]


@pytest.mark.parametrize("text", ["", "[]", '{"annotations": []}', '{"annotations": {}}', '{"videos": []}'])
def test_a_meta_without_annotations_is_refused(text: str, tmp_path: Path):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(InputError, match=r"set\.json: "):
        read_evaluation(tmp_path / "set.json", tmp_path)
