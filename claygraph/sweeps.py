"""The jobs of a sweep: which combinations of the levels on a command line are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

from claygraph.composer import read
from claygraph.errors import RequestError, nearest
from claygraph.variants import NOT_SETTINGS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

Cell: TypeAlias = dict[str, str]
"""A job's overrides as they are written, by their keys, with ``+`` where they have one."""


@dataclass(frozen=True)
class Axis:
    """A key and what each of its levels is as an override; what is the same in all jobs is not ``swept``."""

    key: str
    overrides: tuple[str, ...]
    swept: bool = True


@dataclass(frozen=True)
class Sweep:
    """What is asked for: axes in the order given, those that advance together, and what to leave out."""

    axes: tuple[Axis, ...]
    zipped: tuple[tuple[str, ...], ...] = ()
    skipped: tuple[Mapping[str, Any], ...] = ()

    @property
    def constants(self) -> Cell:
        """What is the same in all jobs."""
        return {axis.key: axis.overrides[0] for axis in self.axes if not axis.swept}

    def dimensions(self) -> list[list[Cell]]:
        """What is combined: for each axis, or for axes that advance together, what each level sets."""
        groups = {key: group for group in self.zipped for key in group}
        named = {bare(axis.key): axis for axis in self.axes}
        firsts = [axis for axis in self.axes if groups.get(bare(axis.key), (bare(axis.key),))[0] == bare(axis.key)]
        return [_together([named[k] for k in groups.get(bare(axis.key), (bare(axis.key),))]) for axis in firsts]

    def cell(self, levels: Sequence[Cell]) -> Cell | None:
        """The job that has these levels, in the order of the command line; None where it is to be skipped."""
        found = {key: value for level in levels for key, value in level.items()}
        cell = {axis.key: found[axis.key] for axis in self.axes if axis.key in found}
        if any(_matches(cell, wanted) for wanted in self.skipped):
            return None
        return without_the_settings_of_none(cell, [axis.key for axis in self.axes if axis.swept])

    def cells(self) -> Iterator[Cell]:
        """Every combination, the last axis fastest; each once."""
        return distinct(cell for levels in product(*self.dimensions()) if (cell := self.cell(levels)) is not None)


def sweep_of(overrides: Sequence[Override], config: Mapping[str, Any]) -> Sweep:
    """The sweep that overrides ask for, with ``zip`` and ``skip`` from the config.

    Raises:
        RequestError: axes that advance together differ in length, or are not swept; ``skip`` names none.
    """
    axes = {axis.key: axis for axis in map(_axis, overrides) if root(axis.key) not in NOT_SETTINGS}
    keys = [bare(axis.key) for axis in axes.values()]
    zipped = tuple(_groups(config.get("zip") or ()))
    for key in (key for group in zipped for key in group):
        _check_swept("zip", key, [bare(axis.key) for axis in axes.values() if axis.swept])
    _check_lengths(zipped, {bare(axis.key): len(axis.overrides) for axis in axes.values()})
    skipped = tuple(_partial(each) for each in config.get("skip") or ())
    for key in (key for wanted in skipped for key in wanted):
        _check_swept("skip", key, keys)
    return Sweep(tuple(axes.values()), _in_order(zipped, keys), skipped)


def _axis(override: Override) -> Axis:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return Axis(key, (str(override.input_line),), swept=False)
    if not override.is_discrete_sweep():
        raise RequestError(f"{override.input_line}: an interval has no levels; give a list or a range, or use Optuna.")
    levels = tuple(f"{key}={level}" for level in override.sweep_string_iterator())
    if not levels:
        raise RequestError(f"{override.input_line}: there is no such level; give a list, a range or a glob that fits.")
    return Axis(key, levels)


def bare(key: str) -> str:
    """An override's key without the signs before it."""
    return key.lstrip("+~")


def root(key: str) -> str:
    """The top-level entry that an override's key lies in."""
    return re.split("[.@=]", bare(key), maxsplit=1)[0]


def _groups(wanted: Any) -> Iterator[tuple[str, ...]]:
    """Axes that advance together: one list of keys, or several."""
    if not isinstance(wanted, list | tuple):
        raise RequestError(f"zip={wanted!r} is no list; name the axes that advance together, as in +zip=[KEY,KEY].")
    several = [each for each in wanted if isinstance(each, list)]
    yield from (tuple(map(str, each)) for each in several or [list(wanted)] if each)


def _partial(wanted: Any) -> dict[str, Any]:
    if not isinstance(wanted, Mapping):
        raise RequestError(f"skip has {wanted!r}; say what is left out, as in +skip=[{{KEY: LEVEL, KEY: LEVEL}}].")
    return {str(key): value for key, value in wanted.items()}


def _check_swept(what: str, key: str, known: Sequence[str]) -> None:
    if key not in known:
        raise RequestError(f"{what} names {key!r}, which is not swept over{nearest(key, known)}")


def _check_lengths(zipped: Sequence[Sequence[str]], lengths: Mapping[str, int]) -> None:
    for group in zipped:
        if len({lengths[key] for key in group}) > 1:
            told = ", ".join(f"{key} has {lengths[key]}" for key in group)
            raise RequestError(f"zip: axes that advance together need as many levels each, but {told}.")


def _in_order(zipped: Sequence[Sequence[str]], keys: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(sorted(group, key=keys.index)) for group in zipped)


def _together(axes: Sequence[Axis]) -> list[Cell]:
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, level, strict=True)) for level in zip(*(axis.overrides for axis in axes), strict=True)]


def _matches(cell: Cell, wanted: Mapping[str, Any]) -> bool:
    """Whether a job has all the levels that ``wanted`` names; of a list any."""
    values = {bare(key): read(override).value for key, override in cell.items()}
    return all(values.get(key) in (each if isinstance(each, list) else [each]) for key, each in wanted.items())


def without_the_settings_of_none(cell: Cell, changed: Sequence[str]) -> Cell:
    """A job without the settings of what it takes out: with ``controlnet=none`` there is no ``controlnet.strength``."""
    gone = tuple(f"{key.rpartition('@')[2]}." for key in changed if cell.get(key) == f"{key}=none" and "." not in key)
    return {key: value for key, value in cell.items() if not bare(key).startswith(gone)} if gone else cell


def distinct(cells: Iterator[Cell], same: Callable[[Cell], Any] = lambda cell: tuple(cell.items())) -> Iterator[Cell]:
    """The first of all jobs that are the same."""
    seen = set()
    for cell in cells:
        if (key := same(cell)) not in seen:
            seen.add(key)
            yield cell
