"""The report: whole in one file, with nothing of a name or a text as markup, and usable in a browser."""

import base64
import html.parser
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests import browser
from vqathinker_jax import report, summary
from vqathinker_jax.data.feed import contact_sheet
from vqathinker_jax.data.labels import Choice, Item, VideoSet
from vqathinker_jax.metrics import Logistic

VIDEOS = 250
NASTY = '</script><img src=x onerror="document.title=1">{{data}} & <b>'
SETS = ("KoNViD-1k", "mine")


def planted(change: float = 0.0) -> tuple[list[VideoSet], dict]:
    """Two rated sets, in which every 50th video is unreadable and every 50th absent, and rows for them."""
    rng, rows, sets = np.random.default_rng(0), {}, []
    for name in SETS:
        items = [
            Item(f"{number}{NASTY if number == 7 else ''}.mp4", Path("x"), float(number)) for number in range(VIDEOS)
        ]
        sets.append(VideoSet(name, tuple(items)))
        for number, item in enumerate(items):
            row = {"set": name, "video": item.name, "sha256": f"{number % 5:064d}"}
            score = round(float(1 + 4 / (1 + np.exp((125 - number) / 40)) + 0.1 * rng.standard_normal()), 2)
            if number == 100:
                score = 4.9  # the worst disagreement
            likely = {"expected": score - 0.1, "deviation": 0.5} if number < 100 else {}
            ok = likely | {
                "score": score + change,
                "thinking": f"Number {number}. {NASTY}",
                "text": "",
                "cut_off": False,
            }
            seen = {"frame_indices": [0, 3], "frame_times_s": [0.0, 0.125], "health": ["note <i>"] * (number == 9)}
            if number % 50 == 1:
                rows[name, item.name] = row | {"status": "failed", "reason": f"torn {NASTY}"}
            elif number % 50 != 2:
                rows[name, item.name] = row | {"status": "ok", "reason": None} | ok | seen
    return sets, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the planted run beside another."""
    folder = tmp_path_factory.mktemp("report")
    frames_FYXC = np.stack([np.full((56, 56, 3), shade, np.uint8) for shade in (40, 200)])
    for number in range(5):
        (folder / f"{number}.webp").write_bytes(contact_sheet(frames_FYXC))
    sets, rows = planted()
    results = summary.join(sets, rows, resamples=20)
    other = summary.join(sets, planted(change=-0.5)[1], resamples=20)
    figures = summary.summarise(results, {"checkpoint": NASTY, "task": "score"})
    report.write(folder / "report.html", results, figures, sheet_of(folder), report.Beside("the other", other))
    return folder


def sheet_of(folder: Path):
    return lambda row: folder / f"{int(row['sha256'])}.webp"


class Reader(html.parser.HTMLParser):
    """Elements by what they are, and the text of each script by its id."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self._inside = dict(attrs).get("id", "main")

    def handle_endtag(self, tag):
        self._inside = None if tag == "script" else self._inside

    def handle_data(self, data):
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data


def test_the_page_is_whole_and_nothing_in_it_is_markup(folder: Path):
    page = (folder / "report.html").read_text(encoding="utf-8")
    read = Reader(page)
    assert "img" not in read.tags
    assert read.tags.count("script") == 3
    assert not re.findall(r"(?:src|href)\s*=", re.sub(r"\\u003c.*?\\u003e", "", page))
    data = json.loads(read.scripts["data"])
    assert len(data["rows"]) == 2 * VIDEOS
    assert data["rows"][7]["video"] == f"7{NASTY}.mp4"
    assert data["rows"][7]["said"] == f"Number 7. {NASTY}"
    sheets = read.scripts["sheets"].split("\n")
    assert len(sheets) == 5
    assert base64.b64decode(sheets[data["rows"][9]["sheet"]]) == (folder / "4.webp").read_bytes()


def test_rows_say_how_far_off_the_fitted_rating_is(folder: Path):
    data = json.loads(Reader((folder / "report.html").read_text(encoding="utf-8")).scripts["data"])
    sets, rows = planted()
    result = summary.join(sets, rows, resamples=20)[0]
    assert result.agreement is not None
    assert isinstance(result.agreement.fit, Logistic)
    row = data["rows"][100]
    expected = float(result.agreement.fit(np.array([4.9]))[0]) - 100
    assert row["residual"] == pytest.approx(expected)
    assert row["off"] == max(row["off"] or 0 for row in data["rows"])
    assert row["change"] == pytest.approx(0.5)
    statuses = [row["status"] for row in data["rows"]]
    assert (statuses.count("unreadable"), statuses.count("absent")) == (10, 10)


