"""What a sweep writes down of itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from claygraph.composing import CHEAP_METRICS, with_metrics
from claygraph.errors import RequestError
from claygraph.jobs import Job
from claygraph.plan import Planned
from claygraph.record import Ended, quoted, read_sweep, write_ended, write_planned
from claygraph.values import Score

HOSTILE = (
    "a b",
    "miniature:a/b.jpg",
    "it's",
    "${oc.env:HOME}",
    "a,b",
    "[x]",
    "{y}",
    "a=b",
    "back\\slash",
    "end\\",
    "a\\${b}",
    "\\\\'",
    'say "x"',
    "粘土",
    "(1)",
    "",
)
COUNTS = {"run": 3, "cached": 1}


@pytest.mark.parametrize("text", HOSTILE)
def test_quoted_text_means_itself_to_hydra(text: str) -> None:
    [override] = OverridesParser.create().parse_overrides([f"image={quoted(text)}"])
    value = override.value()
    assert OmegaConf.create({"image": value}).image == text


def job(index: int, *overrides: str, **config: object) -> Job:
    return Job(OmegaConf.create({"out": f"out/{index}", **config}), overrides, (), index)


def planned(*jobs: Job) -> list[Planned]:
    return [Planned(each, "photo.png") for each in jobs]


def test_axes_are_what_differs(tmp_path: Path) -> None:
    cfg = {"sampler": {"steps": 8, "cfg": 1.5}, "tagger": {"path": "x"}}
    jobs = [
        job(0, "image=photo.png", "+seed=1", **cfg),
        job(1, "image=photo.png", "+seed=1", "sampler.steps=4", **cfg),
        job(2, "image=photo.png", "+seed=1", "tagger=none", **cfg),
        job(3, "image=photo.png", "+seed=1", "~tagger", "sampler.steps=8", **cfg),
    ]
    write_planned(tmp_path, planned(*jobs), "now")
    sweep = read_sweep(tmp_path)
    assert sweep["axes"] == {"sampler.steps": ["8", "4"], "tagger": ["default", "none", "~"]}
    assert [entry["axes"]["sampler.steps"] for entry in sweep["jobs"]] == ["8", "4", "8", "8"]
    assert {entry["state"] for entry in sweep["jobs"]} == {"planned"}


def test_pictures_of_one_job_have_an_axis_and_commands_of_their_own(tmp_path: Path) -> None:
    one = job(0, "image=folder", "sampler.steps=4")
    write_planned(tmp_path, [Planned(one, "folder/a.png"), Planned(one, "folder/it's ${b}.png")], "now")
    sweep = read_sweep(tmp_path)
    assert list(sweep["axes"]) == ["image"]
    assert sweep["jobs"][0]["command"] == "python -m claygraph image=folder/a.png sampler.steps=4"
    assert sweep["jobs"][1]["overrides"][0] == r'image="folder/it' + "'s " + r'\${b}.png"'


def test_launches_of_one_command_are_kept_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Optuna makes them, one trial a launch."""
    monkeypatch.setattr("sys.argv", ["claygraph", "-m", "sampler.cfg=1,2"])
    for index in range(3):
        trial = planned(job(index, f"sampler.cfg={index}", "prompt.text=same"))
        write_planned(tmp_path, trial, "now")
        write_ended(tmp_path, trial, [Ended([str(tmp_path / f"{index}/a.png")])], "now", COUNTS)
    sweep = read_sweep(tmp_path)
    assert [entry["saved"] for entry in sweep["jobs"]] == [["0/a.png"], ["1/a.png"], ["2/a.png"]]
    assert sweep["axes"] == {"sampler.cfg": ["0", "1", "2"]}
    monkeypatch.setattr("sys.argv", ["claygraph", "-m", "another"])
    write_planned(tmp_path, planned(job(0)), "now")
    assert len(read_sweep(tmp_path)["jobs"]) == 1


def test_results_are_a_row_a_picture_and_no_formula(tmp_path: Path) -> None:
    jobs = [job(0, "sampler.cfg=-1"), job(1, "sampler.cfg==HYPERLINK(1)")]
    scores = {"metric_ssim": Score("ssim", 0.5), "other": Score("ssim", -2.0), "bad": Score("nan", float("nan"))}
    ended = [Ended([str(tmp_path / "0/a.png")], scores), Ended(stage="photo", error="=cmd")]
    write_ended(tmp_path, planned(*jobs), ended, "now", COUNTS)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert rows[0]["path"] == "0/a.png"
    assert (rows[0]["ssim"], rows[0]["other"], "nan" in rows[0]) == ("0.5", "-2.0", False)
    assert (rows[0]["sampler.cfg"], rows[1]["sampler.cfg"]) == ("-1", "'=HYPERLINK(1)")
    assert (rows[1]["state"], rows[1]["error"], rows[1]["ssim"]) == ("failed", "'=cmd", "")
    json.loads((tmp_path / "sweep.json").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("text", [None, "", "[", "[]", "{}", '{"version": 2, "jobs": []}', "[" * 100_000])
def test_what_is_no_sweep_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RequestError, match=r"sweep\.json"):
        read_sweep(tmp_path)


@pytest.mark.parametrize("key", ["index", "axes", "metrics", "saved", "error"])
def test_a_sweep_with_a_part_missing_is_told(tmp_path: Path, key: str) -> None:
    write_planned(tmp_path, planned(job(0, "a=1"), job(1, "a=2")), "now")
    sweep = read_sweep(tmp_path)
    del sweep["jobs"][1][key]
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    with pytest.raises(RequestError, match="is no sweep of version 1"):
        read_sweep(tmp_path)


def test_a_sweep_measures_what_is_cheap_unless_told_otherwise() -> None:
    assert with_metrics(["-m", "a=1,2"]) == ["-m", "a=1,2", CHEAP_METRICS]
    for arguments in (["a=1"], ["-m", "metric=none"], ["--multirun", "metric=[ssim]"]):
        assert with_metrics(arguments) == arguments
