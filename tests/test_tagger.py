from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from claygraph.diffusion.wd14 import Label
from claygraph.errors import SettingError, WeightsError
from claygraph.memory import Memory
from claygraph.stages.photo import Photo
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
    assert Tagger("x")._written(face) == face


def test_other_tags_do_not() -> None:
    assert [Tagger("x")._written(tag) for tag in ("c.c._(code_geass)", "x_hair", "2_girls")] == [
        "c.c. (code geass)",
        "x hair",
        "2 girls",
    ]


@pytest.mark.parametrize("unwanted", ["Red Theme , ^_^", ",red theme,,^_^"])
def test_excluded_tags_are_compared_as_they_are_written(tmp_path: Path, unwanted: str) -> None:
    assert words(tagger(tmp_path), flat(255, 255, 0), exclude_tags=unwanted) == ["hatsune miku", "green eyes"]


def test_excluding_a_tag_as_it_is_not_written_does_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, image = tagger(tmp_path), flat(255, 255, 0)
    assert "red theme" in words(folder, image, exclude_tags="red_theme")
    assert "'red_theme' is written 'red theme' here, so exclude that" in caplog.text
    caplog.clear()
    assert words(folder, image, exclude_tags="red_theme", replace_underscore=False)[0] == "hatsune_miku"
    assert "red_theme" not in words(folder, image, exclude_tags="red_theme", replace_underscore=False)
    assert not caplog.text


def test_a_bracket_is_not_escaped_when_tags_are_excluded(tmp_path: Path) -> None:
    folder = tagger(tmp_path, text=CSV.replace('"star_(symbol), big"', "star_(symbol)"))
    assert words(folder, flat(0, 0, 255)) == ["star (symbol)"]
    assert words(folder, flat(0, 0, 255), exclude_tags="star (symbol)") == []
    assert words(folder, flat(0, 0, 255), exclude_tags=r"star \(symbol\)") == ["star (symbol)"]


@pytest.mark.parametrize("level", range(1, 256))
def test_a_probability_is_compared_in_its_own_precision(level: int) -> None:
    rows, share = [Label("cat", 0), Label("miku", 4)], level / 255
    at = np.full(2, share, np.float32)
    stage = Tagger("x", threshold=share, character_threshold=share)
    assert stage._kept(rows, at) == []
    assert [tag for tag, _ in stage._kept(rows, np.nextafter(at, np.float32(2)))] == ["miku", "cat"]


def mcut_by_hand(probabilities: list[float]) -> float:
    """The cut that leaves the largest step between the tags above and below it, by trying every one."""
    tries = [(min(above) - max(below), (min(above) + max(below)) / 2) for above, below in cuts(sorted(probabilities))]
    return max(tries)[1]


def cuts(rising: list[float]) -> Iterator[tuple[list[float], list[float]]]:
    for place in range(1, len(rising)):
        yield rising[place:], rising[:place]


@pytest.mark.parametrize("seed", range(5))
def test_mcut_cuts_at_the_widest_gap(seed: int) -> None:
    probabilities = np.random.default_rng(seed).random(9).astype(np.float32)
    rows = [Label(str(number), 0) for number in range(9)]
    limit = mcut_by_hand([float(p) for p in probabilities])
    kept = Tagger("x", threshold=0.99, mcut=True)._kept(rows, probabilities)
    assert [tag for tag, _ in kept] == [str(number) for number in range(9) if probabilities[number] > limit]
    assert 0 < len(kept) < 9


def test_mcut_of_characters_keeps_none_below_its_floor() -> None:
    rows = [Label("a", 4), Label("b", 4), Label("c", 0)]
    stage = Tagger("x", threshold=0.5, character_mcut=True)
    assert stage._kept(rows, np.array([0.14, 0.0, 0.1], np.float32)) == []
    assert [tag for tag, _ in stage._kept(rows, np.array([0.16, 0.0, 0.6], np.float32))] == ["a", "c"]


def test_one_tag_has_no_gap_and_is_kept() -> None:
    assert Tagger("x", mcut=True)._kept([Label("a", 0)], np.array([0.01], np.float32))


def test_tags_are_replaced_as_written_and_before_they_are_excluded(tmp_path: Path) -> None:
    folder, image = tagger(tmp_path), flat(255, 255, 0)
    both = "red theme,red clay; green eyes, bead eyes"
    assert words(folder, image, replacements=both) == ["hatsune miku", "red clay", "^_^", "bead eyes"]
    assert words(folder, image, replacements=both, exclude_tags="red clay,green eyes")[1:] == ["^_^", "bead eyes"]


@pytest.mark.parametrize("wrong", ["a", "a,b,c", ",b", "a,b;c"])
def test_replacements_that_are_no_pairs_are_refused(wrong: str) -> None:
    with pytest.raises(SettingError, match=r"tagger\.replacements=.*write old,new;old,new"):
        Tagger("x", replacements=wrong)


def test_first_tags_come_first_where_they_were_seen(tmp_path: Path) -> None:
    found = words(tagger(tmp_path), flat(255, 255, 0), first_tags="green eyes, unseen, ^_^")
    assert found == ["green eyes", "^_^", "hatsune miku", "red theme"]


def test_a_trailing_comma_goes_with_the_tags(tmp_path: Path) -> None:
    assert tags(tagger(tmp_path), flat(9, 9, 9), trailing_comma=True).trailing_comma


def test_what_is_transparent_counts_as_white(tmp_path: Path) -> None:
    clear = np.zeros((20, 20, 4), np.uint8)
    clear[:, :10] = (0, 0, 255, 255)  # the left half blue, the right half black under nothing
    Pillow.fromarray(clear).save(tmp_path / "clear.png")
    seen = tags(tagger(tmp_path / "model"), Photo(str(tmp_path / "clear.png"), fit="none").run())
    np.testing.assert_allclose(dict(seen.tags)["star (symbol), big"], 1.0)  # blue is full in both halves
    np.testing.assert_allclose(dict(seen.tags)["^_^"], 0.5, atol=0.02)  # green is full where white shows


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
