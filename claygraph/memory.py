"""What is resident on the device: weights once per key, and how many rows a batch may hold."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch

from claygraph.errors import SettingError, check_choice

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Memory:
    """One device and what lies on it.

    ``device`` is a torch device name or ``auto`` (a GPU where there is one), ``dtype`` one of ``DTYPES`` or ``auto``
    (float32 on a CPU, float16 on a GPU), ``batch`` the most calls that share one forward pass. With ``compile`` the
    networks of the denoiser go through ``torch.compile``.
    """

    compile = False

    def __init__(self, device: str = "auto", dtype: str = "auto", batch: int = 8) -> None:
        check_choice("dtype", dtype, ["auto", *DTYPES])
        self.device = _device(device)
        self.dtype = DTYPES.get(dtype, torch.float32 if self.device.type == "cpu" else torch.float16)
        self.batch = batch
        self._resident: dict[Hashable, Any] = {}

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's dtype: never float16, in which SDXL's overflows."""
        return torch.bfloat16 if self.dtype == torch.float16 else self.dtype

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        """What ``load`` returned the first time this key was asked for."""
        if key not in self._resident:
            self._resident[key] = load()
        return cast(T, self._resident[key])

    def shrink(self) -> None:
        """Halve the batch after the device ran out of memory, and give back what is cached."""
        self.batch = max(1, self.batch // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device(_best_device())
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition(". ")[0].partition("\n")[0]
        raise SettingError(f"device={name!r} cannot be used here ({reason}); give auto, cpu, cuda or mps.") from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
