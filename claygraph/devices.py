"""The device that models run on: by name, and how much it holds."""

from __future__ import annotations

import os

import torch

from claygraph.errors import SettingError

KINDS = ("cpu", "cuda", "mps")
RESERVE = 0.08
"""Share of a GPU that is left to its driver, to libraries' workspaces and to what fragmentation wastes."""
MACHINE = 0.75
"""Share of the machine's memory that models on a CPU may take with what they compute."""


def device_named(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``: a GPU where there is one.

    Raises ``SettingError`` where there is no such device.
    """
    if name == "auto":
        return torch.device(_best())
    if name.partition(":")[0] not in KINDS:
        raise SettingError(f"device={name!r} is not known; give auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition(". ")[0].partition("\n")[0].rstrip(".")
        raise SettingError(f"device={name!r} cannot be used here ({reason}); {_instead()}") from error


def _instead() -> str:
    count = torch.cuda.device_count()
    cards = ["cuda" if number == 0 else f"cuda:{number}" for number in range(count)]
    return f"give {', '.join(['auto', 'cpu', *cards, *(['mps'] if torch.backends.mps.is_available() else [])])}."


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def capacity(device: torch.device) -> int:
    """Bytes that weights and computation may take: most of what is free on a GPU, on a CPU of the machine's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free - RESERVE * total)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() * (1 - RESERVE))
    return int(machine_memory() * MACHINE)


def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def allocated(device: torch.device) -> int | None:
    """Bytes of a GPU that this process's tensors take now; None where nobody counts."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def give_back(device: torch.device) -> None:
    """Return to the device what is freed but kept for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
