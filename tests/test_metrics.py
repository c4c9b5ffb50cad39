"""What metrics measure, against values worked out in other ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from claygraph.diffusion import measures
from claygraph.errors import SettingError, WeightsError
from claygraph.files import BUNDLED
from claygraph.stages.metrics import ClayScore, ColourDistance, EdgeF1, Sharpness, Ssim, TagRecall
from claygraph.stages.photo import Photo
from claygraph.values import Image, Pictures
from tests.pictures import noise
from tests.test_cli import SMALL, paint, run

METRICS = "metric=[ssim,edge_f1,colour,tag_recall,sharpness,clay]"


def flat(*rgb: int, side: int = 32) -> Image:
    return Image(np.full((side, side, 3), rgb, np.uint8))


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The paper's formula, window by window, on grey pictures."""
    steps = np.arange(11) - 5
    window = np.exp(-(steps[:, None] ** 2 + steps[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11].astype(float) for each in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            both = (window * (a - ma) * (b - mb)).sum()
            found.append((2 * ma * mb + c1) * (2 * both + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(found))


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[:, :, :1], 3, axis=2)


def test_ssim_is_the_papers_formula() -> None:
    one, other = grey(noise(24, 30, 1)), grey(noise(24, 30, 2))
    mixed = ((one.astype(int) * 2 + other) // 3).astype(np.uint8)
    assert measures.ssim(one, mixed) == pytest.approx(plain_ssim(one[:, :, 0], mixed[:, :, 0]), abs=1e-9)
    assert measures.ssim(one, one) == pytest.approx(1, abs=1e-12)


def test_ssim_of_a_picture_of_another_size_is_taken_at_the_results_size() -> None:
    big = np.repeat(np.repeat(noise(32, 32), 2, 0), 2, 1)
    assert Ssim().run(Image(noise(32, 32)), Image(big)).value == pytest.approx(1, abs=1e-6)


def test_lines_count_within_the_tolerance() -> None:
    wanted = np.zeros((1, 9, 9), np.uint8)
    wanted[0, 4] = 255
    one_off, two_off = np.roll(wanted, 1, 1), np.roll(wanted, 2, 1)
    assert [measures.line_f1(lines, wanted, 1) for lines in (wanted, one_off, two_off)] == [1, 1, 0]
    assert measures.line_f1(two_off, wanted, 2) == 1
    half = wanted.copy()
    half[0, :, 4:] = 0  # precision 1, recall 5/9 with a tolerance of one pixel
    assert measures.line_f1(half, wanted, 1) == pytest.approx(2 * (5 / 9) / (1 + 5 / 9))
    assert measures.line_f1(wanted * 0, wanted * 0, 1) == 1


def test_edges_of_another_picture_are_not_met() -> None:
    source, other = (Image(noise(64, 64, seed)) for seed in (1, 2))
    assert EdgeF1().run(source, source).value == 1
    shapes = flat(0, 0, 0, side=64).pixels.copy()
    shapes[20:40, 20:40] = 255
    assert EdgeF1().run(Image(shapes), flat(0, 0, 0, side=64)).value == 0
    assert EdgeF1(tolerance=0).run(other, source).value < EdgeF1(tolerance=1).run(other, source).value


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ((0, 0, 0), (255, 255, 255), 100),  # L* from 0 to 100
        ((255, 0, 0), (255, 255, 255), 114.5),  # sRGB red is Lab (53.24, 80.09, 67.20), D65
        ((0, 0, 255), (0, 255, 0), 258.7),  # (32.30, 79.19, -107.86) to (87.73, -86.18, 83.18)
        ((9, 90, 200), (9, 90, 200), 0),
    ],
)
def test_colours_are_apart_as_cie_lab_has_it(one: tuple[int, ...], other: tuple[int, ...], distance: float) -> None:
    assert ColourDistance().run(flat(*one), flat(*other)).value == pytest.approx(distance, abs=0.1)


def test_of_several_style_pictures_the_nearest_counts() -> None:
    styles = Pictures((flat(0, 0, 0), flat(200, 0, 0), flat(255, 255, 255)))
    assert ColourDistance().run(flat(200, 0, 0), flat(9, 9, 9), styles).value == 0
    assert ColourDistance().run(flat(200, 0, 0), flat(9, 9, 9)).value > 40


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    dot = flat(0, 0, 0, side=16).pixels.copy()
    dot[8, 8] = 100  # the response is -400 once, 100 four times, else 0: mean 0
    assert Sharpness().run(Image(dot)).value == pytest.approx((400**2 + 4 * 100**2) / 256)
    assert Sharpness().run(flat(7, 7, 7)).value == 0


def test_settings_out_of_range_are_told() -> None:
    with pytest.raises(SettingError, match=r"metric_edge_f1\.high=1 is out of range"):
        EdgeF1(low=5, high=1)
    with pytest.raises(SettingError, match=r"metric_clay.style='claymaton' is not known; did you mean 'claymation'\?"):
        ClayScore("miniature:classifier", style="claymaton")
    with pytest.raises(SettingError, match=r"metric_tag_recall\.judge is no tagger"):
        TagRecall(Photo("a.png"))
    with pytest.raises(WeightsError, match=r"holds no model\.onnx"):
        ClayScore(str(BUNDLED / "photos")).files()


def test_a_misspelt_setting_of_a_metric_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = run(capsys, "plan", "metric=[clay,edge_f1]", "metric_clay.styel=x")
    assert (code, "did you mean 'metric_clay.style'?" in said) == (2, True)
    code, _, said = run(capsys, "plan", "metric=[clya]")
    assert (code, "did you mean 'clay'?" in said) == (2, True)


STAGE = '''
from dataclasses import dataclass

from claygraph.stage import Stage
from claygraph.values import Image, Score


@dataclass(frozen=True)
class Redness(Stage):
    """Mean red, 0 to 255, higher is redder."""

    def run(self, decode: Image) -> Score:
        return Score("red", float(decode.pixels[:, :, 0].mean()))
'''


def test_every_metric_is_measured_and_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped ones by name, and one of a user's own by a class and a YAML."""
    paint(tmp_path / "photo.png")
    (tmp_path / "my_redness.py").write_text(STAGE)
    (tmp_path / "conf" / "metric").mkdir(parents=True)
    (tmp_path / "conf" / "metric" / "red.yaml").write_text("# @package metric_red\n_target_: my_redness.Redness\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = (f"image={tmp_path / 'photo.png'}", f"out={tmp_path / 'out'}", *SMALL, f"{METRICS[:-1]},red]")
    code, lines, said = run(capsys, "--config-dir", str(tmp_path / "conf"), *arguments)
    assert code == 0, said
    [picture] = json.loads((tmp_path / "out" / "run.json").read_text())["pictures"]
    found = picture["metrics"]
    assert set(found) == {"ssim", "edge_f1", "colour", "tag_recall", "sharpness", "clay", "red"}
    result = Photo(lines[-1], size=64, fit="none").run()
    source = Photo(str(tmp_path / "photo.png"), size=64).run()
    assert found["red"] == pytest.approx(result.pixels[:, :, 0].mean())
    assert found["ssim"] == pytest.approx(measures.ssim(result.pixels, source.pixels))
    assert found["edge_f1"] == pytest.approx(EdgeF1().run(result, source).value)
    assert 0 <= found["tag_recall"] <= 1
    assert 0 < found["clay"] < 1
