"""Execution: run the calls of one batch, smaller when memory runs out, apart when one of them is at fault."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

import torch

from claygraph.memory import Memory
from claygraph.stage import Call


class Done(NamedTuple):
    """A call's value (or the exception it met), its share of the batch's seconds, and the batch's size."""

    value: Any
    seconds: float
    size: int


def run_calls(calls: Sequence[Call[Any]], memory: Memory) -> list[Done]:
    """Every call's value, in order. A failing batch is run again call by call, so that a fault stays with its own."""
    begun = perf_counter()
    try:
        values = type(calls[0]).run_batch(calls, memory)
    except torch.OutOfMemoryError as error:
        if len(calls) == 1:
            return [Done(error, perf_counter() - begun, 1)]
        memory.shrink()
        half = len(calls) // 2
        return run_calls(calls[:half], memory) + run_calls(calls[half:], memory)
    except Exception as error:  # a call's failure is its value
        if len(calls) == 1:
            return [Done(error, perf_counter() - begun, 1)]
        return [done for call in calls for done in run_calls([call], memory)]
    seconds = (perf_counter() - begun) / len(calls)
    return [Done(value, seconds, len(calls)) for value in values]
