"""diffusers' model classes without what its packages bring in beside them.

Importing one of them as usual also imports every other model, torch's compiler, peft, accelerate, schedulers, and most
of transformers: several seconds, for ways to load weights that are not used here. So a copy of the classes is made in
which these ways are missing. It is ours alone: whoever imports diffusers later gets the whole of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from inspect import signature
from threading import RLock
from types import ModuleType
from typing import Any

import torch

CLASSES = {
    "UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition",
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "ControlNetModel": "diffusers.models.controlnets.controlnet",
}
EMPTY = ("diffusers.loaders", "diffusers.quantizers", "diffusers.hooks", "accelerate", "torch._dynamo")
"""Packages that hold nothing while the copy is made: empty classes, and functions that return what they are given."""
BARE = tuple(f"diffusers.models.{name}" for name in ("autoencoders", "controlnets", "transformers", "unets"))
"""Packages of which only the modules asked for are imported."""
_LOCK = RLock()
_COPY: dict[str, ModuleType] = {}


def build(name: str, config: Mapping[str, Any]) -> Any:
    """One of ``CLASSES``, by the entries of a config that it knows."""
    with _LOCK:
        kind = _classes()[name]
        known = signature(kind.__init__).parameters
        with _apart():
            return kind(**{key: value for key, value in config.items() if key in known and key != "self"})


def controlnet_like(unet: Any) -> Any:
    """A ControlNet of a UNet's widths and depths, without its weights."""
    with _LOCK:
        kind = _classes()["ControlNetModel"]
        with _apart():
            return kind.from_unet(unet, load_weights_from_unet=False)


@cache
def _classes() -> dict[str, Any]:
    with torch.device("cpu"):  # an import is none of the business of a device that is set for the time being
        if "diffusers" in sys.modules:  # somebody has the whole already
            return _imported()
        try:
            with _apart():
                return _unwrapped(_imported())
        except (ImportError, AttributeError, TypeError):  # another diffusers is built otherwise
            _COPY.clear()
            return _imported()


def _imported() -> dict[str, Any]:
    return {name: getattr(import_module(module), name) for name, module in CLASSES.items()}


def _unwrapped(classes: dict[str, Any]) -> dict[str, Any]:
    """The classes without what is done around each forward pass for peft, which looks for it every time."""
    for kind in classes.values():
        kind.forward = getattr(kind.forward, "__wrapped__", kind.forward)
    return classes


@contextmanager
def _apart() -> Iterator[None]:
    """While it lasts diffusers is our copy, where there is or is to be one; afterwards it is what it was before."""
    if not _COPY and "diffusers" in sys.modules:
        yield
        return
    finder, whole = _Reduced(), _taken(lambda module: _within(module, ("diffusers",)))
    sys.modules.update({name: module for name, module in _COPY.items() if name not in sys.modules})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _COPY.update(_taken(_is_ours))
        sys.modules.update(whole)


def _is_ours(name: str) -> bool:
    """Whether a module is of our copy, or stands in for one."""
    if _within(name, ("diffusers",)):
        return True
    return _within(name, EMPTY) and isinstance(getattr(sys.modules[name].__spec__, "loader", None), _Reduced)


def _taken(wanted: Callable[[str], bool]) -> dict[str, ModuleType]:
    """Modules, taken out of ``sys.modules`` and of the packages they are in."""
    taken = {name: sys.modules[name] for name in list(sys.modules) if wanted(name)}
    for name, module in taken.items():
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        if vars(sys.modules.get(parent, module)).get(child) is module:
            delattr(sys.modules[parent], child)
    return taken


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


class _Reduced(MetaPathFinder, Loader):
    """Finds ``EMPTY`` and ``BARE`` packages, and runs nothing of theirs."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if _within(fullname, EMPTY):
            return ModuleSpec(fullname, self, is_package=True)
        if fullname not in BARE or (real := PathFinder.find_spec(fullname, path, target)) is None:
            return None
        bare = ModuleSpec(fullname, self, is_package=True)
        bare.submodule_search_locations = real.submodule_search_locations
        return bare

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual module will do."""

    def exec_module(self, module: ModuleType) -> None:
        if _within(module.__name__, EMPTY):
            module.__getattr__, module.__version__ = _empty, "0"  # type: ignore[method-assign, attr-defined]


def _empty(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {}) if name.lstrip("_")[:1].isupper() else _given


def _given(value: Any = None, *_: Any, **__: Any) -> Any:
    return value if callable(value) else _given
