"""The report, without a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from claygraph.errors import RequestError
from claygraph.report import make
from claygraph.report.effects import effects
from claygraph.report.layout import is_grid, roles
from claygraph.report.page import embedded
from tests.test_cli import paint, run

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'{{7*7}}\u2028.png"


def entry(index: int, axes: dict[str, str], metrics: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    saved = [f"{index}/a.png"] if more.get("state", "done") == "done" else []
    base = {
        "index": index,
        "overrides": [],
        "flags": [],
        "image": "photo.png",
        "command": f"python -m claygraph {index}",
    }
    base |= {"axes": axes, "out": str(index), "nodes": {}, "state": "done", "saved": saved, "stage": "", "error": ""}
    return {**base, "metrics": metrics or {}, **more}


def sweep(folder: Path, jobs: list[dict[str, Any]], axes: dict[str, list[str]]) -> Path:
    nodes = {"planned": 4, "distinct": 3, "run": 3, "cached": 0}
    content = {"version": 1, "started": "2026-01-01T00:00:00+00:00", "command": ["claygraph", "-m", HOSTILE]}
    content |= {"axes": axes, "nodes": nodes, "jobs": jobs, "metrics": {"ssim": HOSTILE}}
    for job in jobs:
        if job["saved"]:
            (folder / str(job["index"])).mkdir()
            paint(folder / job["saved"][0], 48, 32, job["index"])
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


class Parsed(HTMLParser):
    """The tags of a page, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    (tmp_path / "</title><b>").mkdir(parents=True)
    folder = tmp_path / "</title><b>" / "x"
    folder.mkdir()
    failed = entry(1, {"a": HOSTILE}, state="failed", stage=HOSTILE, error=HOSTILE, image=HOSTILE, command=HOSTILE)
    text = make(sweep(folder, [entry(0, {"a": "1"}, {HOSTILE: 0.5}), failed], {"a": ["1", HOSTILE]})).read_text()
    page = Parsed(text)
    assert HOSTILE not in text
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)
    cell = json.loads(page.scripts[0])["cells"][1]
    assert (cell["error"], cell["stage"], cell["image"], cell["command"]) == (HOSTILE,) * 4


def test_the_title_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&"
    folder.mkdir()
    assert "<h1>&lt;b&gt;&amp;</h1>" in make(sweep(folder, [entry(0, {})], {})).read_text()


