"""Every stage there is: built in, made by a config of an installed package, or made by one of your own configs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from claygraph.errors import noting_checks
from claygraph.help import conf_folder, groups, spelled
from claygraph.stage import Stage

BUILT_IN = "claygraph.stages"
MANY = "NAME"


@dataclass(frozen=True)
class Setting:
    """One setting of a stage: how its type and default are written, and what it may be where a check tells."""

    name: str
    kind: str
    default: str = ""
    allowed: str = ""

    def __str__(self) -> str:
        default = f" = {self.default}" if self.default else ""
        return f"{self.name}: {self.kind}{default}" + (f" ({self.allowed})" if self.allowed else "")


@dataclass(frozen=True)
class Entry:
    """A stage class and the config choices that make it, each with its YAML; ``fault`` is why there is no class."""

    target: str
    kind: type[Stage] | None
    fault: str
    choices: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def names(self) -> set[str]:
        """What the entry may be asked for by, in lower case."""
        choices = [choice.lstrip("+") for choice, _ in self.choices]
        names = self.target, self.target.rpartition(".")[2], *choices, *(each.partition("=")[0] for each in choices)
        return {name.lower() for name in names}


def catalogue(folders: Sequence[Path] = ()) -> list[Entry]:
    """Every stage, the built-in ones first; ``folders`` hold configs of one's own."""
    choices: dict[str, list[tuple[str, dict[str, Any]]]] = {target: [] for target in _built_in()}
    for folder in (conf_folder(), *_installed(), *folders):
        for choice, node in _choices(folder):
            choices.setdefault(str(node["_target_"]).removesuffix(".of"), []).append((choice, node))
    return [Entry(target, *_load(target), tuple(made)) for target, made in choices.items()]


def _built_in() -> Iterator[str]:
    for module in iter_modules(import_module(BUILT_IN).__path__, f"{BUILT_IN}."):
        for name, kind in vars(import_module(module.name)).items():
            ours = isinstance(kind, type) and issubclass(kind, Stage) and kind.__module__ == module.name
            if ours and not inspect.isabstract(kind):
                yield f"{module.name}.{name}"


def _installed() -> Iterator[Path]:
    """Config folders of installed packages, by the same entry points that Hydra finds them by."""
    for point in entry_points(group="claygraph.conf"):
        spec = find_spec(point.value)
        yield from map(Path, (spec.submodule_search_locations or ()) if spec else ())


def _choices(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every config that makes a stage, as it is chosen on the command line, with the YAML of the stage."""
    for file in sorted(folder.rglob("*.yaml")):
        choice = _spelled(file.parent.relative_to(folder).as_posix(), file.stem)
        yield from ((choice, node) for node in _nodes(_content(file)))


def _content(file: Path) -> Any:
    """A config's YAML, on top of the neighbours in its group that its defaults name; none where it cannot be read."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # told when it is composed, by the name of its file
        return None
    if not isinstance(content, dict):
        return content
    named = [n for n in content.pop("defaults", None) or () if isinstance(n, str) and n not in ("_self_", file.stem)]
    below = [found for name in named if isinstance(found := _content(file.with_name(f"{name}.yaml")), dict)]
    return {key: value for part in (*below, content) for key, value in part.items()}


def _spelled(group: str, name: str) -> str:
    """A choice as an override; a group that the default graph does not have is added to it."""
    if group == ".":
        return f"--config-name={name}"
    return f"{spelled(group)}={name}" if group in groups() else f"+{group}={name}"


def _nodes(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict):
        if "_target_" in content:
            yield content
        for node in content.values():
            yield from _nodes(node)


def _load(target: str) -> tuple[type[Stage] | None, str]:
    """The class of that name, or why there is none."""
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except Exception as error:  # whatever a plug-in raises while it is imported is its fault to tell
        return None, f"cannot be imported: {type(error).__name__}: {error}"
    if not (isinstance(kind, type) and issubclass(kind, Stage)):
        return None, "is no claygraph.stage.Stage"
    return kind, ""


def settings_of(kind: type[Stage]) -> list[Setting]:
    """A stage's settings as configs spell them: its fields, or what its ``of`` takes in their place."""
    allowed = _allowed(kind)
    own = [Setting(item.name, _type(item.type), _default(item), allowed.get(item.name, "")) for item in fields(kind)]
    taken = _taken_by_of(kind)
    if len(taken) == 1 and (many := taken.get(MANY)):
        return [many]
    return [taken.get(setting.name, setting) for setting in own]


def _taken_by_of(kind: type[Stage]) -> dict[str, Setting]:
    """The parameters of ``of``, by name; any number of alike ones under ``MANY``."""
    maker = getattr(kind, "of", None)
    taken = inspect.signature(maker).parameters.values() if maker else ()
    names = {p.name: MANY if p.kind is p.VAR_KEYWORD else p.name for p in taken}
    defaults = {p.name: "" if p.default is p.empty else repr(p.default) for p in taken}
    return {names[p.name]: Setting(names[p.name], _type(p.annotation), defaults[p.name]) for p in taken}


def _type(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default(item: Any) -> str:
    if item.default is not MISSING:
        return repr(item.default)
    return "" if item.default_factory is MISSING else repr(item.default_factory())


def _allowed(kind: type[Stage]) -> dict[str, str]:
    """What the stage's own checks allow while its settings are the defaults; of ``edges.low`` the key is ``low``."""
    blanks = {item.name: "" for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    with noting_checks() as noted, suppress(Exception):  # a blank may be no setting; what was noted before it stays
        kind(**blanks)
    return {setting.rpartition(".")[2]: allowed for setting, allowed in noted.items()}
