"""A composed config and its variants: what differs between the jobs of a sweep is kept, the rest is shared.

OmegaConf takes milliseconds to copy and resolve a config, and a sweep has thousands that differ in a few values. So one
config is taken apart once, into its top-level *sections*; a variant sets values in it, and only the sections that these
reach, directly or through ``${...}``, are resolved anew. What comes out equals OmegaConf's own resolution.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from claygraph.plain import LINK, MISSING, is_plain, roots, with_

if TYPE_CHECKING:
    from omegaconf import DictConfig

Path: TypeAlias = tuple[str, ...]
Changes: TypeAlias = Mapping[Path, Any]

NOT_SETTINGS = ("hydra", "ablation", "skip", "zip")  # they say how to compose and sweep, and are in no job


Config: TypeAlias = "DictConfig | Variant"


class Section:
    """A top-level entry of a config, resolved into plain values. Equal sections of one base are one object."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    @cached_property
    def json(self) -> str:
        """The entry as it stands in the JSON of the whole config."""
        return f"{json.dumps(self.name)}: {json.dumps(self.value, sort_keys=True, default=str)}"


class Base:
    """A config as it was composed. ``touched`` are paths that it got values at which a job may set otherwise."""

    def __init__(self, config: DictConfig) -> None:
        from omegaconf import OmegaConf

        self.config = config
        self.touched: frozenset[Path] = frozenset()
        raw: Any = OmegaConf.to_container(config, resolve=False)
        self.raw = {str(key): value for key, value in raw.items() if key not in NOT_SETTINGS}
        self.known: dict[tuple[str, str], Section] = {}
        self.links = {name: self._closure(name) for name in self.raw}
        self._open: set[str] = set()
        self._reached: dict[frozenset[str], set[str]] = {}
        self._settable: dict[Path, bool] = {}

    def variant(self, changes: Changes | None = None) -> Variant:
        """The config with these values set."""
        return Variant(self, dict(changes or {}))

    def settable(self, path: Path, value: Any) -> bool:
        """Whether OmegaConf does no more than put the value where a plain one is: no merge, no conversion, no error."""
        if path not in self._settable:
            self._settable[path] = ".".join(path) not in self.groups and self._holds_a_plain_value(path)
        return self._settable[path] and is_plain(value)

    def _holds_a_plain_value(self, path: Path) -> bool:
        from omegaconf import AnyNode, ListConfig

        node: Any = self.config
        for key in path[:-1]:
            node = node._get_node(key, validate_access=False) if _is_open(node) else None
        return _is_open(node) and type(node._get_node(path[-1], validate_access=False)) in (AnyNode, ListConfig)

    @cached_property
    def groups(self) -> dict[str, str]:
        """The choice made in each config group."""
        return dict(self.config.hydra.runtime.choices) if "hydra" in self.config else {}

    def _closure(self, name: str, seen: frozenset[str] = frozenset()) -> frozenset[str] | None:
        """The sections that an entry's value depends on, itself included; None where that cannot be told."""
        if name in seen:
            return seen
        found: frozenset[str] | None = seen | {name}
        for root in roots(self.raw.get(name)):
            found = self._closure(root, found) if found is not None and root else None
        return found

    def reached(self, changes: Changes) -> set[str]:
        """The sections whose value may depend on what is set."""
        set_below = frozenset(path[0] for path in changes)
        if set_below not in self._reached:
            near = {name for name, links in self.links.items() if links is None or not set_below.isdisjoint(links)}
            self._reached[set_below] = near
        return self._reached[set_below]

    def untouched(self, name: str) -> Section:
        """An entry that nothing reaches which is set."""
        return self.known.get((name, "{}")) or self.section(name, {})

    def section(self, name: str, changes: Changes) -> Section:
        """An entry with the values set that it depends on."""
        links = self.links[name]
        ours = {path: value for path, value in changes.items() if links is None or path[0] in links}
        key = name, repr(ours)  # 1, 1.0 and True are equal, but no equal settings
        if key not in self.known:
            self.known[key] = Section(name, self._resolve(name, ours))
        return self.known[key]

    def _resolve(self, name: str, changes: Changes) -> Any:
        self._open.add(name)
        try:
            return self._linked(self._patched(name, changes), changes)
        except LookupError:
            return self._by_omegaconf(name, changes)
        finally:
            self._open.discard(name)

    def _patched(self, name: str, changes: Changes) -> Any:
        value = self.raw[name]
        for path, new in changes.items():
            if path[0] == name:
                value = with_(value, path[1:], new)
        return value

    def _linked(self, value: Any, changes: Changes) -> Any:
        """A value with its links followed; ``LookupError`` where that is OmegaConf's to do."""
        if isinstance(value, dict):
            return {key: self._linked(each, changes) for key, each in value.items()}
        if isinstance(value, list):
            return [self._linked(each, changes) for each in value]
        if not isinstance(value, str) or "$" not in value:
            return value
        if whole := LINK.fullmatch(value):
            return self._at(whole[1].split("."), changes)
        if "$" in LINK.sub("", value) or "\\" in value:
            raise LookupError(value)
        return LINK.sub(lambda link: self._text(link[1].split("."), changes), value)

    def _at(self, path: list[str], changes: Changes) -> Any:
        if path[0] in self._open or path[0] not in self.raw:
            raise LookupError(path)
        value = self.section(path[0], changes).value
        for key in path[1:]:
            if not isinstance(value, dict):
                raise LookupError(path)
            value = value[key]
        if value == MISSING:
            raise LookupError(path)
        return value

    def _text(self, path: list[str], changes: Changes) -> str:
        value = self._at(path, changes)
        if not isinstance(value, str):
            raise LookupError(path)
        return value

    def _by_omegaconf(self, name: str, changes: Changes) -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.to_container(self.composed(changes), resolve=True)[name]  # type: ignore[call-overload, index]

    def composed(self, changes: Changes) -> DictConfig:
        """The config with values set, by OmegaConf itself."""
        from omegaconf import OmegaConf, open_dict

        config = deepcopy(self.config)
        with open_dict(config):
            config.pop("hydra", None)
        for path, value in changes.items():
            OmegaConf.update(config, ".".join(path), value)
        return config


