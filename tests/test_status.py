"""How far a run got, told from what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from claygraph.cli import main


def job(index: int, state: str = "planned", **more: Any) -> dict[str, Any]:
    """One job as sweep.json has it."""
    axes = {"sampler.cfg": str(index)}
    overrides = [f"sampler.cfg={index}"]
    return {"index": index, "image": "photos/cat.jpg", "out": f"out/{index}", "state": state} | {
        "overrides": overrides,
        "axes": axes,
        "saved": [],
        **more,
    }


def sweep(folder: Path, *jobs: dict[str, Any]) -> None:
    (folder / "sweep.json").write_text(json.dumps({"version": 1, "jobs": jobs}))


def picture(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = main(["status", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_a_killed_sweep_tells_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, job(0), job(1), job(2))
    picture(tmp_path, "1/cat.png")
    code, lines, said = told(capsys, tmp_path)
    assert (code, lines) == (
        1,
        [
            "left: photos/cat.jpg with sampler.cfg=0",
            "left: photos/cat.jpg with sampler.cfg=2",
            "pictures: 1 of 3 done, 0 failed, 2 left",
        ],
    )
    assert said == "run the same command again to make what is left\n"


def test_a_finished_sweep_tells_failures_and_what_has_gone_since(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "the picture 'cat.jpg' is cut short or damaged; fetch or save it again."
    sweep(
        tmp_path,
        job(0, "done", saved=["0/cat.png"]),
        job(1, "done", saved=["1/cat-2.png"]),
        job(2, "failed", error=why, stage="photo"),
    )
    picture(tmp_path, "0/cat.png")
    picture(tmp_path, "1/cat.png")
    assert told(capsys, tmp_path)[:2] == (
        1,
        [
            f"failed: photos/cat.jpg with sampler.cfg=2: {why}",
            "left: photos/cat.jpg with sampler.cfg=1",
            "pictures: 1 of 3 done, 1 failed, 1 left",
        ],
    )
    sweep(tmp_path, job(0, "done", saved=["0/cat.png"]))
    assert told(capsys, tmp_path) == (0, ["pictures: 1 of 1 done, 0 failed, 0 left"], "")


def test_pictures_of_one_name_and_told_names_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, job(0), job(1, out="out/0"), job(2, overrides=["name=dog"], out="out/0"))
    picture(tmp_path, "0/cat.png")
    assert told(capsys, tmp_path)[1][-1] == "pictures: 1 of 3 done, 0 failed, 2 left"
    picture(tmp_path, "0/cat-2.png")
    picture(tmp_path, "0/dog.png")
    assert told(capsys, tmp_path)[1][-1] == "pictures: 3 of 3 done, 0 failed, 0 left"


def test_a_jobs_folder_may_lie_deeper_and_the_sweep_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "moved" / "out" / "a" / "b").mkdir(parents=True)
    sweep(tmp_path / "moved" / "out", job(0, out="/gone/out/a/b"), job(1, out="out"))
    picture(tmp_path / "moved" / "out", "a/b/cat.png")
    picture(tmp_path / "moved" / "out", "cat.png")
    assert told(capsys, tmp_path / "moved" / "out")[0] == 0


def test_the_last_run_of_a_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path, "cat.png")
    for name, saved in (("run", "gone.png"), ("run-2", "gone.png"), ("run-10", "cat.png")):
        pictures = [
            {"image": "a.jpg", "saved": [str(tmp_path / saved)]},
            {"image": "b.jpg", "error": "it is no picture"},
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"pictures": pictures}))
    lines = ["failed: b.jpg: it is no picture", "pictures: 1 of 2 done, 1 failed, 0 left"]
    assert told(capsys, tmp_path) == (1, lines, "")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"jobs": 1}', '{"jobs": [1]}', "\0", '{"jobs":' + "[" * 100_000])
def test_a_damaged_record_is_one_sentence(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(content)
    code, lines, said = told(capsys, tmp_path)
    assert (code, lines) == (2, [])
    assert "is damaged, or of another version" in said
    assert said.count("\n") == 1


def test_wrong_folders_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep").mkdir()
    for arguments, part in (
        ([tmp_path / "sweeep"], "does not exist; did you mean 'sweep'?"),
        ([tmp_path / "sweep"], "holds neither sweep.json nor run.json"),
        ([], "status takes one folder"),
        ([tmp_path, tmp_path], "status takes one folder"),
    ):
        code, lines, said = told(capsys, *arguments)
        assert (code, lines) == (2, [])
        assert part in said
        assert said.count("\n") == 1
