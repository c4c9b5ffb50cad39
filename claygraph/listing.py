"""The sub-command ``stages``: what stages there are, and what each takes, makes and can be set to."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from claygraph.catalogue import Entry, catalogue, settings_of
from claygraph.errors import RequestError, nearest
from claygraph.stage import Stage, makes, ports

CONFIG_DIR = ("--config-dir", "-cd")


def stages(arguments: Sequence[str]) -> int:
    """Print every stage, or in full those that are named: by class, config group or ``GROUP=CHOICE``.

    Raises:
        RequestError: a name that is no stage's, or a folder of configs that is not there.
    """
    folders, names = _arguments(list(arguments))
    entries = catalogue(folders)
    if not names:
        _print_all(entries)
    for entry in (entry for name in names for entry in _named(name, entries)):
        print("\n".join([*describe(entry), ""]))
    return 0


def _arguments(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Folders of configs, and names of stages."""
    folders, names = [], []
    while arguments:
        flag, _, value = arguments.pop(0).partition("=")
        if flag in CONFIG_DIR:
            if not value and not arguments:
                raise RequestError(f"{flag} needs a folder of configs: {flag} DIR.")
            folders.append(Path(value or arguments.pop(0)))
        elif flag.startswith("-"):
            raise RequestError(f"stages has no flag {flag!r}; it takes names of stages, and --config-dir DIR.")
        else:
            names.append(f"{flag}={value}" if value else flag)
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise RequestError(f"--config-dir={str(missing[0])!r} is not a folder.")
    return folders, names


def _named(name: str, entries: Sequence[Entry]) -> list[Entry]:
    found = [entry for entry in entries if name.lower().lstrip("+") in entry.names]
    if not found:
        known = {entry.target.rpartition(".")[2] for entry in entries} | {n for entry in entries for n in entry.names}
        raise RequestError(f"'{name}' is no stage{nearest(name, known)}")
    return found


def _signature(kind: type[Stage]) -> str:
    taken = [f"{name}{'' if port.required else '?'}: {_title(port.kind)}" for name, port in ports(kind).items()]
    return f"({', '.join(taken)}) -> {_title(makes(kind))}"


def _title(kind: object) -> str:
    title = kind.__name__ if isinstance(kind, type) else str(kind).replace("claygraph.values.", "")
    return title.removesuffix(" | None")


def _purpose(kind: type[Stage]) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _made_by(entry: Entry) -> str:
    """The choices, those of one group together."""
    groups: dict[str, list[str]] = {}
    for choice, _ in entry.choices:
        group, _, name = choice.partition("=")
        groups.setdefault(group, []).append(name)
    return " ".join(f"{group}={','.join(dict.fromkeys(names))}" for group, names in groups.items())


def _print_all(entries: Sequence[Entry]) -> None:
    """A table on a terminal; elsewhere one line a stage, its columns parted by tabs."""
    rows = [_row(entry) for entry in entries]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", "inputs -> output", "settings", "made by", title="stages", show_lines=True)
    for name, purpose, signature, settings, made_by in rows:
        table.add_row(Text(f"{name}\n{purpose}"), Text(signature), Text(settings.replace("; ", "\n")), Text(made_by))
    Console().print(table)


def _row(entry: Entry) -> tuple[str, str, str, str, str]:
    if entry.kind is None:
        return entry.target, entry.fault, "", "", _made_by(entry)
    settings = "; ".join(str(setting) for setting in settings_of(entry.kind))
    return entry.target, _purpose(entry.kind), _signature(entry.kind), settings, _made_by(entry)


def describe(entry: Entry) -> Iterator[str]:
    """A stage in full, in lines: its class and docstring, inputs, output, settings, and what each choice sets."""
    yield entry.target
    if entry.kind is None:
        yield f"    {entry.fault}"
        return
    yield from (f"    {line}".rstrip() for line in (inspect.getdoc(entry.kind) or "").splitlines())
    yield f"inputs and output: {_signature(entry.kind)}"
    yield "settings:"
    yield from (f"    {setting}" for setting in settings_of(entry.kind))
    yield "made by:"
    for choice, node in entry.choices:
        values = ", ".join(f"{key}={value}" for key, value in node.items() if key != "_target_")
        yield f"    {choice}" + (f": {values}" if values else "")