class Variant(Mapping[str, Any]):
    """A base with some values set; its entries are resolved and plain, and no one's to change."""

    def __init__(self, base: Base, changes: Changes) -> None:
        self.base, self.changes = base, changes

    def having(self, **values: Any) -> Variant:
        """A variant with further top-level values."""
        return Variant(self.base, {**self.changes, **{(name,): value for name, value in values.items()}})

    def sections(self) -> dict[str, Section]:
        """All sections by name."""
        base, reached = self.base, self.base.reached(self.changes)
        return {n: base.section(n, self.changes) if n in reached else base.untouched(n) for n in base.raw}

    def json(self, but: Collection[str] = ()) -> str:
        """The resolved config as JSON with its keys in order, some of the outermost left out."""
        return "{" + ", ".join(each.json for name, each in sorted(self.sections().items()) if name not in but) + "}"

    def at(self, key: str) -> Any:
        """The value under a dotted key; raises ``KeyError`` where there is none."""
        value: Any = self
        for part in key.split("."):
            if not isinstance(value, Mapping):
                raise KeyError(key)
            value = value[part]
        return value

    def __getitem__(self, name: str) -> Any:
        if name not in self.base.raw:
            raise KeyError(name)
        return self.base.section(name, self.changes).value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self.base.raw:
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.base.raw)

    def __len__(self) -> int:
        return len(self.base.raw)


def variant_of(config: Config) -> Variant:
    """A config as a variant: itself, or of OmegaConf's the one that changes nothing."""
    return config if isinstance(config, Variant) else Base(config).variant()


def _is_open(node: Any) -> bool:
    """Whether a node is a mapping that entries are put into as they are."""
    from omegaconf import DictConfig

    plain = type(node) is DictConfig and not node._is_none() and not node._is_interpolation()
    return plain and not node._is_missing() and not node._get_flag("readonly")
