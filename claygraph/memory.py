"""What is resident on the device: weights once per key, the least recently used out first, and how many rows fit."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from claygraph.devices import allocated, capacity, device_named, give_back
from claygraph.errors import WeightsError, check_choice
from claygraph.limits import Limits, most_rows
from claygraph.sizes import in_bytes
from claygraph.weighing import bytes_in

if TYPE_CHECKING:
    from claygraph.stage import Call

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Memory:
    """One device and what lies on it.

    ``device`` is a torch device name or ``auto`` (a GPU where there is one), ``dtype`` one of ``DTYPES`` or ``auto``
    (float32 on a CPU, float16 on a GPU), ``batch`` the most calls that share one forward pass, or ``auto``. ``budget``
    is what weights and computation together may take, as ``6GB`` or in bytes; ``auto`` is what the device has, less a
    reserve. With ``compile`` the networks of the denoiser go through ``torch.compile``.

    What must go goes altogether and is loaded again when it is asked for: weights are mapped from their files, which
    the operating system keeps in memory for as long as nobody needs that, so a second copy there would gain nothing.
    """

    compile = False

    def __init__(
        self, device: str = "auto", dtype: str = "auto", batch: int | str = 8, budget: int | str = "auto"
    ) -> None:
        check_choice("dtype", dtype, ["auto", *DTYPES])
        self.device = device_named(device)
        self.dtype = DTYPES.get(dtype, torch.float32 if self.device.type == "cpu" else torch.float16)
        self.batch = most_rows(batch, self.device.type)
        self.budget = capacity(self.device) if budget == "auto" else in_bytes("memory", budget)
        self.loads: Counter[Hashable] = Counter()
        self._limits = Limits(self.batch)
        self._resident: dict[Hashable, Any] = {}  # least recently used first
        self._sizes: dict[Hashable, int] = {}  # of all that was ever loaded
        self._needs: dict[Hashable, set[Hashable]] = {}  # what the last batch of a key used
        self._running: Hashable = None
        self._used: set[Hashable] = set()  # by the running batch so far
        self._failed: dict[Hashable, WeightsError] = {}

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's dtype: never float16, in which SDXL's overflows."""
        return torch.bfloat16 if self.dtype == torch.float16 else self.dtype

    def get(self, key: Hashable, load: Callable[[], T], size: int | None = None) -> T:
        """What ``load`` returns, kept under the key for as long as there is room; ``size`` where it cannot be seen.

        Within batches of one kind a file that cannot be used is tried once.
        """
        if key not in self._resident:
            value = self._loaded(key, load)
            self._sizes[key] = bytes_in(value) if size is None else size
            self._resident[key] = value
            self.loads[key] += 1
        value = self._resident[key] = self._resident.pop(key)
        self._used.add(key)
        self.make_room(0)
        return cast(T, value)

    def _loaded(self, key: Hashable, load: Callable[[], T]) -> T:
        if failed := self._failed.get((self._running, key)):
            raise failed.with_traceback(None)
        self.make_room(self._sizes.get(key, 0))
        try:
            with _no_collections():
                return load()
        except WeightsError as error:
            if self._running is not None:
                self._failed[self._running, key] = error
            raise

    def make_room(self, size: int) -> bool:
        """Put out what was unused for longest until ``size`` more bytes fit, never what the running batch uses.

        Whether anything went.
        """
        stay = self._used | self._needs.get(self._running, set())
        gone = False
        for key in [key for key in self._resident if self._sizes[key] and key not in stay]:
            if self.used() + size <= self.budget:
                break
            self._put_out(key)
            gone = True
        return gone

    def _put_out(self, key: Hashable) -> None:
        del self._resident[key]
        gc.collect()  # modules with hooks are cycles
        give_back(self.device)

    def used(self) -> int:
        """Bytes that weights take: as the GPU counts, on a CPU as they were when last weighed."""
        counted = allocated(self.device)
        return sum(self._sizes[key] for key in self._resident) if counted is None else counted

    @contextmanager
    def running(self, key: Hashable, call: Call[Any], rows: int) -> Iterator[None]:
        """For as long as it lasts a batch of so many calls has room, and what it gets stays."""
        known = self._needs.get(key)
        self._running, self._used = key, set()
        self.make_room(self._missing() + rows * self._limits.bytes_of_row(key, call))
        before = self.loads.total()
        try:
            yield
        finally:
            if known is None or self.loads.total() > before:  # adapters are put on a module after it was loaded
                self._sizes |= {used: size for used in self._used if (size := bytes_in(self._resident[used]))}
            self._needs[key], self._running, self._used = self._used, None, set()

    def _missing(self) -> int:
        """Bytes of what the running batch will load, as far as it is known."""
        return sum(self._sizes[key] for key in self._needs.get(self._running, set()) - self._resident.keys())

    @contextmanager
    def measuring(self, key: Hashable, rows: int) -> Iterator[None]:
        """Learn what a batch takes beside weights, where the device counts it (a GPU)."""
        before = allocated(self.device)
        if before is None:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        weights = max(before, torch.cuda.memory_allocated(self.device))
        self._limits.measured(key, rows, torch.cuda.max_memory_allocated(self.device) - weights)

    def rows(self, key: Hashable, call: Call[Any]) -> int:
        """How many calls of this key (class and ``batch_key``) a batch may hold."""
        weights = sum(self._sizes[each] for each in self._needs.get(key, ()))
        return self._limits.rows(key, call, self.budget - weights)

    def shrink(self, key: Hashable, rows: int) -> None:
        """Half as many rows for this key from now on: so many found no room."""
        self._limits.halve(key, rows)
        give_back(self.device)

    def clear(self) -> bool:
        """Put out all that the running batch does not use; whether there was anything."""
        return self.make_room(self.budget)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A model that is built makes many objects and no garbage, through all of which collections would look in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