def test_pictures_shrink_to_the_budget(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise_FYXC = np.random.default_rng(0).integers(0, 256, (12, 128, 128, 3), np.uint8)
    (folder / "noise.webp").write_bytes(contact_sheet(noise_FYXC))
    monkeypatch.setattr(report, "BUDGET", (folder / "noise.webp").stat().st_size // 4)
    sets = [VideoSet("s", (Item("a", Path("a")),))]
    row = {"sha256": "1", "status": "ok", "text": "", "frame_times_s": [0.0] * 12, "frame_indices": [0] * 12}
    results = summary.join(sets, {("s", "a"): row})
    report.write(tmp_path / "r.html", results, summary.summarise(results, {}), lambda _: folder / "noise.webp")
    sheet = base64.b64decode(Reader((tmp_path / "r.html").read_text()).scripts["sheets"])
    assert len(sheet) <= report.BUDGET


def test_runs_without_labels_or_with_questions_have_reports_too(tmp_path: Path):
    choice = Choice("Which?", ("A <b>", "B"), 0, "kind")
    sets = [VideoSet("s", (Item("a", Path("a")), Item("q", Path("a"), choice=choice)))]
    row = {"sha256": "1", "status": "ok", "text": "A", "chosen": "A", "frame_times_s": [], "frame_indices": []}
    results = summary.join(sets, {("s", "q"): row})
    report.write(tmp_path / "r.html", results, summary.summarise(results, {"task": "choice"}), lambda _: tmp_path / "x")
    data = json.loads(Reader((tmp_path / "r.html").read_text()).scripts["data"])
    assert [row["status"] for row in data["rows"]] == ["absent", "ok"]
    assert data["rows"][1]["right"] == "A"
    assert not data["labelled"]


@pytest.mark.skipif(
    browser.CHROMIUM is None and "CI" not in os.environ,
    reason="needs Chromium: apt install chromium (where CI is set, its absence is a failure)",
)
def test_a_browser_sorts_searches_and_opens_rows_without_an_error(folder: Path, tmp_path: Path):
    with browser.opened(tmp_path / "profile") as page:
        page.open(folder / "report.html")
        names = "[...document.querySelectorAll('#videos tbody tr')].map(row => row.cells[1].textContent)"
        ratings = "[...document.querySelectorAll('#videos tbody tr')].map(row => +row.cells[2].textContent)"
        assert len(page.run(names)) == 100
        assert page.run(names)[0] == "100.mp4", "the worst disagreement stands first"
        assert page.run("document.querySelectorAll('#failures tbody tr').length") == 20
        assert page.run("[...document.querySelectorAll('.pages')].map(pages => pages.hidden)") == [False, True]
        assert page.run("document.querySelectorAll('canvas').length") == 6, "three plots a set"

        page.run("document.querySelector('th[data-key=score]').click()")
        assert page.run(ratings) == sorted(page.run(ratings), reverse=True)
        page.run("document.querySelector('th[data-key=score]').click()")
        assert page.run(ratings) == sorted(page.run(ratings))
        page.run("document.querySelector('.pages[data-of=videos] button:last-child').click()")
        assert page.run("document.querySelector('.pages[data-of=videos] span').textContent") == "2 of 5"

        page.run("document.getElementById('search').value = 'NUMBER 9. note'")
        page.run("document.getElementById('search').dispatchEvent(new Event('input'))")
        assert page.run(names) == ["9.mp4", "9.mp4"]
        page.run("document.querySelector('#videos tbody tr').click()")
        assert page.run("document.getElementById('video').open")
        told = page.run("document.getElementById('video').textContent")
        for part in "Number 9.", NASTY, "± 0.50", "Note: note <i>", "0.13 s · frame 3", "Label 9.00", "Other run":
            assert part in told
        assert page.run("document.querySelectorAll('#frames figure').length") == 2
        # The first frame is dark, the second light: what is shown is what the sheet holds.
        (tmp_path / "video.png").write_bytes(page.screenshot())
        assert page.run("document.title") == "Evaluation"
        assert page.run("document.querySelectorAll('img, b, i').length") == 0
        page.run("document.getElementById('close').click()")
        assert not page.run("document.getElementById('video').open")
        assert page.errors == []
        assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []
