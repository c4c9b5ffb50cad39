"""Hydra's and OmegaConf's errors as one sentence with the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from claygraph.errors import nearest
from claygraph.help import ADDED, choices, conf_folder, groups


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """One sentence about why a config could not be composed from these arguments."""
    text = f"{error}\n{error.__cause__ or ''}"
    for pattern, say in _PATTERNS.items():
        if found := re.search(pattern, text):
            return str(say(*found.groups())) + (f" (in: {' '.join(arguments)})." if say is _bad_syntax else "")
    first = " ".join(line.strip() for line in str(error).splitlines()[:2])
    return f"{first.rstrip('.')} (in: {' '.join(arguments)})."


def _no_key(key: str) -> str:
    return f"'{key}' is not a setting{_close(key)} A new one is added with +{key}=VALUE."


def _no_group(group: str) -> str:
    if group in ADDED:
        return f"'{group}' is added to a sweep: -m +{group}=CHOICE, one of {', '.join(choices(group))}."
    return f"'{group}' is not a config group{nearest(group, groups())}"


def _no_choice(group: str, choice: str, known: str = "") -> str:
    names = [line.strip() for line in known.splitlines() if line.strip()] or _choices(group)
    return f"{group}={choice} is not a choice of {group}{nearest(choice, names)}"


def _nothing_to_delete(key: str) -> str:
    return f"'~{key}' takes nothing away: there is no '{key}'{_close(key)}"


def _bad_syntax() -> str:
    return "an override cannot be read; write KEY=VALUE, and quote a value with spaces or brackets: 'key=\"a b\"'"


def _choices(group: str) -> list[str]:
    return choices(group) if group in groups() else []


def _close(key: str) -> str:
    """The nearest known setting: among those of the same group where there is one, else among all."""
    group = key.partition(".")[0]
    known = [name for name in settings() if name.partition(".")[0] == group]
    return nearest(key, known or settings())


def settings() -> list[str]:
    """Every setting of the shipped configs, as it is spelt in an override."""
    files = [(group, choice) for group in groups() for choice in choices(group)]
    inside = [key for group, choice in files for key in _keys(_read(f"{group}/{choice}.yaml"), _place(group, choice))]
    return sorted({*groups(), *inside, *_keys(_read("config.yaml"))} - {"hydra", "defaults"})


def _place(group: str, choice: str) -> str:
    """Where the keys of a choice go: below its group, or where its first line says."""
    first = (conf_folder() / group / f"{choice}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    package = first.removeprefix("# @package ") if first.startswith("# @package ") else group
    return "" if package == "_global_" else f"{package}."


def _keys(node: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in node.items():
        if str(name) in ("defaults", "hydra"):
            continue
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{path}{name}.")


def _read(name: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((conf_folder() / name).read_text(encoding="utf-8")) or {}


_PATTERNS: dict[str, Any] = {
    r"Could not override '([^']+)'\.\s*No match in the defaults list": _no_group,
    r"Could not override '([^']+)'": _no_key,
    r"(?s)Could not find '(?:[^'/]*/)*([^'/]+)/([^'/]+)'"
    r"\s*(?:Available options in '[^']+':\n(.*?))?(?:\n\s*Config search path|$)": _no_choice,
    r"Could not load '([^'/]+)/([^']+)'": _no_choice,  # one of several, as in metric=[a,b]
    r"Key '([^']+)' is not in struct": _no_key,
    r"Could not delete[^']*'([^']+)' does not exist": _nothing_to_delete,
    r"(?:missing EQUAL|no viable alternative|mismatched input|extraneous input|token recognition)[^\n]*": _bad_syntax,
}
