"""A picture does not depend on what it was batched with: mixed requests, together and alone, on the miniature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from claygraph import files
from claygraph.diffusion.calls import DecodeLatent, EmbedImages, EncodeImage, EncodeText
from claygraph.diffusion.describe import describe
from claygraph.diffusion.prediction import table_of
from claygraph.diffusion.sampling import Run, sample
from claygraph.diffusion.schedules import sigmas_for
from claygraph.graph import build
from claygraph.memory import Memory
from claygraph.scheduler import Record, Scheduler
from claygraph.stage import Stage
from claygraph.values import Checkpoint, Control, Image, ImagePrompt, Latent, Lora, Model, Prompt, Weights

LATENTS, PIXELS = 1e-5, 1e-3
LONG = ", ".join(f"a small clay figure number {n}" for n in range(16))
ADAPTER, ENCODER, CANNY = "ip_adapter/ip-adapter_mini.safetensors", "ip_adapter/image_encoder", "controlnet/canny"
CLAY, TOY = "lora/clay.safetensors", "lora/toy.safetensors"


@dataclass(frozen=True)
class Made:
    latent: Latent
    picture: Image


def bundled(name: str) -> Weights:
    return Weights(f"miniature:{name}", files.digest(files.locate(f"miniature:{name}")))


@cache
def checkpoint() -> Checkpoint:
    return describe(bundled("checkpoint/clay_mini.safetensors"))


def photo(size: int, seed: int) -> Image:
    """A shaded disc with some noise."""
    y, x = np.mgrid[:size, :size] / size
    disc = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1)[..., None] * [200, 90, 30]
    noise = np.random.default_rng(seed).normal(0, 6, (size, size, 3))
    return Image(np.clip(disc + 40 + 60 * y[..., None] + noise, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Request(Stage):
    """One picture, and all that may differ between two of them."""

    size: int = 64
    seed: int = 0
    sampler: str = "euler"
    steps: int = 4
    cfg: float = 2.0
    text: str = "a cup, clay"
    loras: tuple[tuple[str, float, float], ...] = ()
    image: tuple[float, float] | None = None
    control: tuple[float, float, float] | None = None

    async def run(self) -> Made:
        base, source = checkpoint(), photo(self.size, self.seed)
        loras = tuple(Lora(bundled(path), model, clip) for path, model, clip in self.loras)
        positive, negative = [await EncodeText(base, loras, text) for text in (self.text, "blurry")]
        model = Model(base, loras, await self.prompts(source), self.controls(source))
        sigmas = sigmas_for("karras", self.steps, 0.5, table=table_of(base))
        latent = await EncodeImage(base, source)
        run = Run(self.sampler, sigmas, self.cfg, self.seed)
        made = await sample(run, model, Prompt(positive, negative), latent)
        return Made(made, await DecodeLatent(base, made))

    async def prompts(self, source: Image) -> tuple[ImagePrompt, ...]:
        if self.image is None:
            return ()
        adapter, encoder = bundled(ADAPTER), bundled(ENCODER)
        tokens, nothing = await EmbedImages(adapter, encoder, (source,)), await EmbedImages(adapter, encoder)
        strength, end = self.image
        return (ImagePrompt(adapter, tokens, nothing, (strength,) * 11, end=end),)

    def controls(self, source: Image) -> tuple[Control, ...]:
        if self.control is None:
            return ()
        edges = np.abs(np.diff(source.pixels.astype(int), axis=1, prepend=0)).sum(2, keepdims=True) > 90
        hint = Image((255 * np.broadcast_to(edges, source.pixels.shape)).astype(np.uint8))
        return (Control(bundled(CANNY), hint, *self.control),)


MIXED = [
    Request(seed=1, sampler="heun", cfg=3.0, loras=((CLAY, 0.8, 1.0),), control=(1.0, 0.0, 1.0)),
    Request(seed=2, sampler="dpmpp_sde", steps=3, cfg=1.0, image=(0.7, 1.0)),
    Request(seed=3, text=LONG, loras=((TOY, 0.5, 0.3), (CLAY, -0.4, 0.0)), image=(0.4, 0.5), control=(0.4, 0.0, 0.5)),
]
MORE = [
    *MIXED,
    Request(seed=4, cfg=1.0, steps=4, loras=((CLAY, 1.2, 0.5), (TOY, 0.3, 1.0)), control=(0.8, 0.4, 1.0)),
    Request(seed=5, sampler="euler_cfg_pp", cfg=1.0, text=""),
    Request(seed=6, sampler="dpmpp_2m", steps=5, text=f"{LONG} {LONG}", image=(-0.1, 1.0), loras=((CLAY, 0.8, 1.0),)),
    Request(
        seed=7, sampler="euler_ancestral", steps=3, cfg=6.0, text="a (cup:1.3), (clay:0.7)", control=(2.0, 0.0, 1.0)
    ),
    Request(seed=8, sampler="dpm_2", steps=3, cfg=0.5, image=(1.0, 0.3), control=(0.5, 0.0, 0.8)),
]


def made(requests: list[Request], memory: Memory) -> tuple[list[Made], list[Record]]:
    """What the scheduler makes of the requests, and their records."""
    graphs = [build({"request": request}) for request in requests]
    scheduler = Scheduler(graphs, memory)
    outcomes = scheduler.run()
    assert [outcome.error for outcome in outcomes] == [None] * len(requests)
    records = [scheduler.records[graph.graph["nodes"]["request"]] for graph in graphs]
    return [outcome.values["request"] for outcome in outcomes], records


def same(together: Made, alone: Made) -> None:
    a, b = together.latent.samples, alone.latent.samples
    assert np.abs(a - b).max() <= LATENTS * np.abs(b).max()
    levels: NDArray[Any] = np.abs(together.picture.pixels.astype(int) - alone.picture.pixels)
    assert levels.max() <= 1
    assert (levels.max(2) > 0).mean() <= PIXELS


def compare(requests: list[Request], batch: int) -> list[Record]:
    memory = Memory("cpu", "float32", batch)
    together, records = made(requests, memory)
    for request, one in zip(requests, together, strict=True):
        [alone], _ = made([request], memory)
        same(one, alone)
    return records


def test_three_requests_with_everything_mixed_are_themselves_alone() -> None:
    records = compare(MIXED, 8)
    assert all(3 in record.batches["denoise"] for record in records)
    assert [set(record.notes.get("lora", {})) for record in records] == [{"beside"}, set(), {"beside"}]


def test_requests_of_one_lora_are_merged_and_the_same_alone() -> None:
    one = Request(sampler="euler", steps=8, cfg=1.0, loras=((CLAY, 0.8, 0.0),))
    other = Request(seed=9, steps=8, cfg=1.0, loras=((CLAY, 0.8, 0.0),), text="a house")
    assert all(record.notes["lora"]["merged"] == 8 for record in compare([one, other], 8))


@pytest.mark.long
@pytest.mark.parametrize(("size", "batch"), [(64, 3), (96, 8), (128, 5)])
def test_many_requests_in_any_batches_are_themselves_alone(size: int, batch: int) -> None:
    some = enumerate(islice(cycle(MORE), 12))
    requests = [replace(one, size=size, seed=n) for n, one in some]
    records = compare(requests, batch)
    assert max(max(record.batches["denoise"]) for record in records) == batch
