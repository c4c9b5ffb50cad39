"""Compose the jobs of a sweep: by Hydra once for each distinct structure, by setting plain values for the rest."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from claygraph.plain import is_plain
from claygraph.variants import Base, Path, Variant

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import DictConfig

NUMBER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)=(-?(?:0|[1-9]\d*)(\.\d+)?)")
"""An override that Hydra's grammar reads as a number under a dotted path, which is no config group."""


class Compose(Protocol):
    """Hydra's own composition of some overrides."""

    def __call__(self, overrides: list[str]) -> DictConfig: ...


class Read(NamedTuple):
    """An override as it is read: which value it sets where, and whether it is more than that.

    ``structural`` are those that Hydra has to carry out, ``adds`` of these the ones that add one plain value.
    """

    text: str
    path: Path
    value: Any
    structural: bool = False
    adds: bool = False


class Composer:
    """Makes variants from overrides; each equals what Hydra would compose from them.

    ``compose`` is Hydra's. ``master``, a config composed from ``overrides`` before, saves one composition.
    """

    def __init__(self, compose: Compose, master: DictConfig | None = None, overrides: Sequence[str] = ()) -> None:
        self.compose = compose
        self.bases: dict[tuple[str, ...], list[Base]] = {}
        self.added: set[Path] = set()
        if master is not None:
            self._start_from(master, [read(text) for text in overrides if not is_sweep(text)])

    def variant(self, overrides: Sequence[str]) -> Variant:
        """The config of these overrides.

        Raises:
            HydraException: as Hydra itself does where they cannot be composed.
        """
        reads = [read(text) for text in overrides]
        structural = {place for place, each in enumerate(reads) if each.structural}
        base = None
        while base is None:
            structural |= {place for place in range(len(reads)) if _overtaken(place, reads, structural)}
            base, more = self._attempt(reads, structural)
            structural |= more
        values = {each.path: each.value for place, each in enumerate(reads) if place not in structural}
        added = {reads[place].path: reads[place].value for place in structural if self._is_added(reads[place])}
        return base.variant({**added, **values})

    def _attempt(self, reads: Sequence[Read], structural: set[int]) -> tuple[Base | None, set[int]]:
        """A base in which all others are plain values; or those of them that Hydra has to carry out as well."""
        rest = {place: each for place, each in enumerate(reads) if place not in structural}
        try:
            base = self._base([reads[place] for place in sorted(structural)], [each.path for each in rest.values()])
        except Exception:
            if not rest:
                raise
            likely = {place for place, each in rest.items() if len(each.path) == 1}  # a group choice that is needed
            return None, likely or set(rest)
        odd = {place for place, each in rest.items() if not base.settable(each.path, each.value)}
        return (None, odd) if odd else (base, odd)

    def _base(self, structural: list[Read], values: Collection[Path]) -> Base:
        for base in self.bases.get(self._shape(structural), ()):
            if base.touched.issubset(values):
                return base
        base = Base(self.compose([each.text for each in structural]))
        self.added |= {each.path for each in structural if each.adds and base.settable(each.path, each.value)}
        self.bases.setdefault(self._shape(structural), []).append(base)
        return base

    def _is_added(self, each: Read) -> bool:
        return each.adds and each.path in self.added

    def _shape(self, structural: Sequence[Read]) -> tuple[str, ...]:
        """What tells bases apart: of an addition of a plain value only that there is one."""
        return tuple(each.text.partition("=")[0] if self._is_added(each) else each.text for each in structural)

    def _start_from(self, master: DictConfig, reads: Sequence[Read]) -> None:
        base = Base(master)
        structural = [each for each in reads if each.structural or ".".join(each.path) in base.groups]
        base.touched = frozenset(each.path for each in reads if each not in structural)
        self.bases[self._shape(structural)] = [base]


def _overtaken(place: int, reads: Sequence[Read], structural: Collection[int]) -> bool:
    """Whether a later override that Hydra carries out sets the same value, or something above or below it."""
    path, later = reads[place].path, [reads[other] for other in structural if other > place]
    paths = [each.path for each in later if len(each.path) > 1 or isinstance(each.value, dict)]  # else a group choice
    return place not in structural and any(path[: len(each)] == each[: len(path)] for each in paths)


def read(text: str) -> Read:
    """An override, by Hydra's own parser."""
    number = NUMBER.fullmatch(text)
    if not number:
        return _parsed(text)
    return Read(text, tuple(number[1].split(".")), float(number[2]) if number[3] else int(number[2]))


@lru_cache(maxsize=65536)
def _parsed(text: str) -> Read:
    [override] = parser().parse_overrides([text])
    key, value = override.key_or_group, override.value()
    plain = override.package is None and not override.is_sweep_override() and is_plain(value) and "[" not in key
    structural = not plain or bool(re.match("[+~]|hydra[./]", text))
    return Read(text, tuple(key.split(".")), value, structural, plain and text[0] == "+")


def is_sweep(text: str) -> bool:
    """Whether an override has several values, one for each job."""
    return not NUMBER.fullmatch(text) and parser().parse_overrides([text])[0].is_sweep_override()


@cache
def parser() -> OverridesParser:
    """Hydra's parser of overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()
