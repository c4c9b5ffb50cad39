"""What the parity sections share: claygraph's stages on a set's weights, driven one call at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from claygraph.diffusion import noise
from claygraph.errors import SettingError
from claygraph.memory import Memory
from claygraph.stage import Stage, ports
from claygraph.stages.checkpoint import LoadCheckpoint
from claygraph.values import Conditioning, Image, Latent, Model, Prompt
from tests.parity_reference import DELIBERATE, Array, Case, Unsupported

Watch = Callable[[Any, Any], None]


@dataclass
class World:
    """The set's weights as claygraph sees them, and which deliberate differences the case at hand has shown."""

    weights: Path
    memory: Memory = field(default_factory=lambda: Memory("cpu", "float32", 1))
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def model(self) -> Model:
        """The set's checkpoint."""
        folder = self.weights / "base"
        config = folder / "config"
        found: Model = LoadCheckpoint(only(folder, "*.safetensors"), str(config) if config.is_dir() else None).run()
        return found

    def differs(self, name: str) -> None:
        """Say that the case shows one of the deliberate differences."""
        if name not in DELIBERATE:
            raise KeyError(name)
        if name not in self.differences:
            self.differences.append(name)

    def run(self, stage: Stage, watch: Watch | None = None, /, **inputs: Any) -> Any:
        """A stage's value; ``watch`` is told of every device call and its value."""
        task = stage.run(**inputs)
        return drive(task, self.memory, watch) if inspect.iscoroutine(task) else task


def drive(task: Any, memory: Memory, watch: Watch | None = None) -> Any:
    """The result of a coroutine whose device calls run alone, one after another."""
    value = None
    try:
        while True:
            call = task.send(value)
            (value,) = call.run_batch([call], memory)
            if watch:
                watch(call, value)
    except StopIteration as done:
        return done.value


def only(folder: Path, pattern: str) -> str:
    """The one file of a folder that matches."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise Unsupported(f"the set holds no {folder.name}/{pattern}")
    return str(found[0])


def make(kind: type[Stage], **settings: Any) -> Any:
    """A stage with these settings; ``Unsupported`` where it has no such setting or does not know the value."""
    known = {item.name for item in fields(kind)}
    if unknown := [name for name in settings if name not in known]:
        raise Unsupported(f"{kind.__name__} has no setting {', '.join(sorted(unknown))}")
    try:
        return kind.of(**settings) if hasattr(kind, "of") else kind(**settings)
    except SettingError as error:
        raise Unsupported(str(error)) from error


def has_port(kind: type[Stage], name: str) -> bool:
    """Whether a stage class has an input of that name."""
    return name in ports(kind)


def setting_of(kind: type[Stage], *names: str) -> str:
    """The first of these names that is a setting of the stage class."""
    known = {item.name for item in fields(kind)}
    for name in names:
        if name in known:
            return name
    raise Unsupported(f"{kind.__name__} has no setting {' or '.join(names)}")


def known_inputs(case: Case, *names: str) -> None:
    """Raise ``Unsupported`` for an input no adapter reads: it may matter."""
    usual = {"positive", "negative", "positive_arrays", "negative_arrays", "initial_noise", "latent_in"}
    if odd := sorted(set(case.inputs) - usual - set(names)):
        raise Unsupported(f"nothing here reads the input {', '.join(odd)}")


def conditioning(case: Case, half: str) -> Conditioning:
    """A recorded encoded prompt: that of the case or the section's own."""
    short = {"positive": "pos", "negative": "neg"}[half]
    hidden, pooled = case.inputs.get(f"{half}_arrays") or (f"inputs/{short}_cond", f"inputs/{short}_pooled")
    return Conditioning(case.array(hidden)[0], case.array(pooled)[0])


def prompt(case: Case) -> Prompt:
    """The case's prompt, as it was encoded when it was recorded."""
    return Prompt(conditioning(case, "positive"), conditioning(case, "negative"))


def latents(case: Case) -> list[Latent]:
    """The latents that went in, one for each picture of the batch."""
    return [Latent(item) for item in case.array(case.inputs["latent_in"])]


def image(case: Case, name: str) -> Image:
    """A recorded uint8 picture."""
    return Image(case.array(name).reshape(case.array(name).shape[-3:]))


def as_mask(array: Array) -> Any:
    """A float mask 0..1 as a picture of whole levels."""
    levels = np.rint(255 * array.reshape(array.shape[-2:])).astype(np.uint8)
    return Image(np.repeat(levels[:, :, None], 3, axis=2))


def pixels(array: Array) -> Array:
    """A float picture 0..1 in whole levels, cut off as it is when saved."""
    return np.clip(255.0 * np.asarray(array, np.float64), 0, 255).astype(np.uint8)


class Draws:
    """Recorded step noise of one picture, handed out by its sigmas or else in its order."""

    def __init__(self, case: Case, item: int) -> None:
        self.left = list((case.record.get("step_noise") or {}).get("sequence", []))
        self.case, self.item = case, item

    def __call__(self, sigma: float, lower: float) -> torch.Tensor:
        fits = [draw for draw in self.left if near(draw["sigma_from"], sigma) and near(draw["sigma_to"], lower)]
        if not self.left:
            raise Unsupported("the sampler draws more noise than was recorded")
        draw = (fits or self.left)[0]
        self.left.remove(draw)
        return torch.from_numpy(self.case.array(draw["array"])[self.item : self.item + 1])


def near(recorded: float | None, asked: float) -> bool:
    """Whether two sigmas are the same but for rounding."""
    return recorded is not None and abs(float(recorded) - float(asked)) <= 1e-4 * max(abs(float(asked)), 1e-3)


@contextmanager
def replayed(case: Case, item: int, start: bool, steps: bool) -> Iterator[None]:
    """While it lasts, the recorded initial noise (``start``) and step noise (``steps``) are drawn, not claygraph's."""
    given = torch.from_numpy(case.array(case.inputs["initial_noise"])[item : item + 1])
    changes: dict[str, Any] = {}
    if start:
        changes["initial"] = lambda *_, **__: given.clone()
    if steps:
        changes["step_noise"] = lambda *_, **__: Draws(case, item)
    if not changes:
        yield
        return
    with patch.multiple(noise, **changes):
        yield


def one_of(record: Mapping[str, Any], names: Sequence[str], default: Any) -> Any:
    """The first of several spellings that a record holds."""
    return next((record[name] for name in names if name in record), default)
