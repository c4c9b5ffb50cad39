"""Execution: run the calls of one batch, smaller when memory runs out, apart when one of them is at fault."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from time import perf_counter
from traceback import clear_frames
from typing import Any, NamedTuple

import torch

from claygraph.memory import Memory
from claygraph.stage import Call


class Done(NamedTuple):
    """A call's value (or the exception it met), its share of the batch's seconds, and the batch's size."""

    value: Any
    seconds: float
    size: int


def batch_key(call: Call[Any]) -> Hashable:
    """Calls for which it is the same may share a batch."""
    return type(call), call.batch_key


def run_calls(calls: Sequence[Call[Any]], memory: Memory) -> list[Done]:
    """Every call's value, in order.

    A batch that finds no memory is run again in parts half as large, and batches of this key stay that small. One that
    fails otherwise is run again call by call, so that a fault stays with its own. Where a file that cannot be used is
    to blame for all of them, that is found out once: ``Memory.get`` does not try again to load it for this key.
    """
    key = batch_key(calls[0])
    with memory.running(key, calls[0], len(calls)):
        return _run(key, calls, memory)


def _run(key: Hashable, calls: Sequence[Call[Any]], memory: Memory) -> list[Done]:
    begun = perf_counter()
    found = _attempt(key, calls, memory)
    if isinstance(found, list):
        seconds = (perf_counter() - begun) / len(calls)
        return [Done(value, seconds, len(calls)) for value in found]
    if isinstance(found, torch.OutOfMemoryError) and len(calls) > 1:
        memory.shrink(key, len(calls))
        return _in_parts(key, calls, memory)
    if len(calls) > 1:
        return [done for call in calls for done in _run(key, [call], memory)]
    if isinstance(found, torch.OutOfMemoryError) and memory.clear():
        return _run(key, calls, memory)
    return [Done(found, perf_counter() - begun, 1)]


def _in_parts(key: Hashable, calls: Sequence[Call[Any]], memory: Memory) -> list[Done]:
    done: list[Done] = []
    while len(done) < len(calls):
        rows = memory.rows(key, calls[0])
        done += _run(key, calls[len(done) : len(done) + rows], memory)
    return done


def _attempt(key: Hashable, calls: Sequence[Call[Any]], memory: Memory) -> list[Any] | Exception:
    """The values, or what went wrong, without the tensors that its traceback would hold on to."""
    try:
        with memory.measuring(key, len(calls)):
            return type(calls[0]).run_batch(calls, memory)
    except Exception as error:  # a call's failure is its value
        clear_frames(error.__traceback__)
        return error
