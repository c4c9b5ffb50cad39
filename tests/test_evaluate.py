"""The evaluation of the miniature, on two of the bundled photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from claygraph.miniature import WEIGHTS, evaluate, measures
from claygraph.miniature.clayify import clayify
from claygraph.miniature.figures import Figure


@pytest.fixture(scope="module")
def photos() -> measures.Pixels:
    files = sorted((WEIGHTS / "photos").glob("*.jpg"))[:2]
    return np.stack([np.asarray(Image.open(f).convert("RGB").resize((128, 128), 1)) for f in files])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, photos: measures.Pixels) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "held_out").mkdir()
    clay = np.stack([clayify(p, 3) for p in photos])
    np.savez(folder / "held_out/128x128.npz", allow_pickle=False, picture=photos, clay=clay)
    doubled = {name: stack.repeat(2, 1).repeat(2, 2) for name, stack in (("picture", photos), ("clay", clay))}
    np.savez(folder / "held_out/256x256.npz", allow_pickle=False, **doubled)
    return folder


def test_the_evaluation_measures_prints_and_judges(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["clay", "size", "--work", str(work), "--count", "2", "--seeds", "1", "--json", str(work / "f.json")]
    code = evaluate.main(arguments)
    found = json.loads((work / "f.json").read_text())
    value = {figure["what"]: figure["value"] for figure in found}
    assert code == int(not all(figure["met"] for figure in found))
    assert value["clay score, 1 minus 0"] > 0.1
    assert value["weights compressed, MB"] <= 48
    assert "clay score at 1" in capsys.readouterr().out
    page = (work / "evaluation.html").read_text()
    assert page.count("data:image/png") == 6
    assert "http" not in page


def test_autoencoder_keeps_photos(work: Path, photos: measures.Pixels) -> None:
    figures = evaluate.PARTS["vae"](evaluate.Bench(work, photos, photos, 1))
    assert all(figure.value > 24 for figure in figures)


def test_bounds_are_kept_or_missed() -> None:
    assert Figure("p", "w", 2.0, least=2, most=3).met
    assert not Figure("p", "w", 1.9, least=2).met
    assert not Figure("p", "w", 3.1, most=3).met
    assert (Figure("p", "w", 1, least=0.5, most=2).bound, Figure("p", "w", 1).bound) == (">= 0.5 <= 2", "")


def test_measures_know_their_extremes(photos: measures.Pixels) -> None:
    assert measures.edge_f1(photos, photos) == 1
    assert measures.layout_agreement(photos, photos) == pytest.approx(1)
    assert measures.colour_error(photos, photos) == 0
    assert measures.layout_agreement(photos, photos[:, ::-1]) < 0.7
    assert measures.colour_error(photos, 255 - photos) > 30
    assert measures.psnr(photos, np.clip(photos.astype(int) + 10, 0, 255).astype(np.uint8)) == pytest.approx(
        28.2, abs=0.5
    )


def test_the_classifier_tells_photos_blurred_photos_and_clay_apart(photos: measures.Pixels) -> None:
    style = measures.StyleScore(WEIGHTS / "classifier")
    clay = np.stack([clayify(p, 3) for p in photos])
    assert style(photos).sum(1) == pytest.approx([1, 1], abs=1e-4)
    assert style.of("claymation", clay) > 0.6 > 0.4 > style.of("claymation", photos)
    assert style.of("claymation", measures.blurred(photos)) < style.of("claymation", clay)
