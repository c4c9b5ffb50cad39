"""From a resolved mapping of settings to the stage that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields
from importlib import import_module
from typing import Any

from claygraph.errors import ClaygraphError, RequestError, nearest
from claygraph.stage import Stage

_makers: dict[str, Callable[..., Stage]] = {}


def make_stage(name: str, settings: Mapping[str, Any]) -> Stage:
    """The stage that ``_target_`` names, with the other settings; ``inputs`` are not its own.

    Raises:
        RequestError: it cannot be made, with the setting that is at fault.
    """
    target = str(settings["_target_"])
    own = {str(key): value for key, value in settings.items() if key != "inputs"}
    if target in _makers and _is_plain(own, "_target_"):
        with suppress(Exception):  # Hydra is to say why
            return _makers[target](**{key: deepcopy(value) for key, value in own.items() if key != "_target_"})
    return _by_hydra(name, target, own)


def _by_hydra(name: str, target: str, settings: Mapping[str, Any]) -> Stage:
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate

    try:
        made = instantiate(settings, _convert_="all")
    except InstantiationException as error:
        raise RequestError(_why(name, target, settings, error)) from error
    if not isinstance(made, Stage):
        raise RequestError(f"stage '{name}': _target_={target!r} is not a claygraph.stage.Stage.")
    if _class_of(maker := get_object(target)):  # from now on it is called directly, which takes a tenth of the time
        _makers[target] = maker
    return made


def _is_plain(value: Any, *special: str) -> bool:
    """Whether nothing in a value means anything to Hydra."""
    if isinstance(value, Mapping):
        return all(key in special or (str(key)[:1] != "_" and _is_plain(each)) for key, each in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or ("$" not in value and value != "???")


def _class_of(maker: Any) -> type[Stage] | None:
    """The stage class that a target is, or whose class method it is."""
    kind = getattr(maker, "__self__", maker)
    return kind if isinstance(kind, type) and issubclass(kind, Stage) else None


def _why(name: str, target: str, settings: Mapping[str, Any], error: Exception) -> str:
    """One sentence about a stage that could not be made."""
    cause = error.__cause__ or error
    if isinstance(cause, ClaygraphError):
        return f"stage '{name}': {cause}"
    if isinstance(cause, TypeError) and (known := _settings_of(target)):
        odd = [key for key in settings if key not in {*known, "_target_"}]
        if odd:
            return f"stage '{name}' has no setting '{odd[0]}'{nearest(odd[0], known)}"
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    if reason.startswith("Error loading"):
        return f"stage '{name}': _target_={target!r} cannot be imported: {_not_importable(target)}"
    return f"stage '{name}' ({target}) cannot be made: {reason}"


def _not_importable(target: str) -> str:
    module, _, name = target.rpartition(".")
    try:
        found = import_module(module)
    except Exception as error:  # whatever a plug-in raises while it is imported is its fault to tell
        return f"{type(error).__name__}: {error}."
    return f"module {module!r} has no {name!r}{nearest(name, [key for key in vars(found) if key[:1].isupper()])}"


def _settings_of(target: str) -> list[str]:
    from hydra.utils import get_object

    try:
        kind = _class_of(get_object(target))
    except Exception:  # the target itself is at fault, and that is told elsewhere
        return []
    return [item.name for item in fields(kind)] if kind else []