def test_embedded_data_cannot_end_its_element() -> None:
    text = embedded([HOSTILE, "<!--", "]]>", "粘土"])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == [HOSTILE, "<!--", "]]>", "粘土"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded([float("nan")])


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = make(sweep(tmp_path, [entry(0, {})], {})).read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    loaded = [
        a
        for tag, a in Parsed(text).tags
        if tag in ("script", "link", "img", "iframe") and (a.get("src") or a.get("href"))
    ]
    assert loaded == []


def test_pictures_are_small_inside_and_whole_beside(tmp_path: Path) -> None:
    paint(tmp_path / "photo.png", 96, 96)
    jobs = [entry(number, {"a": str(number)}, image=str(tmp_path / "photo.png")) for number in range(2)]
    make(sweep(tmp_path, jobs, {"a": ["0", "1"]}))
    cells = json.loads(Parsed((tmp_path / "report.html").read_text()).scripts[0])["cells"]
    assert [cell["path"] for cell in cells] == ["0/a.png", "1/a.png"]
    assert all(cell["thumb"].startswith("data:image/webp;base64,") for cell in cells)
    assert cells[0]["source"] == cells[1]["source"] == "sources/0.png"
    assert Image.open(tmp_path / "sources/0.png").size == (48, 32)  # cut as the results are


def test_what_lies_outside_the_folder_is_not_shown(tmp_path: Path) -> None:
    paint(tmp_path / "secret.png")
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    jobs = [entry(0, {"a": "0"}), entry(1, {"a": "1"}), entry(2, {"a": "2"})]
    sweep(folder, jobs[:1], {"a": ["0", "1", "2"]})
    for job, path in zip(jobs[1:], ("../secret.png", "link.png"), strict=True):
        job["saved"] = [path]
    content = json.loads((folder / "sweep.json").read_text()) | {"jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(content))
    make(folder)
    cells = json.loads(Parsed((folder / "report.html").read_text()).scripts[0])["cells"]
    assert [bool(cell["thumb"]) for cell in cells] == [True, False, False]
    assert "outside the sweep's folder" in cells[1]["error"]


def test_the_contact_sheet_shows_every_picture_and_why_one_is_missing(tmp_path: Path) -> None:
    axes = {"row": ["a", "b"], "column": ["1", "2"]}
    jobs = [entry(i, {"row": "ab"[i // 2], "column": "12"[i % 2]}) for i in range(3)]
    make(sweep(tmp_path, [*jobs, entry(3, {"row": "b", "column": "2"}, state="failed", error="no")], axes))
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png").convert("RGB")).astype(int)
    assert sheet.shape[1] > 2 * 48
    red = (abs(sheet - (0xFB, 0xE4, 0xE1)).sum(2) < 3).sum()
    assert red > 0.5 * 48 * 48
    for job in jobs:
        picture = np.asarray(Image.open(tmp_path / job["saved"][0])).astype(int)
        corner = picture[:8, :8]
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (8, 8, 3))[:, :, 0]
        assert (abs(windows - corner).reshape(*windows.shape[:2], -1).max(2) == 0).any()


def test_share_of_variance_is_what_the_formula_says() -> None:
    axes = {"a": ["1", "2"], "b": ["x", "y"]}
    scores = [1.0, 2.0, 5.0, 6.0]  # mean 3.5, total 17; a: means 1.5 and 5.5, between 16; b: 3 and 4, between 1
    jobs = [entry(i, {"a": "12"[i // 2], "b": "xy"[i % 2]}, {"m": score}) for i, score in enumerate(scores)]
    failed = entry(4, {"a": "1", "b": "x"}, state="failed")
    first, second = effects([*jobs, failed], axes)
    assert (first.axis, second.axis) == ("a", "b")
    assert (first.share, second.share) == (pytest.approx(16 / 17), pytest.approx(1 / 17))
    low = first.levels[0]
    assert (low.value, low.count, low.mean, low.spread) == ("1", 2, 1.5, 0.5)
    assert [each.share for each in effects([entry(0, {"a": "1"}, {"m": 2.0})], {"a": ["1"]})] == [0]


def test_axes_fill_columns_then_rows_then_pages() -> None:
    axes = {name: list("1234") for name in "pqrs"}
    assert roles(axes) == {"p": "pages", "q": "rows", "r": "rows", "s": "columns"}
    assert roles({}) == {}
    assert is_grid(range(64), {name: list("1234") for name in "abc"})
    assert not is_grid(range(9), {name: list("12") for name in "abcdefgh"})


def test_a_sweep_of_a_bad_picture_reports_it_and_finishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    out = tmp_path / "out"
    images = f"image={tmp_path / 'good.png'},{tmp_path / 'bad.png'}"
    small = [f"out={out}", f"store={tmp_path / 'store'}", "photo.size=64", "sampler.steps=2"]
    code, lines, said = run(capsys, "-m", images, *small, "tagger=none,moat")
    assert code == 1
    assert [Path(line).name for line in lines] == ["good.png", "good.png"]
    assert f"report: {out / 'report.html'}" in said
    found = json.loads((out / "sweep.json").read_text())
    assert [job["state"] for job in found["jobs"]] == ["done", "done", "failed", "failed"]
    assert "'bad.png' is no PNG" in found["jobs"][2]["error"]
    assert set(found["jobs"][0]["metrics"]) == {"ssim", "edge_f1", "sharpness", "clay"}
    assert found["nodes"]["planned"] > found["nodes"]["distinct"] >= found["nodes"]["run"]
    cells = json.loads(Parsed((out / "report.html").read_text()).scripts[0])["cells"]
    assert [bool(cell["thumb"]) for cell in cells] == [True, True, False, False]
    assert "'bad.png' is no PNG" in cells[2]["error"]
    assert cells[0]["source"]
    code, _, _ = run(capsys, "-m", images, *small, "tagger=none,moat")
    again = json.loads((out / "sweep.json").read_text())
    assert (code, again["nodes"]["cached"] > 0) == (1, True)
    assert [job["metrics"] for job in again["jobs"]] == [job["metrics"] for job in found["jobs"]]
    assert [job["saved"] for job in again["jobs"]] == [job["saved"] for job in found["jobs"]]
    (out / "report.html").unlink()
    code, lines, _ = run(capsys, "report", str(out))
    assert (code, lines) == (0, [str(out / "report.html")])


def test_a_folder_without_a_sweep_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = run(capsys, "report", str(tmp_path))
    assert code == 2
    assert "give the folder of a sweep" in said
    with pytest.raises(RequestError):
        make(tmp_path)
