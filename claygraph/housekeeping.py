"""``claygraph store``: what is kept, making room, and reading everything once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from time import time

from claygraph.composing import compose_and_run
from claygraph.errors import RequestError, nearest
from claygraph.jobs import Job
from claygraph.sizes import shown
from claygraph.store import Store, open_store

AGES = (("day", 86400), ("h", 3600), ("min", 60), ("s", 1))


def store(arguments: Sequence[str]) -> int:
    """Do what the first argument says, ``ls`` where there is none, to the store that the others name; the exit code."""
    words = [argument for argument in arguments if "=" not in argument and argument[:1] not in "-+~"]
    name = words[0] if words else "ls"
    if name not in ACTIONS or words[1:] not in ([], ["all"] if name == "gc" else []):
        raise RequestError(f"store {' '.join(words)!r} is not known{nearest(name, ACTIONS)} Or: store gc all.")
    action: Action = _empty if words[1:] else ACTIONS[name]
    return compose_and_run(lambda jobs: action(_opened(jobs)), [each for each in arguments if each not in words])


def _opened(jobs: Sequence[Job]) -> Store:
    config = jobs[0].config
    opened = open_store(config.get("store"), config.get("store_size"))
    if opened is None:
        raise RequestError("store=null keeps nothing; name a folder with store=FOLDER.")
    return opened


def _ls(store: Store) -> int:
    """Print every entry, the last used first."""
    entries, now = sorted(store.entries(), key=lambda entry: -entry.used), time()
    for entry in entries:
        print(f"{entry.key}  {shown(entry.size):>9}  {_age(now - entry.used):>8}  {entry.stage()}")
    total = shown(sum(entry.size for entry in entries))
    print(f"results: {len(entries)}, {total} of {shown(store.limit)}, in {store.folder}")
    return 0


def _age(seconds: float) -> str:
    name, unit = next((each for each in AGES if seconds >= each[1]), AGES[-1])
    count = max(0, int(seconds / unit))
    return f"{count} {name}{'s' if name == 'day' and count > 1 else ''}"


def _gc(store: Store) -> int:
    return _shrunk(store, store.limit)


def _empty(store: Store) -> int:
    return _shrunk(store, 0)


def _shrunk(store: Store, limit: int) -> int:
    count, size = store.shrink(limit)
    left = list(store.entries())
    print(f"removed: {count}, {shown(size)}; left: {len(left)}, {shown(sum(entry.size for entry in left))}")
    return 0


def _verify(store: Store) -> int:
    """Read every entry; the damaged ones are told, and made anew when a run needs them."""
    damaged = list(store.damaged())
    for entry, why in damaged:
        print(f"claygraph: the stored result {entry.key} is damaged ({why}); delete {entry.path}.", file=sys.stderr)
    print(f"results: {sum(1 for _ in store.entries())}; damaged: {len(damaged)}")
    return 1 if damaged else 0


Action = Callable[[Store], int]
ACTIONS: dict[str, Action] = {"ls": _ls, "gc": _gc, "verify": _verify}
