"""From the arguments of a command line to composed configs, by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from claygraph.jobs import Job

SWEEP = {"-m", "--multirun"}
CHEAP_METRICS = "metric=[ssim,edge_f1,sharpness,clay]"
Command = Callable[[Sequence[Job]], int]


def compose_and_run(command: Command, arguments: Sequence[str]) -> int:
    """Compose one config, or one for each job of ``-m``, and run the command on them; its exit code."""
    arguments = with_metrics(arguments)
    flags = any(argument.startswith("-") for argument in arguments)
    return _as_application(command, arguments) if flags else _plain(command, arguments)


def _plain(command: Command, overrides: Sequence[str]) -> int:
    """Overrides alone need no more of Hydra than this, which takes half the time of an application's start."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("claygraph.conf", version_base="1.3"):
        config = compose("config", list(overrides))
    return command([Job(config, tuple(overrides))])


def _as_application(command: Command, arguments: Sequence[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    codes, failures, flags = [0], list[Exception](), _flags(arguments)

    @hydra.main(version_base="1.3", config_path="pkg://claygraph.conf", config_name="config")
    def task(composed: Any) -> int:
        single = isinstance(composed, DictConfig)
        pairs = [(composed, HydraConfig.get().overrides.task)] if single else composed
        try:
            jobs = [Job(config, tuple(given), flags, None if single else _place(config)) for config, given in pairs]
            codes.append(command(jobs))
        except Exception as error:  # told by the caller: Hydra would print it in its own way
            failures.append(error)
        return codes[-1]

    with _arguments(arguments):
        task()
    if failures:
        raise failures[0]
    return max(codes)


def with_metrics(arguments: Sequence[str]) -> list[str]:
    """The arguments, and for a sweep that chooses no metrics the ones that cost next to nothing."""
    sweep = not SWEEP.isdisjoint(arguments)
    chosen = any(argument.lstrip("+~").partition("=")[0] == "metric" for argument in arguments)
    return [*arguments, *([CHEAP_METRICS] if sweep and not chosen else [])]


def _place(config: Any) -> int:
    """A job's place in its sweep: the launcher gives each a folder of that name."""
    return int(str(config.out).rpartition("/")[2])


def _flags(arguments: Sequence[str]) -> tuple[str, ...]:
    """The flags, which stand before all overrides, without the one that asks for a sweep."""
    before = takewhile(lambda argument: argument.startswith("-") or "=" not in argument, arguments)
    return tuple(argument for argument in before if argument not in SWEEP and argument[:1] not in "+~")


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Give Hydra these arguments, and have it raise its errors instead of leaving with an exit code."""
    program, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [program[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = program
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)
