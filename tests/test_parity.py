"""The parity runner on a set kept here, made by diffusers, transformers, k-diffusion and formulas.

``CLAYGRAPH_PARITY=FOLDER`` runs it over that set too. ``python -m tests.make_parity`` makes the one kept here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.make_parity import write_weights
from tests.parity import SECTIONS, Verdict, judge, main, verdicts
from tests.parity_reference import Reference, Unsupported, absolute, each_relative, relative
from tests.parity_world import World

KEPT = Path(__file__).parent / "data/parity"
GIVEN = os.environ.get("CLAYGRAPH_PARITY", "")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("parity") / "weights")


@pytest.fixture(scope="module")
def found(weights: Path) -> list[Verdict]:
    return list(verdicts(Reference(KEPT, weights)))


def told(found: list[Verdict], status: str) -> list[tuple[str, str, str]]:
    """Who came out so, and why."""
    return [(one.section, one.id, one.why or str(one.worst)) for one in found if one.status == status]


def test_every_case_of_the_kept_set_agrees(found: list[Verdict]) -> None:
    assert told(found, "deviates") == []
    assert told(found, "unsupported") == []
    assert {one.section for one in found} == set(SECTIONS) - {"tagger"}
    assert Counter(one.status for one in found)["agrees"] == len(found) > 80


def test_deliberate_differences_are_told(found: list[Verdict]) -> None:
    shown = Counter(name for one in found for name in one.differences)
    assert set(shown) == {"step noise seed", "noise per picture", "middle block", "peft", "kl_optimal", "kaomoji"}


@pytest.mark.long
@pytest.mark.skipif(not GIVEN, reason="CLAYGRAPH_PARITY names no folder")
def test_every_case_of_a_given_set_agrees() -> None:
    folder = Path(GIVEN)
    assert told(list(verdicts(Reference(folder, folder / "weights"))), "deviates") == []


def test_the_kept_set_is_small() -> None:
    assert sum(file.stat().st_size for file in KEPT.iterdir()) < 1_500_000


def test_a_wrong_number_is_found_and_told(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(KEPT, tmp_path / "set")
    file = tmp_path / "set/ksampler.npz"
    arrays = dict(np.load(file))
    arrays["euler/karras/latent"] = arrays["euler/karras/latent"] * np.float32(1.001)
    np.savez(file, **arrays)
    asked = [str(tmp_path / "set"), "--weights", str(weights), "--only", "ksampler", "--json", str(tmp_path / "out")]
    assert main(asked) == 1
    assert "deviates: ksampler euler/karras: latent 0.000" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out").read_text())
    assert [row["id"] for row in rows if row["status"] == "deviates"] == ["euler/karras"]
    assert main([*asked[:3], "--only", "noise"]) == 0


def test_what_is_not_there_is_told_and_never_left_out(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(KEPT, tmp_path / "set")
    index = json.loads((KEPT / "index.json").read_text())
    case = dict(index["sections"]["ksampler"]["cases"][0])
    odd = {**case, "id": "odd", "settings": {**case["settings"], "sampler": "unheard_of"}}
    unread = {**case, "id": "unread", "inputs": {**case["inputs"], "warp": 3}}
    index["sections"] = {"ksampler": {"cases": [odd, unread]}, "upscaling": {"cases": [{"id": "big"}]}}
    (tmp_path / "set/index.json").write_text(json.dumps(index))
    found = list(verdicts(Reference(tmp_path / "set", weights)))
    assert [(one.id, one.status) for one in found] == [(name, "unsupported") for name in ("odd", "unread", "big")]
    assert "no sampler 'unheard_of'" in found[0].why
    assert "warp" in found[1].why


def test_a_case_that_breaks_off_deviates(weights: Path) -> None:
    case = next(Reference(KEPT, weights).cases("noise"))

    def fails(*_: object) -> object:
        raise ZeroDivisionError("by nothing")

    assert judge(fails, case, World(weights)).status == "deviates"  # type: ignore[arg-type]


def test_distances() -> None:
    wanted = np.array([1.0, -4.0, 0.0])
    assert relative([1.0, -4.0, 0.4], wanted) == pytest.approx(0.1)
    assert absolute([1.0, -4.0, 0.4], wanted) == pytest.approx(0.4)
    assert each_relative([1.1, -4.0, 0.0], wanted) == pytest.approx(0.1)
    for odd in ([1.0, -4.0], [1.0, np.nan, 0.0], [1.0, np.inf, 0.0]):
        assert relative(odd, wanted) == np.inf
    assert each_relative([1.0, -4.0, 1e-9], wanted) == np.inf
    assert issubclass(Unsupported, Exception)
