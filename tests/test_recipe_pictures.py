"""The miniature's recipe: its pictures, their clay, edges, tags, licences and credits."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from PIL import Image

from claygraph.miniature import WEIGHTS, clayify, rcc, train_taggers
from claygraph.miniature.credits import write_credits
from claygraph.miniature.licences import licence_of, read_copyright
from claygraph.miniature.measures import average_precision
from claygraph.values import Image as Photo


def test_clay_of_a_picture_depends_on_the_seed_alone() -> None:
    picture = np.asarray(Image.open(WEIGHTS / "photos/coffee.jpg").resize((96, 64)))
    first, again, other = (clayify.clayify(picture, seed) for seed in (1, 1, 2))
    assert first.shape == picture.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_clay_creases_are_darker_than_the_bodies_between_them() -> None:
    picture = np.full((96, 96, 3), (40, 90, 200), np.uint8)
    picture[:, 48:] = (220, 60, 40)
    clay = clayify.clayify(picture, lumps=0).astype(float).mean(2)
    assert clay[20:76, 46:50].mean() < min(clay[20:76, 20:30].mean(), clay[20:76, 66:76].mean()) - 10


def test_edges_are_twice_the_picture() -> None:
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:, 32:] = 255
    found = clayify.edges(picture)
    assert found.shape == (80, 128)
    assert set(np.unique(found)) == {0, 255}


def test_the_default_graph_finds_the_edges_that_training_used() -> None:
    """The clay's creases lie on the hint's lines only if both are found alike."""
    photo = np.asarray(Image.open(WEIGHTS / "photos/coffee.jpg").convert("RGB").resize((160, 128)))
    with initialize_config_module("claygraph.conf", version_base="1.3"):
        stage = instantiate(compose("config").edges, _convert_="all")
    hint = stage.run(Photo(photo)).pixels[:, :, 0]
    assert np.mean(hint != clayify.edges(photo)) < 0.01


def test_tagger_examples_carry_style_and_colour(work: Path) -> None:
    pictures, wanted = train_taggers.Examples(work, seed=0).batch(6)
    assert pictures.shape == (6, 96, 96, 3)
    styles = [train_taggers.TAGS.index(t) for t in ("photo", "3d", "flat", "claymation")]
    assert (wanted[:, styles].sum(1) >= 1).all()
    assert (wanted[:, train_taggers.TAGS.index("general")] == 1).all()


def test_average_precision_of_a_perfect_and_a_reversed_ranking() -> None:
    wanted, scores = np.array([1, 1, 0, 0], np.float32), np.array([0.9, 0.8, 0.2, 0.1], np.float32)
    assert average_precision(wanted, scores) == 1
    assert average_precision(wanted, -scores) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_only_open_licences_are_taken(tmp_path: Path) -> None:
    text = (
        "Format: x\n\nFiles: *\nCopyright: A\nLicense: GPL-3+\n\nFiles: a/b.jpg\nCopyright: B\nLicense: CC-BY-SA-3.0\n"
    )
    (tmp_path / "copyright").write_text(text)
    stanzas = read_copyright(tmp_path / "copyright")
    named, other = licence_of("a/b.webp", stanzas, any_suffix=True), licence_of("a/c.webp", stanzas, any_suffix=True)
    assert (named.open, named.author) == (True, "B")
    assert not other.open


def test_files_are_found_in_a_qt_resource_container(tmp_path: Path) -> None:
    name = struct.pack(">HI", 5, 0) + "a.png".encode("utf-16-be")
    content = struct.pack(">I", 3) + b"abc"
    root = struct.pack(">IHIIQ", 0, 2, 1, 1, 0)
    leaf = struct.pack(">IHHHIQ", 0, 0, 0, 0, 0, 0)
    head = struct.pack(">4sIIIII", b"qres", 3, 24, 24 + 44, 24 + 44 + len(content), 0)
    (tmp_path / "x.rcc").write_bytes(head + root + leaf + content + name)
    assert list(rcc.entries(tmp_path / "x.rcc")) == [("a.png", b"abc")]


def test_every_photo_is_credited(tmp_path: Path) -> None:
    photo = {"package": "p: a|b.jpg", "licence": "CC0-1.0", "author": "Ann", "origin": "", "file": "1", "caption": "x"}
    (tmp_path / "sources.json").write_text(json.dumps({"photos": [photo]}))
    write_credits(tmp_path, tmp_path / "CREDITS.md")
    assert (tmp_path / "CREDITS.md").read_text().endswith("| p: a/b.jpg | CC0-1.0 | Ann | not stated |\n")


def test_only_open_licences_are_credited() -> None:
    rows = (WEIGHTS.parent / "CREDITS.md").read_text(encoding="utf-8").splitlines()[8:]
    licences = {row.split(" | ")[1] for row in rows}
    assert len(rows) > 100
    assert all(re.match(r"CC0|CC-BY(-SA)?-\d|public-domain|BSD|MIT", licence) for licence in licences)
