"""Values as bytes and back: JSON for what is small, raw arrays beside it, never a pickle.

Packed are 8 bytes with the length of the JSON (little-endian), the JSON, and from the next multiple of 64 on the
arrays. The JSON is an object: ``stage`` (who made the value), ``value`` (a tree) and ``arrays`` (of each the dtype, the
shape, where it begins, how many bytes it takes, and whether zlib made them fewer).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from claygraph import values

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kinds = Mapping[str, type]
ALIGN = 64
SAMPLE = 65536
DTYPE = re.compile(r"[<>|][biufc]\d{1,2}")


class DamagedError(Exception):
    """Bytes that are no packed value, or one of a class that is not known here."""


class Block(NamedTuple):
    """Where an array lies among the packed bytes, counted from the end of the JSON."""

    dtype: str
    shape: list[int]
    start: int
    size: int
    deflated: bool


def _title(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _frozen(kind: type) -> bool:
    return bool(kind.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def kinds_in(modules: Iterable[ModuleType]) -> dict[str, type]:
    """The frozen dataclasses of some modules, by full name: the only classes that reading may make."""
    found = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    return {_title(kind): kind for kind in found if is_dataclass(kind) and _frozen(kind)}


VALUES = kinds_in([values])


def pack(value: Any, stage: str = "") -> bytes:
    """A value as bytes: frozen dataclasses, tuples, frozensets, texts, numbers, None and numpy arrays, nested.

    Raises ``TypeError`` where something else is in it.
    """
    arrays: list[NDArray[Any]] = []
    tree = _tree(value, arrays)
    blocks, contents, start = list[Block](), list[bytes](), 0
    for array in arrays:
        content, deflated = _content(array)
        blocks.append(Block(array.dtype.str, list(array.shape), start, len(content), deflated))
        contents.append(content + bytes(-len(content) % ALIGN))
        start += len(contents[-1])
    text = json.dumps({"stage": stage, "value": tree, "arrays": blocks}).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    return b"".join([len(text).to_bytes(8, "little"), text, *contents])


def unpack(packed: bytes, kinds: Kinds = VALUES) -> Any:
    """The value that was packed. Whatever the bytes say, only classes among ``kinds`` are made.

    Raises ``DamagedError`` where they say anything else.
    """
    try:
        size, head = _head(packed)
        arrays = [_array(packed, size, Block(*block)) for block in head["arrays"]]
        return _value(head["value"], arrays, kinds)
    except DamagedError:
        raise
    except Exception as error:  # hostile bytes can make anything raise
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def stage_of(packed: bytes) -> str:
    """The stage that made a packed value; of the bytes only the JSON need be there."""
    try:
        return str(_head(packed)[1]["stage"])
    except Exception as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def _head(packed: bytes) -> tuple[int, dict[str, Any]]:
    size = 8 + int.from_bytes(packed[:8], "little")
    if size > len(packed):
        raise DamagedError("it is cut short")
    return size, dict(json.loads(packed[8:size]))


def _tree(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """What JSON can say of a value; its arrays are added to ``arrays``."""
    import numpy as np

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        arrays.append(np.asarray(value))
        return {"scalar" if isinstance(value, np.generic) else "array": len(arrays) - 1}
    if type(value) in (tuple, frozenset):
        return {type(value).__name__: [_tree(each, arrays) for each in value]}
    if is_dataclass(value) and not isinstance(value, type) and _frozen(type(value)):
        made = {item.name: _tree(getattr(value, item.name), arrays) for item in fields(value) if item.init}
        return {"class": _title(type(value)), "fields": made}
    raise TypeError(f"{type(value).__name__} cannot be stored")


def _value(tree: Any, arrays: list[NDArray[Any]], kinds: Kinds) -> Any:
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise DamagedError("it holds a bare list")
        return tree
    if "class" in tree:
        return _made(str(tree["class"]), dict(tree["fields"]), arrays, kinds)
    ((tag, content),) = tree.items()
    if tag in ("array", "scalar"):
        return arrays[content] if tag == "array" else arrays[content][()]
    return {"tuple": tuple, "frozenset": frozenset}[tag](_value(each, arrays, kinds) for each in content)


def _made(name: str, given: dict[str, Any], arrays: list[NDArray[Any]], kinds: Kinds) -> Any:
    kind = kinds.get(name)
    if kind is None:
        raise DamagedError(f"{name!r} is no value class of claygraph or of a stage in use")
    if set(given) != {item.name for item in fields(kind) if item.init}:
        raise DamagedError(f"{name} has other fields here")
    return kind(**{field: _value(each, arrays, kinds) for field, each in given.items()})


def _content(array: NDArray[Any]) -> tuple[bytes, bool]:
    """An array's bytes, and whether they are deflated: where the beginning of a picture gets less than half as long."""
    raw = array.tobytes()
    small = array.dtype.itemsize == 1 and 2 * len(zlib.compress(raw[:SAMPLE], 1)) < len(raw[:SAMPLE])
    return (zlib.compress(raw, 1), True) if small else (raw, False)


def _array(packed: bytes, size: int, block: Block) -> NDArray[Any]:
    import numpy as np

    if not DTYPE.fullmatch(block.dtype) or any(side < 0 for side in block.shape):
        raise DamagedError(f"it holds an array of {block.dtype!r} {block.shape!r}")
    dtype = np.dtype(block.dtype)
    start, wanted = size + block.start, prod(block.shape) * dtype.itemsize
    raw: Any = memoryview(packed)[start : start + block.size]
    if block.deflated:
        raw = zlib.decompressobj().decompress(raw, wanted + 1)
    if block.start < 0 or len(raw) != wanted:
        raise DamagedError("an array is cut short")
    return np.frombuffer(raw, dtype).reshape(block.shape)
