"""One thread for torch in the tests: on models this small, threads wait for each other more than they work.

Each test has a store of its own: none uses what the user's holds, or what another test has left.
"""

import json
import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")
CACHES, NUMBERS = TemporaryDirectory(prefix="claygraph-tests-"), count()
os.environ["XDG_CACHE_HOME"] = CACHES.name


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(CACHES.name) / str(next(NUMBERS))))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sources as the miniature's recipe writes them, of synthetic pictures, with pairs and latents."""
    from claygraph.miniature import latents, pairs

    folder = tmp_path_factory.mktemp("work")
    _sources(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "_statistics", lambda *_: None)
        for make in (pairs.pictures, pairs.pairs, pairs.twins, pairs.held_out):
            make(folder, {(128, 128): 3})
        latents.latents(folder)
    return folder


def _sources(folder: Path) -> None:
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    photos = []
    for index in range(13):
        tiles = random.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(tiles).resize((360, 320), Image.Resampling.BICUBIC).save(folder / f"photos/{index}.png")
        photos.append({"file": f"{index}.png", "package": "synthetic", "caption": "tiles"})
    sticker = np.zeros((13, 160, 160, 4), np.uint8)
    sticker[:, 40:120, 40:120] = random.integers(0, 256, (13, 1, 1, 4)) | np.array([0, 0, 0, 255])
    np.savez(folder / "emoji.npz", solid=sticker, flat=sticker[..., [2, 1, 0, 3]], paired=np.ones(13, bool))
    emoji = [{"name": f"red fish {i}", "group": "Animals & Nature", "tags": ["fish"]} for i in range(13)]
    (folder / "sources.json").write_text(json.dumps({"photos": photos, "emoji": emoji}))
