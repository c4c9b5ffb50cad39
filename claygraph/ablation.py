"""Designs that say which jobs of a sweep are made: ``+ablation=NAME``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from random import Random
from typing import Any, Protocol

from claygraph.errors import RequestError, check_choice, check_whole
from claygraph.sweeps import Cell, Sweep, distinct, without_the_settings_of_none
from claygraph.variants import Variant

OFF = "none"


class Compose(Protocol):
    """The config that some overrides make."""

    def __call__(self, overrides: Sequence[str]) -> Variant: ...


class Choices(Protocol):
    """The choices of a config group."""

    def __call__(self, group: str) -> Sequence[str]: ...


def cells_of(sweep: Sweep, settings: Mapping[str, Any], compose: Compose, choices: Choices) -> Iterator[Cell]:
    """The jobs of a sweep under a design: its ``kind``, and its own settings.

    Raises:
        RequestError: there is no such design, or it has nothing to work with.
    """
    kind = str(settings.get("kind", "factorial"))
    check_choice("ablation.kind", kind, DESIGNS)
    return DESIGNS[kind](sweep, settings, compose, choices)


def factorial(sweep: Sweep, *_: Any) -> Iterator[Cell]:
    """Every combination."""
    return sweep.cells()


def random(sweep: Sweep, settings: Mapping[str, Any], *_: Any) -> Iterator[Cell]:
    """At most ``n`` of the combinations, drawn by ``seed``, each once."""
    number, seed = settings.get("n", 20), settings.get("seed", 0)
    check_whole("ablation.n", number, 1, 10**6)
    check_whole("ablation.seed", seed, 0, 2**64 - 2)
    return _drawn(sweep, number, Random(seed))


def _drawn(sweep: Sweep, number: int, chance: Random) -> Iterator[Cell]:
    dimensions, seen = sweep.dimensions(), set[tuple[tuple[str, str], ...]]()
    for place in _places(prod(map(len, dimensions)), chance):
        cell = sweep.cell(_levels(dimensions, place))
        if cell is not None and (key := tuple(cell.items())) not in seen:
            seen.add(key)
            yield cell
        if len(seen) == number:
            return


def _places(total: int, chance: Random) -> Iterator[int]:
    """The numbers below ``total`` in a random order, without a list of them where there are very many."""
    if total <= 10**6:
        yield from chance.sample(range(total), total)
        return
    seen = set[int]()
    while len(seen) < total:
        if (place := chance.randrange(total)) not in seen:
            seen.add(place)
            yield place


def _levels(dimensions: Sequence[Sequence[Cell]], place: int) -> list[Cell]:
    """The combination of that number, the last dimension fastest."""
    levels = []
    for dimension in reversed(dimensions):
        place, level = divmod(place, len(dimension))
        levels.append(dimension[level])
    return levels[::-1]


def one_factor(sweep: Sweep, _: Mapping[str, Any], compose: Compose, *__: Any) -> Iterator[Cell]:
    """The default, then every axis by itself, level by level."""
    swept = [levels for levels in sweep.dimensions() if any(key not in sweep.constants for key in levels[0])]
    if not swept:
        raise RequestError("+ablation=one_factor turns one knob at a time, but there is none; add one: KEY=1,2,3.")
    found = (sweep.cell([sweep.constants, level]) for level in ({}, *chain.from_iterable(swept)))
    return distinct((cell for cell in found if cell is not None), _made(compose))


def leave_one_out(sweep: Sweep, _: Mapping[str, Any], compose: Compose, choices: Choices) -> Iterator[Cell]:
    """For each combination: as it is, then without each optional stage and each LoRA in turn."""
    found = (
        without_the_settings_of_none({**cell, **off}, list(off))
        for cell in sweep.cells()
        for off in ({}, *_offs(compose([*cell.values()]), choices))
    )
    return distinct(found, _made(compose))


def _made(compose: Compose) -> Callable[[Cell], str]:
    return lambda cell: compose([*cell.values()]).json()


def _offs(variant: Variant, choices: Choices) -> Iterator[Cell]:
    """What takes out each optional stage of a config, and silences each of its LoRAs."""
    for key, choice in variant.base.groups.items():
        group, _, package = key.partition("@")
        section = variant.get(package or group)
        if not isinstance(section, dict) or "_target_" not in section or choice == OFF:
            continue
        if OFF in choices(group):
            yield {key: f"{key}={OFF}"}
        yield from _silenced(package or group, section)


def _silenced(name: str, section: Mapping[str, Any]) -> Iterator[Cell]:
    """Strength 0 for each LoRA of a stack: a mapping with a ``path`` inside the stage's own."""
    for lora, settings in section.items():
        if isinstance(settings, dict) and "path" in settings:
            keys = [f"{'' if knob in settings else '++'}{name}.{lora}.{knob}" for knob in ("model", "clip")]
            yield {key: f"{key}=0" for key in keys}


DESIGNS: dict[str, Callable[..., Iterator[Cell]]] = {
    "factorial": factorial,
    "leave_one_out": leave_one_out,
    "one_factor": one_factor,
    "random": random,
}
