"""Runs of the whole graph for the evaluation: overrides and a picture in, pixels out, all in one scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from claygraph.memory import Memory
from claygraph.plan import graph_of
from claygraph.scheduler import Scheduler

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Run:
    """One picture to make: the file it starts from, its seed, and overrides as on the command line."""

    image: str
    overrides: tuple[str, ...] = ()
    seed: int = 0


def make(runs: Sequence[Run]) -> Pixels:
    """The decoded pictures [N,H,W,3], in order; all runs must give one size.

    Raises the error of the first run that fails.
    """
    graphs = [graph_of(config) for config in _configs(runs)]
    outcomes = list(Scheduler(graphs, Memory(batch=8), threads=1).run())
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return np.stack([outcome.values["decode"].pixels for outcome in outcomes])


def _configs(runs: Sequence[Run]) -> list[Any]:
    """A config for each run, without the stage that saves; composed once for each set of overrides."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("claygraph.conf", version_base="1.3"):
        composed = {o: compose("config", [*o, "~save"]) for o in dict.fromkeys(run.overrides for run in runs)}
    configs = []
    for run in runs:
        config = composed[run.overrides].copy()
        config.image, config.name, config.sampler.seed = run.image, Path(run.image).stem, run.seed
        configs.append(config)
    return configs


def write(pictures: Pixels, folder: Path, name: str) -> list[str]:
    """Save pictures as PNG and give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{number:03d}.png" for number in range(len(pictures))]
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]
