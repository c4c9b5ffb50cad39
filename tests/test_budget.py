"""A budget too small for two models at once gives the same picture as one that holds all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from claygraph import files
from claygraph.diffusion import footprint
from claygraph.diffusion.calls import DecodeLatent, Denoise, EncodeImage, EncodeText
from claygraph.diffusion.describe import describe
from claygraph.diffusion.sampling import Run, sample
from claygraph.graph import Graph, build
from claygraph.memory import Memory
from claygraph.scheduler import Scheduler
from claygraph.stage import Stage
from claygraph.values import Checkpoint, Image, Lora, Model, Prompt, Weights
from tests import tiny

STEPS = [5.0, 2.0, 0.5, 0.0]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("budget")
    return str(tiny.checkpoint(folder / "base.safetensors")), str(tiny.lora(folder / "lora.safetensors"))


def weights(path: str) -> Weights:
    return Weights(path, files.digest(Path(path)))


@dataclass(frozen=True)
class Whole(Stage):
    """A picture from words and a picture, with a LoRA, every model in turn."""

    paths: tuple[str, str]
    seed: int = 0

    async def run(self) -> Image:
        checkpoint, lora = describe(weights(self.paths[0])), Lora(weights(self.paths[1]), 0.7, 0.5)
        pixels = np.random.default_rng(self.seed).integers(0, 256, (16, 16, 3), np.uint8)
        start = await EncodeImage(checkpoint, Image(pixels))
        words = [await EncodeText(checkpoint, (lora,), text) for text in (f"clay {self.seed}", "blurry")]
        run = Run("euler", STEPS, 3.0, self.seed)
        return await DecodeLatent(checkpoint, await sample(run, Model(checkpoint, (lora,)), Prompt(*words), start))


def pictures(memory: Memory, graphs: Sequence[Graph]) -> list[np.ndarray]:
    outcomes = Scheduler(graphs, memory).run()
    if error := next((outcome.error for outcome in outcomes if outcome.error), None):
        raise error
    return [outcome.values["whole"].pixels for outcome in outcomes]


def test_pictures_do_not_depend_on_the_budget(paths: tuple[str, str]) -> None:
    graphs = [build({"whole": Whole(paths, seed)}) for seed in range(2)]
    large, small = Memory("cpu", "float32", batch=1), Memory("cpu", "float32", budget=1)
    expected = pictures(large, graphs)
    found = [picture for graph in graphs for picture in pictures(small, [graph])]
    assert all((one == other).all() for one, other in zip(expected, found, strict=True))
    assert not (expected[0] == expected[1]).all()
    assert set(large.loads.values()) == {1}
    models = {key[0]: count for key, count in small.loads.items() if isinstance(key, tuple)}
    assert models["vae"] == 3  # the second picture is encoded by what decoded the first
    assert models["text_encoders"] == models["unet"] == 2


def test_guesses_grow_with_what_is_computed(paths: tuple[str, str]) -> None:
    checkpoint: Checkpoint = describe(weights(paths[0]))
    assert footprint.unet(checkpoint, 64, 32, 2) == 2 * 24 * 4 * 64 * 32 * 32
    assert footprint.decoder(checkpoint, 512, 256, 0) == 8 * footprint.decoder(checkpoint, 128, 128, 0)
    assert footprint.encoder(checkpoint, 512, 300, 256) == footprint.encoder(checkpoint, 256, 256, 0)


def test_calls_guess_by_their_sizes(paths: tuple[str, str]) -> None:
    import torch

    checkpoint = describe(weights(paths[0]))
    whole = EncodeImage(checkpoint, Image(np.zeros((64, 48, 3), np.uint8)))
    assert whole.row_bytes == footprint.encoder(checkpoint, 64, 48, 0) > 0
    denoise = Denoise(Model(checkpoint), None, torch.zeros(1, 4, 8, 6), 1.0, 1.0)  # type: ignore[arg-type]
    assert denoise.row_bytes == footprint.unet(checkpoint, 8, 6, 2) > 0
