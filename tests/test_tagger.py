from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claygraph.errors import SettingError, WeightsError
from claygraph.memory import Memory
from claygraph.stages.tagger import Tagger
from claygraph.values import Image, Tags
from tests.taggers import CSV, flat, tagger


def tags(folder: Path, image: Image, **settings: Any) -> Tags:
    """What the stage makes of a picture, its one call answered as the scheduler would."""
    run = Tagger(str(folder), **settings).run(image)
    call = run.send(None)
    try:
        run.send(call.run_batch([call], Memory("cpu"))[0])
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("the tagger asked for more than one call")


def words(*args: Any, **settings: Any) -> list[str]:
    return [tag for tag, _ in tags(*args, **settings).tags]


def test_tags_are_characters_then_general_in_the_order_of_the_csv(tmp_path: Path) -> None:
    seen = tags(tagger(tmp_path), flat(204, 255, 102))  # red .8, green 1, blue .4, eyes 1.2 clipped, miku .9
    assert [tag for tag, _ in seen.tags] == ["hatsune miku", "red theme", "^_^", "star (symbol), big", "green eyes"]
    np.testing.assert_allclose([p for _, p in seen.tags], [0.9, 0.8, 1, 0.4, 1], rtol=1e-6)


def test_a_probability_at_the_threshold_is_left_out(tmp_path: Path) -> None:
    folder = tagger(tmp_path)
    assert words(folder, flat(0, 0, 255), threshold=1.0) == []
    assert words(folder, flat(0, 0, 255), threshold=0.999) == ["star (symbol), big"]


def test_characters_have_a_threshold_of_their_own(tmp_path: Path) -> None:
    folder, image = tagger(tmp_path), flat(153, 153, 0)  # all three at 0.6
    assert words(folder, image, threshold=0.5) == ["red theme", "^_^", "green eyes"]
    assert words(folder, image, threshold=0.7, character_threshold=0.5) == ["hatsune miku"]


def test_underscores_can_stay(tmp_path: Path) -> None:
    seen = words(tagger(tmp_path), flat(255, 255, 0), replace_underscore=False)
    assert seen == ["hatsune_miku", "red_theme", "^_^", "green_eyes"]


@pytest.mark.parametrize("face", ["o_o", ">_<", "0_0", "(o)_(o)", "<|>_<|>", "||_||", "+_-", "6_9", ">_o"])
def test_kaomoji_keep_their_underscore(face: str) -> None:
    assert Tagger("x")._spelled(face) == face


def test_other_tags_do_not() -> None:
    assert [Tagger("x")._spelled(tag) for tag in ("c.c._(code_geass)", "x_hair", "2_girls")] == [
        "c.c. (code geass)",
        "x hair",
        "2 girls",
    ]


@pytest.mark.parametrize("unwanted", ["Red Theme , ^_^", "red_theme,^_^,", ",red theme,,^_^"])
def test_excluded_tags_are_compared_as_they_are_written(tmp_path: Path, unwanted: str) -> None:
    assert words(tagger(tmp_path), flat(255, 255, 0), exclude_tags=unwanted) == ["hatsune miku", "green eyes"]


def test_max_tags_keeps_the_most_probable_in_order(tmp_path: Path) -> None:
    folder, image = tagger(tmp_path), flat(204, 255, 102)
    assert words(folder, image, max_tags=2) == ["^_^", "green eyes"]
    assert words(folder, image, max_tags=3) == ["hatsune miku", "^_^", "green eyes"]
    assert len(words(folder, image, max_tags=0)) == 5


def test_a_csv_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tagger(tmp_path, text=CSV + "8,extra,0,1\n")
    with pytest.raises(WeightsError, match="7 outputs, but the CSV lists 8 tags"):
        tags(folder, flat(1, 2, 3))


def test_the_files_of_the_stage(tmp_path: Path) -> None:
    folder = tagger(tmp_path)
    assert Tagger(str(folder)).files() == [str(folder / "model.onnx"), str(folder / "selected_tags.csv")]


def test_missing_files_are_told_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tagger.path=.*does not exist"):
        Tagger(str(tmp_path / "none")).files()
    with pytest.raises(WeightsError, match=r"holds no model\.onnx"):
        Tagger(str(tmp_path)).files()
    folder = tagger(tmp_path / "vit")
    with pytest.raises(WeightsError, match="is a file; give the folder"):
        Tagger(str(folder / "model.onnx")).files()
    (folder / "selected_tags.csv").unlink()
    with pytest.raises(WeightsError, match=r"holds no selected_tags\.csv"):
        Tagger(str(folder)).files()


@pytest.mark.parametrize(
    "settings", [{"threshold": 1.5}, {"character_threshold": "a"}, {"max_tags": -1}, {"max_tags": 0.5}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"tagger.{next(iter(settings))}="):
        Tagger("x", **settings)
